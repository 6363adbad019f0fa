"""Causes behind taps that a subject does not show, tried on the whole chain."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from witnesses import LLAMA3

import parity
from jaxllama.checkpoint import tiny
from parity.diagnose import elsewhere
from parity.diagnose.chains import chain_of, hidden_taps
from parity.diagnose.compare_recording import compare_recording
from parity.diagnose.elsewhere import record_elsewhere
from parity.diagnose.mutated_reference import MutatedReference
from parity.diagnose.recording import Recording, record
from parity.diagnose.search import diagnose
from parity.inputs import Inputs, decode_chunks
from parity.result import CauseReport
from parity.scenarios import scenario
from parity.subjects.base import Arrays
from parity.subjects.torch_reference.subject import TorchReference
from parity.taps import AXES, split_name

# Runs are checked for shapes here, several times slower: what counts is their number.
CHECKPOINT = tiny(0, "float32", num_hidden_layers=2, rope_scaling=LLAMA3)
CONFIG = CHECKPOINT.config
LAYERS = CONFIG.num_hidden_layers
LOGITS, BLOCKS = frozenset({"logits"}), frozenset({"layers.output", "logits"})


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Few:
    """A subject that shows taps of some kinds alone."""

    can_force = False

    def __init__(self, whole: TorchReference, kinds: frozenset[str]) -> None:
        self.whole, self.kinds, self.name, self.dtype = whole, kinds, whole.name, whole.dtype
        self.internal_dtype = whole.internal_dtype
        self.absent = frozenset(AXES) - kinds

    def start(self, inputs: Inputs) -> FewRun:
        return FewRun(self.whole.start(inputs), self.kinds)


class FewRun:
    def __init__(self, run: Any, kinds: frozenset[str]) -> None:
        self.run, self.kinds = run, kinds

    def step(self, force: Mapping[str, np.ndarray] | None = None) -> Arrays:
        return {n: v for n, v in self.run.step().items() if split_name(n)[0] in self.kinds}


def inputs() -> list[Inputs]:
    def encode(text: str) -> list[int]:
        return list(text.encode())

    lengths = {"left_padded": 11, "causal": 13}
    return [scenario(name, encode, CONFIG, length=n) for name, n in lengths.items()]


def explained(whole: TorchReference, kinds: frozenset[str], seconds: float = 120.0) -> CauseReport:
    first, *_ = batches = inputs()
    recording = record(Few(whole, kinds), first, None, LAYERS)
    others = record_elsewhere(recording, batches, CONFIG, decode_chunks)
    found = diagnose(recording, CHECKPOINT, elsewhere=others, seconds=seconds)
    assert found is not None
    return found


def test_other_scenarios_together_take_no_more_room_than_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, *_ = batches = [*inputs(), replace(inputs()[1], name="another")]
    recording = record(TorchReference(CHECKPOINT), first, None, LAYERS)

    def recorded() -> list[Recording]:
        found = record_elsewhere(recording, batches, CONFIG, decode_chunks)
        return [*found.recordings, *found.probes]

    def kept(recordings: list[Recording]) -> int:
        return sum(
            tap.nbytes for one in recordings for stage in one.stages for tap in stage.values()
        )

    whole = recorded()
    assert [one.inputs.tokens.shape[1] for one in whole] == [13, 13, 11, 11]
    monkeypatch.setattr(elsewhere, "MOST_BYTES", kept(whole) * 9 // 10)
    cut = recorded()
    assert len(cut) == 4 and kept(cut) <= elsewhere.MOST_BYTES


def configured(**fields: Any) -> TorchReference:
    return TorchReference(CHECKPOINT, config=CONFIG.replace(**fields))


class Tiled(TorchReference):
    def kv_head_of_query(self) -> Tensor:
        return torch.arange(CONFIG.num_attention_heads) % CONFIG.num_key_value_heads


class Swapped(TorchReference):
    def weight(self, name: str) -> Tensor:
        other = {"gate_proj": "up_proj", "up_proj": "gate_proj"}
        for module, instead in other.items() if "layers.1.mlp" in name else ():
            if module in name:
                return super().weight(name.replace(module, instead))
        return super().weight(name)


class Bfloat16(TorchReference):
    def weight(self, name: str) -> Tensor:
        weight = super().weight(name)
        return weight.bfloat16().to(weight.dtype)


assert CONFIG.rope_scaling is not None
FAULTS: dict[str, tuple[Callable[[], TorchReference], set[str], str]] = {
    "theta 1e4": (lambda: configured(rope_theta=1e4), {"rope-theta"}, "theta 10000"),
    "theta 1e6": (lambda: configured(rope_theta=1e6), {"rope-theta"}, "theta 1e+06"),
    "no scaling": (lambda: configured(rope_scaling=None), {"rope-scaling"}, "none"),
    "factor 32": (
        lambda: configured(rope_scaling=replace(CONFIG.rope_scaling, factor=32.0)),  # type: ignore[type-var]
        {"rope-scaling"},
        "factor is 32 in place of 8",
    ),
    "eps 1e-6": (lambda: configured(rms_norm_eps=1e-6), {"norm-eps"}, "eps 1e-06"),
    "tiled": (lambda: Tiled(CHECKPOINT), {"kv-head-map"}, "kv_heads is 2 by 3 transposed"),
    "swapped": (lambda: Swapped(CHECKPOINT), {"weight-swapped"}, "mlp.up_proj"),
    "bfloat16": (lambda: Bfloat16(CHECKPOINT), {"weight-rounded"}, "bfloat16"),
    "theta 1e6, no scaling": (
        lambda: configured(rope_theta=1e6, rope_scaling=None),
        {"rope-theta", "rope-scaling"},
        "theta 1e+06",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_logits_alone_tell_the_cause(fault: str) -> None:
    make, causes, effective = FAULTS[fault]
    found = explained(make(), LOGITS)
    assert found.confirmed
    assert {found.id, *(other.id for other in found.others)} == causes
    assert effective in found.effective


@pytest.mark.parametrize("fault", ["theta 1e4", "no scaling", "eps 1e-6", "tiled"])
def test_outputs_of_blocks_tell_the_cause(fault: str) -> None:
    make, causes, effective = FAULTS[fault]
    found = explained(make(), BLOCKS)
    assert found.confirmed and found.id in causes and effective in found.effective


class Doubled(TorchReference):
    """Values doubled: before o_proj or after it, outputs of blocks cannot tell."""

    def linear(self, x: Tensor, name: str) -> Tensor:
        y = super().linear(x, name)
        return 2 * y if name.endswith("v_proj") else y


def test_what_no_shown_tap_tells_apart_is_said() -> None:
    found = explained(Doubled(CHECKPOINT), BLOCKS)
    assert found.confirmed
    (line,) = (line for line in found.evidence if "taps before it" in line)
    assert "another cause among them may come to the same; name " in line


class Chaotic(TorchReference):
    def linear(self, x: Tensor, name: str) -> Tensor:
        y = super().linear(x, name)
        return y + 0.1 * (37 * y.sin() + x.sum()).cos() if "up_proj" in name else y


def test_what_stays_unexplained_asks_for_taps() -> None:
    found = explained(Chaotic(CHECKPOINT), LOGITS, seconds=2.0)
    assert not found.confirmed
    (line,) = (line for line in found.evidence if "taps before it" in line)
    assert "name embed, layers.{i}.input," in line and "another cause" not in line


def hidden(shown: Sequence[str], tap: str) -> list[str]:
    return hidden_taps(tap, frozenset(shown), 2)


def test_hidden_taps_end_at_what_is_shown() -> None:
    assert hidden(["norm"], "logits") == []
    assert hidden(["layers.1.output"], "logits") == ["norm"]
    assert hidden(["layers.0.q_proj", "layers.0.k_proj"], "layers.0.attn_scores") == [
        "layers.0.q_rope",
        "layers.0.k_rope",
    ]
    whole = hidden([], "logits")
    assert whole[0] == "embed" and whole[-1] == "norm" and len(whole) == 2 + 2 * 18
    assert "layers.0.up_proj" not in hidden(["layers.0.output"], "layers.1.output")


def test_a_subject_that_shows_all_has_no_chain() -> None:
    (first, _) = inputs()
    recording = record(configured(rms_norm_eps=1e-6), first, None, LAYERS)
    found = compare_recording(recording, MutatedReference(CHECKPOINT), first)
    assert found.evidence is not None
    assert chain_of(recording, found.evidence) is None


@pytest.mark.parametrize("of", ["hidden_size", "num_attention_heads"])
def test_a_scale_of_another_dimension_is_named_where_no_scores_are_shown(of: str) -> None:
    """A fused attention shows neither scores nor weights, and is given its scale as a number."""
    scale = float(getattr(CHECKPOINT.config, of)) ** -0.5

    class Scaled(TorchReference):
        absent = frozenset({"layers.attn_scores", "layers.attn_probs"})
        can_force = False

        def scale(self) -> float:
            return scale

        def start(self, inputs: Any) -> Any:
            run = super().start(inputs)
            step = run.step
            hidden = ("attn_scores", "attn_probs")
            run.step = lambda *given: {  # type: ignore[method-assign]
                n: v for n, v in step(*given).items() if not n.endswith(hidden)
            }
            return run

    result = parity.run(
        CHECKPOINT,
        subject=lambda model, dtype: Scaled(CHECKPOINT),
        **{"dtypes": "f64", "scenarios": "causal", "length": 31, "modes": "free"},
    )
    assert result.cause is not None
    assert (result.cause.id, result.cause.confirmed) == ("score-scale", True)
    assert float(result.cause.effective) == pytest.approx(scale, rel=1e-5)
