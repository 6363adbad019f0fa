"""`--mode generate`: honest models are equal, and what goes wrong in writing is named."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from planting import planted
from rich.console import Console
from torch import no_grad

import parity
import parity.subjects.jaxllama.generate as generate_module
from jaxllama.checkpoint import Checkpoint, tiny
from jaxllama.errors import InputError
from jaxllama.model import Llama
from parity.generation.compare import TOKENS, compare_exchange
from parity.generation.exchanges import COMBINED, NEW, SEED, WARM, Conversation, Exchange
from parity.generation.reference import logits_after
from parity.generation.run import Reference, compare_sampling_of, notes
from parity.report import terminal
from parity.result import Result, TapResult
from parity.subjects.jaxllama.generate import GeneratedTokens, Generator
from parity.subjects.torch_reference.subject import TorchReference

RUN = "parity.generation.run"
PROMPTS = ((256, 72, 101, 108, 108, 111, 32, 119, 111), (84, 104, 101, 32, 99, 97), (65, 110, 100))


@pytest.fixture(autouse=True)
def _precision() -> Iterator[None]:
    """Write as `parity.run` does: what it compiles serves here, and the other way round."""
    with jax.default_matmul_precision("highest"):
        yield


@cache
def checkpoint() -> Checkpoint:
    return tiny(num_hidden_layers=1, hidden_size=90)


@cache
def generator(lane: str = "f64") -> Generator:
    dtype = {"f64": jnp.float64, "bf16": jnp.bfloat16}[lane]
    # With weights as stored, as `parity.run` loads them: its programs are the same.
    return Generator(Llama.from_pretrained(checkpoint(), dtype=dtype, param_dtype="float32"))


@cache
def reference() -> Reference:
    return Reference(checkpoint())


def failures(last: str = "seeded") -> list[tuple[str, str]]:
    """Return what fails, as tap and scenario, up to the exchange where something does."""
    for one in Conversation(generator(), PROMPTS).hold():
        rows = compare_exchange(one, reference().say(one, "f64"), "f64")
        if failed := [(row.tap, row.scenario) for row in rows if not row.passed]:
            return failed
        if one.name == last:
            break
    return []


def test_an_honest_model_is_equal() -> None:
    assert failures() == []


@no_grad()
def test_the_text_is_that_of_a_plain_loop() -> None:
    """What holds for each token given all before it holds for the loop."""
    model, rows = TorchReference(checkpoint(), dtype="f64"), [list(row) for row in PROMPTS]
    for _ in range(NEW):
        asked = [[*row, 0] for row in rows]
        for row, logits in zip(rows, logits_after(model, asked, [*map(len, rows)]), strict=True):
            row.append(int(np.argmax(logits[0])))
    greedy = next(Conversation(generator(), PROMPTS).hold())
    assert [row[-NEW:] for row in rows] == [list(text) for text in greedy.texts()]


@pytest.mark.parametrize(("gap", "passed"), [(1e-15, True), (1e-9, False)])
def test_of_two_equals_to_within_noise_either_is_right(gap: float, passed: bool) -> None:
    greedy = next(Conversation(generator(), PROMPTS).hold())
    said = reference().say(greedy, "f64")
    assert said is not None
    for logits, *_ in (said.logits, *(logits for logits, _ in said.honest)):
        # Token 5 before the one that was written.
        logits[0, 5] = logits[0].max() + gap * np.ptp(logits[0])
    row = next(r for r in compare_exchange(greedy, said, "f64") if r.tap == "generated.tokens")
    assert (row.passed, row.facts["near_ties"]) == (passed, float(passed))
    assert row.worst is not None and row.worst.gold == 5.0
    assert row.worst.index == {"B": 0, "T": 0}


# What is edited in jaxllama.generate or beside it, and where it shows first.
FAULTS = {
    "eos ignored": (
        "jaxllama.generate",
        "done=s.done | (token[:, None] == inputs.eos[None, :]).any(axis=-1)",
        "done=s.done",
        ("generated.rows", "eos"),
    ),
    "a position too far after prefill": (
        "jaxllama.generate",
        "cache.positions[rows, end] + 1, 0)",
        "cache.positions[rows, end] + 2, 0)",
        ("generated.tokens", "greedy"),
    ),
    "the last prompt token of shorter rows dropped": (
        "jaxllama.generate",
        "< inputs.prompt_lengths[:, None]",
        "< jnp.where(inputs.prompt_lengths < 9, inputs.prompt_lengths - 1, 9)[:, None]",
        ("generated.tokens", "greedy"),
    ),
    "the cache not continued": (
        "jaxllama.generate",
        "    if cache is None:\n        capacity = bucket(request.longest) + M",
        "    if True:\n        capacity = bucket(request.longest) + M",
        ("generated.tokens", "continued"),
    ),
    "finished rows go on": (
        "jaxllama.generate",
        "    live = ~s.done\n",
        "    live = jnp.ones_like(s.done)\n",
        ("generated.rows", "eos"),
    ),
    "finished rows are read on": (
        "jaxllama.generate",
        "s.last[:, None], ~s.done[:, None])",
        "s.last[:, None], jnp.ones_like(s.done)[:, None])",
        ("generated.cache", "eos"),
    ),
    "log probabilities without the normaliser": (
        "jaxllama.generate",
        "logprobs = jax.nn.log_softmax(logits, axis=-1)",
        "logprobs = logits",
        ("generated.logprobs", "greedy"),
    ),
    "seeds of rows not kept": (
        "jaxllama.request",
        "return [int(seed), *(int(other",
        "return [int(seed) + 1, *(int(other",
        ("generated.rows", "greedy"),
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_the_loop_is_named(name: str) -> None:
    module, before, after, expected = FAULTS[name]
    with planted(module, before, after):
        assert failures("watched")[:1] == [expected]


SECOND_BEST = (
    "jaxllama.sampling",
    "return jnp.argmax(logits, axis=-1).astype(jnp.int32)",
    "return jax.lax.top_k(logits, 2)[1][:, 1].astype(jnp.int32)",
)


@pytest.mark.parametrize("honest", [True, False], ids=["honest", "the second best"])
def test_in_bfloat16_rounding_does_not_hide_another_choice(honest: bool) -> None:
    with nullcontext() if honest else planted(*SECOND_BEST):
        *_, one = islice(Conversation(generator("bf16"), PROMPTS).hold(), 3)
    rows = compare_exchange(one, reference().say(one, "bf16"), "bf16")
    assert [row.tap for row in rows if not row.passed] == [TOKENS] * (not honest)
    near, problems = rows[1].facts["near_ties"], rows[1].problems
    # Of 27; taken one by one none of these is beyond the noise.
    assert near <= 4 if honest else near >= 12
    assert honest == (not problems)
    assert honest or "27 of 27 tokens are not the reference's choice" in problems[0]


def test_a_crash_is_a_finding_beside_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object, **__: object) -> None:
        raise TypeError("planted")

    for module, name in (("parity.subjects.jaxllama.generate", "generate"), (RUN, "kept_logits")):
        monkeypatch.setattr(f"{module}.{name}", crash)
    result = run(dtypes="f64", modes="generate,tokens")
    assert result.verdict == "divergent"
    assert {row.mode for row in result.rows} == {"generate", "tokens"}
    failed = [row for row in result.rows if not row.passed]
    assert {(row.tap, *row.problems) for row in failed} == {
        ("generated.rows", "generate refused: TypeError: planted"),
        ("sampling.kept", "sampling failed: TypeError: planted"),
    }


@pytest.mark.parametrize(("name", "other"), [("lengths", "logprobs"), ("tokens", "lengths")])
def test_an_answer_of_another_shape_is_refused(
    name: str, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = generate_module.generate

    def mixed(*given: Any, **options: Any) -> Any:
        found = real(*given, **options)
        return SimpleNamespace(**{**vars(found), name: getattr(found, other)})

    monkeypatch.setattr(generate_module, "generate", mixed)
    first = next(iter(Conversation(generator(), PROMPTS).hold()))
    assert first.written is None
    assert first.refused.startswith(f"generate returned {name} (3")
    rows = compare_exchange(first, None, "f64")
    assert [row.problems[0][:25] for row in rows if not row.passed] == ["generate refused: generat"]


def test_a_draw_beyond_the_vocabulary_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{RUN}.draw", lambda logits, *_: np.full(len(logits), logits.shape[-1]))
    rows = compare_sampling_of(reference().exact, PROMPTS, "f64")
    draws = [row for row in rows if not row.passed]
    assert {row.tap for row in draws} == {"sampling.draws"} and len(draws) == 6
    assert draws[0].problems[0].startswith("logits 0: ")


class Edited(Generator):
    """One whose answers are changed."""

    def __init__(self, edit: Callable[[GeneratedTokens], GeneratedTokens]) -> None:
        super().__init__(generator().model)
        self._edit = edit

    def write(self, *given: Any, **options: Any) -> GeneratedTokens:
        return self._edit(super().write(*given, **options))


def put(
    name: str, row: int, token: int, value: float
) -> Callable[[GeneratedTokens], GeneratedTokens]:
    def edit(written: GeneratedTokens) -> GeneratedTokens:
        changed = getattr(written, name).copy()
        changed[row, token] = value
        return replace(written, **{name: changed})

    return edit


def emptied(written: GeneratedTokens) -> GeneratedTokens:
    return replace(written, lengths=np.where(np.arange(3) == 0, 0, written.lengths))


@pytest.mark.parametrize(
    ("edit", "tap", "problem"),
    [
        (emptied, "generated.rows", "row 0: no new token"),
        (put("tokens", 1, 2, 999_999), "generated.rows", "row 1: new token 2 is 999999, expected"),
        (put("tokens", 1, 2, -7), "generated.rows", "row 1: new token 2 is -7, expected from 0 to"),
        (put("logprobs", 0, 1, np.nan), "generated.logprobs", "not finite at row 0, token 1"),
    ],
    ids=["empty", "beyond the vocabulary", "below 0", "not a number"],
)
def test_what_is_no_text_is_said(
    edit: Callable[[GeneratedTokens], GeneratedTokens], tap: str, problem: str
) -> None:
    exchanges = [*islice(Conversation(Edited(edit), PROMPTS).hold(), 3)]
    assert [one.name for one in exchanges] == ["greedy", "eos", "continued"]
    greedy = exchanges[0]
    rows = compare_exchange(greedy, reference().say(greedy, "f64"), "f64")
    failed = [row for row in rows if not row.passed]
    assert failed[0].tap == tap and failed[0].problems[0].startswith(problem)
    if tap == "generated.logprobs":
        assert failed[0].worst is not None and failed[0].worst.index == {"B": 0, "T": 1}


def blurred(tokens: np.ndarray | None = None) -> list[TapResult]:
    """Return rows of what is said to be sampled, where noise leaves every filter open."""
    written = generator().write(PROMPTS, NEW, setting={}, eos=(), seeds=SEED)
    if tokens is not None:
        written = replace(written, tokens=tokens)
    one = Exchange("sampled", PROMPTS, COMBINED, (), SEED, {}, written)
    said = reference().say(one, "f64")
    assert said is not None
    draw = np.random.default_rng(3)
    moved = [row + draw.normal(0, 0.1, row.shape) for row in said.logits]
    return compare_exchange(one, replace(said, honest=[(moved, 1.0)]), "f64")


def test_what_is_all_open_does_not_count_as_compared() -> None:
    rows = blurred()
    assert [row.tap for row in rows] == [f"generated.{n}" for n in ("rows", "logprobs", "cache")]
    said = notes(rows, TorchReference(checkpoint()))
    assert any("not compared: generated.tokens of sampled" in note for note in said)


def test_an_open_choice_is_held_to_the_widest_set() -> None:
    written = generator().write(PROMPTS, NEW, setting={}, eos=(), seeds=SEED)
    tokens = written.tokens.copy()
    (logits, *_) = logits_after(
        reference().exact, [[*row, 0] for row in PROMPTS], [*map(len, PROMPTS)]
    )
    tokens[0, 0] = int(np.argmin(logits[0]))
    row = next(row for row in blurred(tokens) if row.tap == TOKENS)
    assert not row.passed and row.facts["undecided"] > 0
    assert f"row 0, token 0: {tokens[0, 0]} is cut away" in row.problems


def test_a_length_that_generate_cannot_share_out_is_refused() -> None:
    with pytest.raises(InputError, match="length=5 with mode generate: expected at least 6"):
        run(dtypes="f64", length=5)


def seeded() -> list[TapResult]:
    values = {"temperature": WARM.temperature}
    written = generator().write(PROMPTS, NEW, setting=values, eos=(), seeds=SEED)
    one = Exchange("seeded", PROMPTS, WARM, (), SEED, {}, written)
    return compare_exchange(one, reference().say(one, "f64"), "f64")


def test_one_draw_for_all_steps_is_caught() -> None:
    with planted(
        "jaxllama.generate",
        "in_axes=(0, None))(inputs.keys, s.step)",
        "in_axes=(0, None))(inputs.keys, s.step * 0)",
    ):
        assert [row.tap for row in seeded() if not row.passed] == ["generated.tokens"]


# What is edited in jaxllama.sampling, and under which settings it shows, as set and as draws.
SAMPLING_FAULTS = {
    "temperature after the filters": (
        'kept = filter_logits(logits / values["temperature"].astype(logits.dtype), values)',
        'kept = filter_logits(logits, values) / values["temperature"].astype(logits.dtype)',
        ("sampling.draws", "top_p"),
    ),
    "top-k off by one": (
        "last = jnp.minimum(k, logits.shape[-1]) - 1",
        "last = jnp.minimum(k, logits.shape[-1])",
        ("sampling.kept", "top_k"),
    ),
    "top-p without the token that crosses": (
        "last = (before < p.astype(probs.dtype)).sum(axis=-1) - 1",
        "last = (jnp.cumsum(probs, axis=-1) < p.astype(probs.dtype)).sum(axis=-1) - 1",
        ("sampling.kept", "top_p"),
    ),
    "of equals the higher id": ("(ids <= edge_id)", "(ids >= edge_id)", ("sampling.kept", "top_k")),
    "min-p of the sum": (
        "floor = logits.max(axis=-1, keepdims=True)",
        "floor = jax.nn.logsumexp(logits, axis=-1, keepdims=True)",
        ("sampling.kept", "min_p"),
    ),
    "a penalty that rewards": (
        "jnp.where(logits < 0, logits * penalty, logits / penalty)",
        "logits / penalty",
        ("sampling.kept", "penalty"),
    ),
    "the most likely taken": (
        "return jax.vmap(jax.random.categorical)(keys, kept).astype(jnp.int32)",
        "return jnp.argmax(kept, axis=-1).astype(jnp.int32)",
        ("sampling.draws", "temperature"),
    ),
}


def sampled() -> list[tuple[str, str]]:
    rows = compare_sampling_of(reference().exact, PROMPTS, "f64")
    assert all(row.facts["undecided"] == 0 for row in rows)
    return [(row.tap, row.scenario) for row in rows if not row.passed]


def test_an_honest_sampler_is_equal() -> None:
    assert sampled() == []


@pytest.mark.parametrize("name", SAMPLING_FAULTS)
def test_a_fault_of_the_sampler_is_named(name: str) -> None:
    before, after, expected = SAMPLING_FAULTS[name]
    with planted("jaxllama.sampling", before, after, compiled=False):
        assert expected in sampled()
    assert sampled() == []


def run(**options: object) -> Result:
    return parity.run(checkpoint(), **{"modes": "generate", **options})  # type: ignore[arg-type]


def test_a_run_says_it_to_all_readers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = run(dtypes="f64")
    assert honest.verdict == "equal" and honest.compared == honest.expected == 6
    assert [row.witness for row in honest.witnesses] == ["torch"]
    assert [one["scenario"] for one in honest.inputs] == ["prompts"]

    class Short(Conversation):
        def hold(self) -> Iterator[Exchange]:
            yield from islice(super().hold(), 2)  # greedy and eos: what follows tells no more

    monkeypatch.setattr("parity.generation.run.Conversation", Short)
    module, before, after, _ = FAULTS["eos ignored"]
    with planted(module, before, after):
        result = run(dtypes="f64")
    assert result.exit_code == 1 and result.first_divergence is not None
    assert result.first_divergence.kind == "generation"
    assert result.difference == "meaning"
    terminal.show(result, Console(width=120))
    said = capsys.readouterr().out
    assert "first divergence: generated.rows (f64, scenario eos, generate)" in said
    assert "new tokens, expected" in said and "ends a row" in said
    files = {kind: tmp_path / f"report.{kind}" for kind in ("json", "html", "junit")}
    parity.write_report(result, **files)
    assert json.loads(files["json"].read_text())["first_divergence"]["kind"] == "generation"
    assert "generated.rows" in files["html"].read_text()
    assert 'name="generated.rows"' in files["junit"].read_text()
    again = parity.recheck(files["json"])
    assert again.verdict == "divergent" and again.first_divergence is not None
    assert again.first_divergence.row.tap == "generated.rows"


def test_a_foreign_subject_is_passed_over() -> None:
    with pytest.raises(InputError, match=r"jaxllama\.generate, which does not run .* torch"):
        run(dtypes="f64", subject="torch")
    both = parity.run(
        checkpoint(),
        modes="free,generate",
        subject="torch",
        dtypes="f64",
        scenarios="right_padded",
        length=6,
    )
    assert both.verdict == "equal" and {row.mode for row in both.rows} == {"free"}
    assert any(note.startswith("mode generate is about") for note in both.notes)


def test_what_rounding_leaves_open_is_said() -> None:
    row = seeded()[1]
    open_row = replace(row, facts={"choices": 27.0, "near_ties": 1.0, "undecided": 2.0})
    (said,) = notes([open_row], TorchReference(checkpoint()))
    assert "of 27 choices 1 fell on another token" in said and "2 were held to all sets" in said
    assert notes([row], TorchReference(checkpoint())) == []
    kept = replace(row, tap="sampling.kept", facts={"choices": 16.0, "undecided": 3.0})
    (said,) = notes([row, kept], TorchReference(checkpoint()))
    assert "sampling.kept and sampling.draws leave open 3 of 16 rows of logits" in said
