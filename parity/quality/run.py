"""`parity.measure_quality`: a model on texts, or two of them, before and after a change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax

from jaxllama.checkpoint import Checkpoint, open_checkpoint
from jaxllama.checkpoint.checks import check_finite
from jaxllama.errors import InputError, argument
from jaxllama.masks import Mask
from jaxllama.model import Llama
from jaxllama.quantisation import checked_quant
from jaxllama.quantisation.choice import parse_quant
from parity.options import LANES, Progress, checked_length, in_wider, lane_of
from parity.quality.examples import EncodedExample, QualityExample, encode_examples, read_examples
from parity.quality.foretelling import foretell, logits_of_model
from parity.quality.layouts import LAYOUTS, lay_out, passages
from parity.quality.measures import check_libraries, perplexity, text_measures
from parity.quality.report import QualityChange, WrittenText
from parity.quality.verdict import check_fail_on, find_changes
from parity.quality.writing import write_after
from parity.runner import environment
from parity.runner.room import check_room
from parity.scenarios import Shape

# Tokens that a model is given at once, unless told.
DEFAULT_LENGTH = 512
# Float64 maps [N, T, T] that are alive at once, at the least.
_MAPS = 1


@dataclass(frozen=True)
class _Side:
    """A model as it is measured."""

    label: str
    opened: Checkpoint
    mask: Mask | None = None
    quant: str | None = None

    def load(self, dtype: str) -> Llama:
        return Llama.from_pretrained(self.opened, dtype=dtype, quant=self.quant)

    def refused(self, dtype: str) -> Exception:
        """Return the error of logits that are not finite."""
        check_finite(self.opened, self.label)
        said = f"{self.label}: its logits are not finite in {dtype}, though its weights are"
        return InputError(said + in_wider(dtype))


def measure_quality(
    checkpoint: str | Path | Checkpoint,
    data: str | Path,
    *,
    mask: Sequence[Mask] = (),
    baseline: str | Path | Checkpoint | None = None,
    quant: str | None = None,
    dtype: str = "f32",
    length: int | None = None,
    layout: str = "padded",
    fail_on: Sequence[str] = (),
    seed: int = 0,
    progress: Progress | None = None,
) -> QualityChange:
    """Measure how well a model foretells and writes texts; compare two where a change is given.

    Args:
        checkpoint: a directory or file of any format, `tiny`, `smollm2`, or an open checkpoint.
        data: a file of JSON lines, each with a text, or with a prompt and a reference.
        mask: none, or two: what queries see before and after.
        baseline: the checkpoint before; the other one is after.
        quant: what is quantised after, `int8` or another of `jaxllama.quantisation`.
        dtype: `f64`, `f32` or `bf16`.
        length: most tokens given at once, 512 if None; longer texts are cut into pieces that
            overlap by one token.
        layout: `padded` on the left, `packed` or `single`.
        fail_on: what makes the exit code 1, see `parity.quality.verdict.fails`.
        seed: of the resamples.
        progress: called with what is under way, steps done and steps in all.

    Raises:
        JaxLlamaError: the checkpoint, the data or an option is bad; nothing was measured.
    """
    lane = _checked(mask, baseline, quant, dtype, length, layout)
    path = Path(data)
    examples = read_examples(path)
    asked_for = sum(one.prompt is not None for one in examples)
    prompts = asked_for > 0
    pair = bool(mask or baseline is not None or quant is not None)
    check_fail_on(fail_on, pair=pair, examples=len(examples), prompts=asked_for)
    if prompts:
        check_libraries()
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        sides, change = _sides(checkpoint, mask, baseline, quant)
        most = min(checked_length(length, DEFAULT_LENGTH, one.opened.config) for one in sides)
        encoded = _encoded(sides, examples, most, str(path))
        parts = passages(encoded, most)
        longest = max(len(part.ids) for part in parts)
        heads = max(side.opened.config.num_attention_heads for side in sides)
        check_room([Shape("text", 1, longest)], heads, maps=_MAPS)
        config = sides[0].opened.config
        batches = lay_out(parts, layout, config.vocab_size, config.pad_token_id)
        models = _loaded(sides, lane)
        step = _counter(progress, len(batches) + prompts * len(sides))
        found = foretell(
            [logits_of_model(model, side.mask) for model, side in zip(models, sides, strict=True)],
            batches,
            len(encoded),
            lane=lane,
            refuse=lambda number: sides[number].refused(lane),
            progress=partial(step, "foretelling"),
        )
        measures = [perplexity(found.losses, found.counts)]
        written: list[WrittenText] = []
        if prompts:
            asked = [one for one in encoded if one.prompt]
            texts = []
            for model, side in zip(models, sides, strict=True):
                texts.append(_texts(model, side, asked))
                step("writing")
            measures += text_measures(texts, [one.example.text.strip() for one in asked])
            written = _written(asked, texts)
        facts = environment.describe()
    return QualityChange(
        measures=find_changes(measures, seed),
        checkpoint=sides[-1].label,
        change=change,
        figures=found.figures,
        data=str(path),
        examples=len(encoded),
        prompts=len(written),
        tokens=int(found.counts.sum()),
        layout=layout,
        dtype=lane,
        length=most,
        seed=seed,
        fail_on=tuple(fail_on),
        written=written,
        notes=list(dict.fromkeys(note for side in sides for note in side.opened.notes)),
        environment=facts,
    )


def _checked(
    mask: Sequence[Mask],
    baseline: str | Path | Checkpoint | None,
    quant: str | None,
    dtype: str,
    length: int | None,
    layout: str,
) -> str:
    """Refuse what does not go together; return the dtype."""
    given = {"mask": bool(mask), "baseline": baseline is not None, "quant": quant is not None}
    named = [argument(name) for name, held in given.items() if held]
    if len(named) > 1:
        raise InputError(f"{' and '.join(named)}: one change is measured at a time; give one")
    if len(mask) not in (0, 2):
        raise InputError(
            f"{argument('mask')}: {len(mask)} given, expected two, of before and of after"
        )
    if quant is not None:
        parse_quant(quant)
    lane = lane_of(dtype)
    if lane not in LANES:
        raise InputError(f"{argument('dtype', dtype)}: expected one of {', '.join(LANES)}")
    if layout not in LAYOUTS:
        raise InputError(f"{argument('layout', layout)}: expected one of {', '.join(LAYOUTS)}")
    if length is not None and length < 2:
        raise InputError(f"{argument('length', length)}: expected at least 2 tokens")
    return lane


def _sides(
    checkpoint: str | Path | Checkpoint,
    mask: Sequence[Mask],
    baseline: str | Path | Checkpoint | None,
    quant: str | None,
) -> tuple[list[_Side], str]:
    """Return the models, the one before first, and in words what is otherwise after."""
    opened = open_checkpoint(checkpoint)
    here = _Side(opened.label if isinstance(checkpoint, Checkpoint) else str(checkpoint), opened)
    if mask:
        before, after = mask
        return [replace(here, mask=before), replace(here, mask=after)], f"mask {before} -> {after}"
    if quant is not None:
        checked_quant(quant, opened.config)
        return [here, replace(here, quant=quant)], f"quantised to {quant}"
    if baseline is None:
        return [here], ""
    base = open_checkpoint(baseline)
    label = base.label if isinstance(baseline, Checkpoint) else str(baseline)
    if base.config.vocab_size != opened.config.vocab_size:
        raise InputError(
            f"baseline {label}: a vocabulary of {base.config.vocab_size}, here "
            f"{opened.config.vocab_size}; losses of other tokens cannot be compared"
        )
    return [_Side(label, base), here], f"against {label}"


def _encoded(
    sides: Sequence[_Side], examples: Sequence[QualityExample], length: int, source: str
) -> list[EncodedExample]:
    """Return the examples as ids, which have to be one model's as well as the other's."""
    found, *others = (encode_examples(examples, one.opened, length, source) for one in sides)
    for ids in others:
        for ours, theirs in zip(found, ids, strict=True):
            if ours != theirs:
                raise InputError(
                    f"{source}: line {ours.example.line} is {ours.foretold} tokens to "
                    f"{sides[0].label}, and {theirs.foretold} others to {sides[-1].label}; losses "
                    "of other tokens cannot be compared: give models of one tokenizer"
                )
    return found


def _loaded(sides: Sequence[_Side], dtype: str) -> list[Llama]:
    """Load the models; two masks need one alone."""
    first, *others = sides
    model = first.load(dtype)
    return [model, *(model if one.mask is not None else one.load(dtype) for one in others)]


def _texts(model: Llama, side: _Side, asked: Sequence[EncodedExample]) -> list[str]:
    """Return what a model writes after prompts, as many tokens as each reference has."""
    rows = write_after(
        model,
        [one.prompt for one in asked],
        [len(one.text) for one in asked],
        eos=side.opened.config.eos_token_ids,
        mask=side.mask,
    )
    tokenizer = side.opened.tokenizer()
    return [tokenizer.decode(row, skip_special=True).strip() for row in rows]


def _written(asked: Sequence[EncodedExample], texts: Sequence[Sequence[str]]) -> list[WrittenText]:
    found = []
    for number, one in enumerate(asked):
        assert one.example.prompt is not None
        after = texts[-1][number]
        before = texts[0][number] if len(texts) == 2 else None
        found.append(
            WrittenText(one.example.line, one.example.prompt, one.example.text, before, after)
        )
    return found


def _counter(progress: Progress | None, steps: int) -> Callable[[str], None]:
    done = 0

    def step(what: str) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(what, done, steps)

    return step
