"""Modules that are split and merged as they run: what shows by path, what is said of others."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import foreign_llamas as llamas
import jax
import numpy as np
import pytest
from flax import nnx
from foreign_subjects import CHECKPOINT, CONFIG, first, tunix
from witnesses import LAYERS

import parity
from jaxllama.errors import InputError
from parity.inputs import Inputs
from parity.result import Result
from parity.subjects import from_nnx
from parity.subjects.adapters.nnx import NNX

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:tunix")
LOST = ("layers.{i}.mlp.up_proj", "final_norm", "output")
SETTINGS: dict[str, Any] = {"scenarios": "packed", "length": 9, "modes": "free", "seconds": 0.1}


def run(subject: Any, **options: Any) -> Result:
    return parity.run(CHECKPOINT, subject=subject, **(SETTINGS | options))


@pytest.fixture(scope="module")
def plain() -> Iterator[Any]:
    """Return tunix's model, its theta mended."""
    rotate = llamas.tunix().apply_rope
    before, rotate.__defaults__ = rotate.__defaults__, (int(CONFIG.rope_theta),)
    yield llamas.tunix_model(CHECKPOINT)
    rotate.__defaults__ = before


@pytest.fixture
def rematerialised(plain: Any) -> Iterator[Any]:
    """Return it with every layer under `nnx.remat`, which it calls anew in each pass."""
    configs = {id(m.config): m.config for m in (plain, *plain.layers)}.values()
    before = [one.remat_config for one in configs]
    for one in configs:  # which are frozen
        object.__setattr__(one, "remat_config", llamas.tunix().RematConfig.DECODER)
    yield plain
    for one, was in zip(configs, before, strict=True):
        object.__setattr__(one, "remat_config", was)


def merged(model: Any, inputs: Inputs) -> Any:
    """Run a copy of a model over the same arrays."""
    return llamas.tunix_call(nnx.merge(*nnx.split(model)), inputs)


def test_a_copy_over_the_same_arrays_shows_by_path(plain: Any) -> None:
    result = run(from_nnx(plain, names=llamas.TUNIX_NAMES, call=merged, config=CONFIG))
    assert result.verdict == "equal" and not result.unmatched
    few: dict[str, Any] = {place: llamas.TUNIX_NAMES[place] for place in LOST}
    parameters = {"final_norm.w": "model.norm.weight"}
    subject = from_nnx(plain, names=few, call=merged, config=CONFIG, parameters=parameters)
    result = run(subject, modes="grad")
    assert result.verdict == "equal" and not result.unmatched
    assert "grad.layers.2.up_proj" in {row.tap for row in result.rows}


def test_remat_is_left_out_of_what_is_watched(rematerialised: Any) -> None:
    seen = jax.checkpoint
    result = run(tunix(rematerialised, llamas.TUNIX_NAMES), modes="free,isolated")
    assert result.verdict == "equal" and not result.unmatched
    assert jax.checkpoint is seen
    weight = rematerialised.layers[1].mlp.up_proj.kernel
    right = weight[...]
    weight[...] = right.at[3, 5].mul(-2)
    try:
        broken = run(tunix(rematerialised, llamas.TUNIX_NAMES))
    finally:
        weight[...] = right
    assert first(broken).row.tap == "layers.1.up_proj"


def test_what_is_not_left_out_hides_what_runs_in_it(
    rematerialised: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NNX, "transparent", ())
    names = {place: llamas.TUNIX_NAMES[place] for place in LOST}
    result = run(tunix(rematerialised, names))
    assert result.verdict == "inconclusive" and "layers.2.up_proj" in result.unmatched


def copied(model: Any, inputs: Inputs) -> Any:
    """Run a copy of a model over other arrays, as a transformation makes it."""
    graph, state = nnx.split(model)
    return llamas.tunix_call(nnx.merge(graph, jax.tree.map(lambda x: x + 0, state)), inputs)


def lost(model: Any) -> Any:
    names = {place: llamas.TUNIX_NAMES[place] for place in LOST}
    return from_nnx(model, names=names, call=copied, config=CONFIG)


def test_names_that_never_showed_are_said(plain: Any) -> None:
    result = run(lost(plain))
    assert result.verdict == "inconclusive"
    (said,) = [note for note in result.notes if note.startswith("names that never showed")]
    assert "layers.{i}.mlp.up_proj (layers.{i}.up_proj), final_norm (norm): " in said
    assert "output (" not in said and "name its class's method" in said
    whole = run(tunix(plain, llamas.TUNIX_NAMES))
    assert not any("never showed" in note for note in whole.notes)


def test_a_capture_says_them_too(plain: Any, tmp_path: Path) -> None:
    told: list[str] = []
    capture = partial(parity.capture, CHECKPOINT, scenarios="packed", length=9)
    capture(tmp_path / "a", subject=lost(plain), warn=told.append)
    assert len(told) == 1 and "final_norm (norm)" in told[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # tunix's, given out again at the end
        with pytest.warns(UserWarning, match="names that never showed"):
            capture(tmp_path / "b", subject=lost(plain))
    capture(tmp_path / "c", subject=tunix(plain, llamas.TUNIX_NAMES), warn=told.append)
    assert len(told) == 1


def test_the_remedy_shows_them(plain: Any) -> None:
    names: dict[str, Any] = {
        "tunix.models.llama3.model.MLP.__call__()": "layers.{i}.down_proj",
        "output": llamas.TUNIX_NAMES["output"],
    }
    result = run(from_nnx(plain, names=names, call=copied, config=CONFIG))
    assert result.verdict == "equal" and result.compared == LAYERS + 1

    def compiled(model: Any, inputs: Inputs) -> Any:
        return nnx.jit(lambda model: copied(model, inputs))(model)

    with pytest.raises(InputError, match="inside a JAX transformation"):
        run(from_nnx(plain, names=names, call=compiled, config=CONFIG))

    def step_by_step(model: Any, inputs: Inputs) -> Any:
        with jax.disable_jit():
            return compiled(model, inputs)

    result = run(from_nnx(plain, names=names, call=step_by_step, config=CONFIG))
    assert result.verdict == "equal" and result.compared == LAYERS + 1


def test_copies_that_could_be_either_are_not_guessed(plain: Any) -> None:
    kernels = [plain.layers[i].mlp.up_proj.kernel for i in range(2)]
    right = kernels[1][...]
    assert not np.array_equal(kernels[0][...], right)
    kernels[1][...] = kernels[0][...]
    assert kernels[1][...] is kernels[0][...]
    try:
        names = {place: llamas.TUNIX_NAMES[place] for place in LOST}
        result = run(from_nnx(plain, names=names, call=merged, config=CONFIG))
    finally:
        kernels[1][...] = right
    assert {"layers.0.up_proj", "layers.1.up_proj"} <= set(result.unmatched)
