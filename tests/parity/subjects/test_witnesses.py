"""What all torch-side subjects have in common: stages, names, shapes, forcing, caches, truth."""

from __future__ import annotations

import dataclasses
import gc
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from witnesses import (
    GQA,
    LAYERS,
    LINEAR,
    LLAMA3,
    MHA,
    MQA,
    changed,
    first_apart,
    gaps,
    inputs_for,
    live,
    small,
    steps,
    swap,
    whole,
    worst,
)

from jaxllama.errors import InputError
from parity.scenarios import SCENARIOS
from parity.subjects.base import CachedSubject, stage_taps
from parity.subjects.hf.subject import HFLlama
from parity.subjects.meta.subject import MetaLlama
from parity.subjects.torch_reference.subject import TorchReference
from parity.taps import AXES, expected_names, split_name

WITNESSES: list[Callable[..., Any]] = [TorchReference, HFLlama, MetaLlama]
# Float32 inside, whatever the dtype. Beyond position 8192 an angle itself is off by 2^-11.
FLOAT32_NOISE = 1e-5
LONG_ANGLE_NOISE = 2e-3

every_witness = pytest.mark.parametrize("witness", WITNESSES)


@every_witness
def test_stages_names_and_shapes_are_canonical(witness: Callable[..., Any]) -> None:
    checkpoint = small()
    c = checkpoint.config
    inputs = inputs_for(checkpoint, "right_padded")
    B, T = inputs.tokens.shape
    N, K, H = c.num_attention_heads, c.num_key_value_heads, c.head_dim
    sizes = {"B": B, "T": T, "S": T, "N": N, "K": K, "H": H, "R": H // 2, "V": c.vocab_size}
    sizes |= {"D": c.hidden_size, "F": c.intermediate_size}
    run = witness(checkpoint, dtype="bf16").start(inputs)
    names = []
    for stage in range(LAYERS + 2):
        taps = run.step()
        assert tuple(taps) == stage_taps(stage, LAYERS)
        for name, array in taps.items():
            axes = AXES[split_name(name)[0]]
            assert array.shape == tuple(sizes[axis] for axis in axes), name
        names += taps
    assert names == expected_names(LAYERS)
    with pytest.raises(RuntimeError, match="over"):
        run.step()


@pytest.mark.parametrize("heads", [MHA, MQA, GQA])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("scaling", [None, LINEAR, LLAMA3])
def test_hf_agrees_with_the_reference(heads: tuple[int, int], tied: bool, scaling: Any) -> None:
    checkpoint = small(heads, tied=tied, scaling=scaling, intermediate_size=44)
    reference, hf = TorchReference(checkpoint), HFLlama(checkpoint, dtype="f64")
    for name in ("left_padded", "right_padded"):
        inputs = inputs_for(checkpoint, name)
        assert worst(whole(reference, inputs), whole(hf, inputs), inputs) < FLOAT32_NOISE


@pytest.mark.parametrize("heads", [MHA, MQA, GQA])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("scaling", [None, LLAMA3])
def test_meta_agrees_with_the_reference(heads: tuple[int, int], tied: bool, scaling: Any) -> None:
    checkpoint = small(heads, tied=tied, scaling=scaling, intermediate_size=44)
    reference, meta = TorchReference(checkpoint), MetaLlama(checkpoint, dtype="f64")
    for name in ("left_padded", "right_padded"):
        inputs = inputs_for(checkpoint, name)
        assert worst(whole(reference, inputs), whole(meta, inputs), inputs) < FLOAT32_NOISE


@pytest.mark.parametrize("witness", [HFLlama, MetaLlama])
@pytest.mark.parametrize("name", SCENARIOS)
def test_every_scenario_is_understood(witness: Callable[..., Any], name: str) -> None:
    checkpoint = small()
    inputs = inputs_for(checkpoint, name, None)
    reference = whole(TorchReference(checkpoint), inputs)
    limit = LONG_ANGLE_NOISE if name == "long_positions" else FLOAT32_NOISE
    assert worst(reference, whole(witness(checkpoint, dtype="f64"), inputs), inputs) < limit


@pytest.mark.parametrize("witness", [HFLlama, MetaLlama])
def test_a_window_one_key_wider_is_seen(witness: Callable[..., Any]) -> None:
    checkpoint = small()
    inputs = inputs_for(checkpoint, "windowed")
    distance = np.subtract.outer(np.arange(23), np.arange(23))
    wider = dataclasses.replace(inputs, mask=inputs.mask | (distance == inputs.window))
    reference = whole(TorchReference(checkpoint), inputs)
    other = whole(witness(checkpoint, dtype="f64"), wider)
    assert first_apart(reference, other, inputs, FLOAT32_NOISE) == "mask"
    assert gaps(reference, other, inputs)["layers.0.attn_scores"] < FLOAT32_NOISE
    assert gaps(reference, other, inputs)["layers.0.attn_probs"] > 100 * FLOAT32_NOISE


@pytest.mark.parametrize("witness", [HFLlama, MetaLlama])
def test_swapped_weights_are_seen(witness: Callable[..., Any]) -> None:
    checkpoint = small()
    inputs = inputs_for(checkpoint, "causal")
    name = "model.layers.1.mlp.{}_proj.weight"
    wrong = changed(checkpoint, swap(name.format("gate"), name.format("up")))
    reference = whole(TorchReference(checkpoint), inputs)
    other = whole(witness(wrong, dtype="f64"), inputs)
    assert first_apart(reference, other, inputs, FLOAT32_NOISE) == "layers.1.gate_proj"


@every_witness
@pytest.mark.parametrize("name", ["left_padded", "causal"])
def test_forced_values_replace_every_operators_inputs(
    witness: Callable[..., Any], name: str
) -> None:
    checkpoint = small()
    subject = witness(checkpoint, dtype="f32")
    inputs = inputs_for(checkpoint, name)
    # The same positions and mask over other tokens: forced to their values, the run shows them.
    last = checkpoint.config.vocab_size - 1
    tokens = np.where(inputs.valid, last - inputs.tokens, inputs.tokens)
    other = dataclasses.replace(inputs, tokens=tokens)
    own, wanted = whole(subject, inputs), subject.start(other)
    run = subject.start(inputs)
    for stage in range(LAYERS + 2):
        force = wanted.step()
        taps = run.step(force)
        for tap, value in taps.items():
            as_computed = own[tap] if tap in ("embed", "mask", "positions") else force[tap]
            mine, theirs = live(tap, value, inputs), live(tap, as_computed, inputs)
            np.testing.assert_array_equal(mine, theirs, err_msg=f"stage {stage}: {tap}")
    assert (own["logits"] != taps["logits"]).any()


@every_witness
def test_one_forced_tap_changes_just_what_follows(witness: Callable[..., Any]) -> None:
    checkpoint = small()
    inputs = inputs_for(checkpoint, "causal")
    subject = witness(checkpoint, dtype="f32")
    own, run = whole(subject, inputs), subject.start(inputs)
    run.step()
    for tap, follows in (
        ("q_rope", "attn_scores"),
        ("k_rope", "attn_scores"),
        ("up_proj", "mlp_act"),
    ):
        run = subject.start(inputs)
        run.step()
        taps = run.step({f"layers.0.{tap}": np.zeros_like(own[f"layers.0.{tap}"])})
        apart = [name for name, value in taps.items() if (value != own[name]).any()]
        assert apart[0] == f"layers.0.{follows}"
        assert not taps[apart[0]].any()


@every_witness
@pytest.mark.parametrize("name", SCENARIOS)
def test_decoding_through_the_cache_equals_one_pass(witness: Callable[..., Any], name: str) -> None:
    checkpoint = small()
    inputs = inputs_for(checkpoint, name)
    subject: CachedSubject = witness(checkpoint, dtype="f64")
    once = whole(subject, inputs)
    chunks = [9, 1, 5, 1, 1, 6]
    run, start = subject.start_decode(inputs, chunks), 0
    for chunk in chunks:
        taps, stop = steps(run), start + chunk
        cached = {f"cache.{i}.{kv}" for i in range(LAYERS) for kv in "kv"}
        assert {name for name in taps if name.startswith("cache")} == cached
        for tap, value in taps.items():
            source, first = tap, start
            if tap in cached:
                _, i, kv = tap.split(".")
                source, first = f"layers.{i}.{'k_rope' if kv == 'k' else 'v_proj'}", 0
            expected = once[source] if source == "rope.inv_freq" else once[source][:, first:stop]
            if "attn_scores" in tap or "attn_probs" in tap:
                expected = once[source][:, :, start:stop, :stop]
            elif tap == "mask":
                expected = once[source][:, start:stop, :stop]
            mine, theirs = live(tap, value, inputs, start), live(tap, expected, inputs, start)
            limit = 1e-12 if witness is TorchReference else FLOAT32_NOISE
            np.testing.assert_allclose(mine, theirs, rtol=limit, atol=limit * 10, err_msg=tap)
        start = stop
    with pytest.raises(RuntimeError, match="over"):
        run.step()


@every_witness
@pytest.mark.parametrize("chunks", [[9, 9], [23, 0], [-1, 24]])
def test_chunks_that_do_not_add_up_are_refused(
    witness: Callable[..., Any], chunks: list[int]
) -> None:
    checkpoint = small()
    with pytest.raises(InputError, match="the inputs' 23 columns"):
        witness(checkpoint, dtype="f32").start_decode(inputs_for(checkpoint, "causal"), chunks)


@every_witness
def test_runs_of_one_subject_do_not_mix(witness: Callable[..., Any]) -> None:
    checkpoint = small()
    subject = witness(checkpoint, dtype="f32")
    inputs = [inputs_for(checkpoint, name) for name in ("left_padded", "packed")]
    apart = [whole(subject, one) for one in inputs]
    runs = [subject.start(one) for one in inputs]
    decode = subject.start_decode(inputs[0], [23])
    together: list[dict[str, np.ndarray]] = [{}, {}]
    for _ in range(LAYERS + 2):
        decode.step()
        for taps, run in zip(together, runs, strict=True):
            taps |= run.step()
    for one, a, b in zip(inputs, apart, together, strict=True):
        assert worst(a, b, one) == 0


@every_witness
def test_only_one_stage_is_alive(witness: Callable[..., Any]) -> None:
    checkpoint = small()
    run = witness(checkpoint, dtype="f32").start(inputs_for(checkpoint, "causal", 29))
    shape = (1, checkpoint.config.num_attention_heads, 29, 29)

    def alive() -> int:
        return sum(type(x) is torch.Tensor and x.shape == shape for x in gc.get_objects())

    steps(run, LAYERS - 1)
    taps = run.step()
    array = weakref.ref(taps[f"layers.{LAYERS - 2}.attn_scores"])
    assert array().shape == shape
    assert alive() >= (0 if witness is MetaLlama else 2)  # it copies rows together
    del taps
    assert array() is None
    assert alive() == 0


def test_an_abandoned_run_stops_its_thread() -> None:
    checkpoint = small()
    subject = HFLlama(checkpoint, dtype="f32")

    def alive() -> list[threading.Thread]:
        return [t for t in threading.enumerate() if t.name == "parity-witness"]

    dropped = subject.start(inputs_for(checkpoint, "causal"))
    closed = subject.start(inputs_for(checkpoint, "causal"))
    dropped.step()
    closed.step()
    assert len(alive()) == 2
    closed.close()
    assert len(alive()) == 1
    del dropped
    deadline = time.monotonic() + 10
    while alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not alive()
    with pytest.raises(RuntimeError, match="over"):
        closed.step()
    assert "logits" in whole(subject, inputs_for(checkpoint, "causal"))


def test_what_goes_wrong_in_a_run_is_raised_by_its_step() -> None:
    checkpoint = small()
    inputs = inputs_for(checkpoint, "causal")
    wrong = dataclasses.replace(inputs, tokens=inputs.tokens + checkpoint.config.vocab_size)
    run = HFLlama(checkpoint, dtype="f32").start(wrong)
    with pytest.raises(IndexError):
        run.step()
    with pytest.raises(RuntimeError, match="over"):
        run.step()
