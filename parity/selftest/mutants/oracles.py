"""What a mutant does, found without the checker: the same code with and without it, side by side.

Shapes: B batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import jax
import numpy as np

from jaxllama.checkpoint import Checkpoint, tiny
from jaxllama.config import RopeScaling
from parity.inputs import Inputs, batch_alike, decode_chunks, join_inputs
from parity.scenarios import SCENARIOS, scenario
from parity.subjects import select
from parity.subjects.base import Arrays, Subject, require_decoding
from parity.subjects.jaxllama.subject import JaxLlama
from parity.taps import SETUP_TAPS, in_flow_order

# The length of the default run's inputs.
LENGTH = 61
# Fresh inputs with their lengths: from 48 on attention is in blocks.
FRESH = {"left_padded": 23, "packed": 53, "mixed_lengths": 23, "windowed": 53}
LANES = ("f64", "f32")
MODES = ("free", "decode")
# Forms differ in angles, heads and weights, which masks know nothing of: these inputs do for all
# but the default, and float64 for all whose angles are not scaled in a way of their own.
FEW = ("left_padded", "packed")
IN_ALL_LANES = ("llama3", "linear")
# Two computations of one thing differ by less, of two by more.
SAME = {"f64": 1e-9, "f32": 2e-4}

# Taps by scenario, mode, lane; names carry the call's number: `2.layers.0.q_proj`.
Shown = dict[str, np.ndarray]


def micro(**changes: Any) -> Checkpoint:
    """Return a model of two layers, all of whose dimensions are distinct."""
    sizes: dict[str, Any] = {
        "num_hidden_layers": 2,
        "hidden_size": 36,
        "intermediate_size": 50,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "head_dim": 10,
    }
    return tiny(seed=11, **(sizes | changes))


# The form of the default run's model.
DEFAULT = "llama3"


@cache
def checkpoints() -> dict[str, Checkpoint]:
    """Return models of all forms, by name."""
    linear = RopeScaling(kind="linear", factor=2.5)
    return {
        DEFAULT: micro(),
        "linear": micro(rope_scaling=linear, rms_norm_eps=1e-6),
        "plain": micro(rope_scaling=None, rope_theta=1e4),
        "tied": micro(tie_word_embeddings=True),
        "mqa": micro(num_key_value_heads=1),
        "mha": micro(num_key_value_heads=6, num_hidden_layers=3),
    }


def default_checkpoint() -> Checkpoint:
    """Return the model of the default run."""
    return checkpoints()[DEFAULT]


def default_inputs(checkpoint: Checkpoint) -> list[Inputs]:
    """Return what the default run is given, joined into batches as it joins them."""
    encode = checkpoint.tokenizer().encode
    made = [scenario(n, encode, checkpoint.config, length=LENGTH) for n in SCENARIOS]
    return [join_inputs(group) for group in batch_alike(made)]


def fresh_inputs(checkpoint: Checkpoint) -> list[Inputs]:
    """Return inputs that the default run is not given: other tokens, lengths, masks, positions."""
    encode = checkpoint.tokenizer().encode
    found = []
    for name, length in FRESH.items():
        made = scenario(name, encode, checkpoint.config, length=length)
        tokens = np.where(made.valid, (made.tokens * 7 + 13) % 251, made.tokens)
        found.append(replace(made, tokens=tokens.astype(made.tokens.dtype)))
    return found


def subject_of(checkpoint: Checkpoint, lane: str) -> JaxLlama:
    """Return the model under judgement, as `parity run` makes it."""
    resolved = select.resolve_subject("jaxllama")
    made = select.subject_factory(resolved, checkpoint, checkpoint.config)(lane)
    assert isinstance(made, JaxLlama)
    return made


def chunks_of(inputs: Inputs, mode: str) -> list[int] | None:
    """Return the sizes of a run's calls; None without a cache."""
    return decode_chunks(inputs) if mode == "decode" else None


def show(subject: Subject, inputs: Inputs, mode: str, layers: int) -> Shown:
    """Return all that a subject shows of one pass."""
    chunks = chunks_of(inputs, mode)
    if chunks is None:
        run = subject.start(inputs)
    else:
        run = require_decoding(subject).start_decode(inputs, chunks)
    return named_by_call([run.step() for _ in range(len(chunks or [0]) * (layers + 2))], layers)


def named_by_call(stages: Sequence[Arrays], layers: int) -> Shown:
    """Return what all stages of a pass show, call by call."""
    return {
        f"{number // (layers + 2)}.{name}": np.array(value, np.float64)
        for number, stage in enumerate(stages)
        for name, value in stage.items()
    }


def first_difference(
    one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray], same: float
) -> tuple[str, int] | None:
    """Return the first tap, and its call, in which two passes differ; None if in none.

    What a call sets up counts only where nothing that is computed of it differs.
    """
    setup = None
    for call in sorted({int(name.split(".", 1)[0]) for name in {*one, *other}}):
        names = {name.split(".", 1)[1] for name in {*one, *other} if name.startswith(f"{call}.")}
        for name in in_flow_order(names):
            if differs(one.get(f"{call}.{name}"), other.get(f"{call}.{name}"), same):
                if name not in SETUP_TAPS:
                    return name, call
                setup = setup or (name, call)
    return setup


def differs(one: np.ndarray | None, other: np.ndarray | None, same: float) -> bool:
    """Return whether two arrays are not the same computation's."""
    if one is None or other is None:  # what is shown is no part of what is computed
        return False
    if one.shape != other.shape:
        return True
    finite = np.isfinite(one)
    if not np.array_equal(finite, np.isfinite(other)):
        return True
    size = np.abs(np.where(finite, one, 0)).max(initial=0)
    gap = np.abs(np.where(finite, one, 0) - np.where(finite, other, 0)).max(initial=0)
    return bool(gap > same * max(size, 1e-30))


def shown_by(
    checkpoint: Checkpoint, inputs: Sequence[Inputs], lanes: Sequence[str] = LANES
) -> dict[tuple[str, str, str], Shown]:
    """Return what the model shows of some inputs, in every mode and dtype."""
    layers = checkpoint.config.num_hidden_layers
    found = {}
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        for lane in lanes:
            subject = subject_of(checkpoint, lane)
            for one in inputs:
                for mode in MODES:
                    found[one.name, mode, lane] = show(subject, one, mode, layers)
                whole = show(subject.production(), one, "free", layers)
                found[one.name, "production", lane] = whole
    return found


def each_form() -> Iterator[tuple[str, dict[tuple[str, str, str], Shown]]]:
    """Yield what the model shows of fresh inputs, form by form."""
    for name, checkpoint in checkpoints().items():
        inputs = fresh_inputs(checkpoint)
        if name != DEFAULT:
            inputs = [one for one in inputs if one.name in FEW]
        yield name, shown_by(checkpoint, inputs, LANES if name in IN_ALL_LANES else LANES[:1])
