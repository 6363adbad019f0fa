"""The forms of a model: the same weights, names and numbers in each."""

from __future__ import annotations

from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from small_llama import CONFIG, random_weights

import parity
from jaxllama import Llama
from jaxllama.checkpoint import Checkpoint, from_model, in_memory, tiny
from jaxllama.errors import InputError
from jaxllama.forms import Form, checked_form, parts_of, usual_form
from jaxllama.masks import Tokens, causal
from jaxllama.taps import Taps

FORMS: tuple[Form, ...] = get_args(Form)
CHECKPOINT = in_memory(CONFIG, random_weights(CONFIG))
IDS = np.random.default_rng(1).integers(0, CONFIG.vocab_size, (2, 7))


def built(form: Form, source: Checkpoint = CHECKPOINT) -> Llama:
    return Llama.from_pretrained(source, dtype="float64", form=form)


def recorded(model: Llama) -> dict[str, np.ndarray]:
    """Return all taps of one pass, in float64."""
    tokens = Tokens.contiguous(jnp.array([7, 5]), 7)
    taps = Taps()
    mask = causal().bind(tokens, tokens)
    model(jnp.asarray(IDS), positions=jnp.asarray(tokens.positions), mask=mask, tap=taps)
    return {name: np.asarray(value) for name, value in taps.recorded().items()}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_holds_every_tensor_and_gives_it_back(form: Form) -> None:
    model = built(form)
    state = nnx.to_flat_state(nnx.state(model, nnx.Param))
    # Nothing is held twice: the arrays have as many numbers as the checkpoint.
    numbers = sum(int(np.prod(info.shape)) for info in CHECKPOINT.tensors.values())
    assert sum(value[...].size for _, value in state) == numbers
    made = from_model(model)
    assert list(made.tensors) == list(from_model(built("stacked")).tensors)
    for name, info in CHECKPOINT.tensors.items():
        assert made.tensors[name].shape == info.shape
        np.testing.assert_array_equal(made.read(name), CHECKPOINT.read(name))


def test_forms_show_the_same_under_the_same_names() -> None:
    stacked, unrolled, fused = (recorded(built(form)) for form in FORMS)
    assert list(stacked) == list(unrolled) == list(fused)
    for name, value in stacked.items():
        np.testing.assert_allclose(unrolled[name], value, atol=1e-12, err_msg=name)
        np.testing.assert_allclose(fused[name], value, atol=1e-12, err_msg=name)
    # Negative control: a layer in another's place shows.
    swapped = built("fused")
    swapped.layers[0], swapped.layers[1] = swapped.layers[1], swapped.layers[0]
    assert abs(recorded(swapped)["logits"] - stacked["logits"]).max() > 1e-3


@pytest.mark.parametrize("form", FORMS)
def test_forms_are_equal_to_pytorch_in_every_mode(form: Form) -> None:
    result = parity.run(
        tiny(num_hidden_layers=2, hidden_size=90),
        subject=form,
        dtypes="f64",
        scenarios="left_padded",
        modes="free,decode,grad",
        length=61,
    )
    assert result.verdict == "equal"
    assert f"subject='{form}'" in result.command


def test_one_layer_is_the_same_in_every_form() -> None:
    x = jnp.asarray(np.random.default_rng(2).standard_normal((1, 3, CONFIG.hidden_size)))
    cos_sin = (jnp.ones((1, 3, CONFIG.head_dim // 2)), jnp.zeros((1, 3, CONFIG.head_dim // 2)))
    mask = jnp.ones((1, 3, 3), bool)
    out = [np.asarray(built(form).layer(2)(x, cos_sin, mask)[0]) for form in FORMS]
    np.testing.assert_allclose(out[1], out[0], atol=1e-12)
    np.testing.assert_allclose(out[2], out[0], atol=1e-12)
    assert abs(np.asarray(built("fused").layer(1)(x, cos_sin, mask)[0]) - out[0]).max() > 1e-3
    for form in FORMS:
        with pytest.raises(InputError, match="layer 4: expected 0 to 3"):
            built(form).layer(4)
    with pytest.raises(InputError, match=r'traced.*form="stacked"'):
        jax.jit(lambda index: built("fused").layer(index)(x, cos_sin, mask)[0])(1)


def test_gradients_of_fused_arrays_are_told_apart_by_name() -> None:
    shapes = {}
    for form in FORMS:
        state = nnx.to_flat_state(nnx.state(built(form), nnx.Param))
        for path, value in state:
            for part in parts_of(path, CONFIG):
                shape = np.asarray(value[...])[part.index].shape
                shapes.setdefault((part.path, part.layer), []).append(shape)
    assert len(shapes) == len(CHECKPOINT.tensors)
    assert all(len(found) == 3 and len(set(found)) == 1 for found in shapes.values())


def test_the_form_that_runs_is_decided_by_depth_and_backend(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def usual(platform: str, layers: int) -> Form:
        monkeypatch.setattr(jax, "default_backend", lambda: platform)
        return usual_form(CONFIG.replace(num_hidden_layers=layers))

    found = [usual("cpu", 30), usual("cpu", 200), usual("gpu", 30), usual("tpu", 2)]
    assert found == ["fused", "stacked", "stacked", "stacked"]
    monkeypatch.undo()
    assert Llama.from_pretrained(CHECKPOINT).form == usual_form(CONFIG)


def test_an_unknown_form_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="form 'flat': expected one of stacked, unrolled, fused"):
        checked_form("flat", CONFIG)
    with pytest.raises(InputError, match=r"flat.*stacked, unrolled, fused"):
        parity.run(CHECKPOINT, subject="flat")
