"""Models not written here, backwards."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import foreign_llamas as llamas
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from foreign_subjects import CHECKPOINT, CONFIG, first, hf, tunix
from witnesses import LAYERS, inputs_for, small, steps

import parity
from jaxllama import masks
from jaxllama.checkpoint import load_model
from jaxllama.errors import InputError
from parity.inputs import Inputs
from parity.result import Result
from parity.subjects import Tap, from_callable, from_nnx, from_torch
from parity.subjects.adapters.layouts import PARAMETERS
from parity.subjects.adapters.names import parameters_of
from parity.subjects.base import Subject
from parity.subjects.jaxllama.run import tokens_of
from parity.subjects.torch_reference.subject import TorchReference
from parity.taps import GRAD_TAPS, PARAMETER_GRADIENTS, gradient_names

# What tunix uses of JAX and Flax is older than what is installed.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:tunix")

LOGITS = {"output": "logits"}
LOGITS_OF_HF = {"lm_head": "logits"}


def differentiated(subject: Subject, **options: Any) -> Result:
    settings: dict[str, Any] = {"length": 11, "modes": "grad"}
    return parity.run(CHECKPOINT, subject=subject, **(settings | options))


def test_transformers_gradients_are_equal(torch_model: Any) -> None:
    result = differentiated(hf(torch_model, parameters=llamas.HF_PARAMETERS))
    assert result.verdict == "equal"
    assert result.compared == result.expected and not result.absent


def test_tunix_gradients_are_equal(jax_model: Any) -> None:
    result = differentiated(tunix(jax_model, parameters=llamas.TUNIX_PARAMETERS))
    assert result.verdict == "equal"
    assert result.compared == result.expected and not result.absent


def test_a_hook_that_scales_one_gradient_is_located_and_named(torch_model: Any) -> None:
    weight = torch_model.model.layers[1].mlp.up_proj.weight
    hook = weight.register_hook(lambda gradient: gradient * 1.01)
    try:
        result = differentiated(hf(torch_model, parameters=llamas.HF_PARAMETERS))
    finally:
        hook.remove()
    assert first(result).row.tap == "grad.model.layers.1.mlp.up_proj.weight"
    assert first(result).kind == "backward"
    assert result.cause is not None
    assert result.cause.id == "gradient-scaled" and result.cause.confirmed


def test_a_gradient_that_is_stopped_is_located_and_named(
    jax_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Detached(llamas.tunix().Einsum):  # type: ignore[misc, name-defined]
        def __call__(self, x: Any) -> Any:
            return jax.lax.stop_gradient(super().__call__(x))

    monkeypatch.setattr(jax_model.layers[1].attn.k_proj, "__class__", Detached)
    result = differentiated(tunix(jax_model, parameters=llamas.TUNIX_PARAMETERS))
    assert first(result).row.tap == "grad.model.layers.1.self_attn.k_proj.weight"
    assert result.cause is not None
    assert result.cause.id == "gradient-stopped" and result.cause.confirmed


def test_a_residual_stream_used_again_counts_in_full(jax_model: Any) -> None:
    """What goes into a norm also goes past it: both are in the gradient of the stream."""
    names = llamas.TUNIX_NAMES
    kept = {
        place: names[place] for place in ("layers.{i}.post_attention_layernorm:input", "output")
    }
    parameters = {"final_norm.w": "model.norm.weight"}
    result = differentiated(tunix(jax_model, kept, parameters=parameters))
    assert result.verdict == "equal"
    assert {row.tap for row in result.rows} == {
        "loss",
        "grad.logits",
        "grad.model.norm.weight",
        *(f"grad.layers.{i}.post_attention" for i in range(LAYERS)),
    }
    assert PARAMETER_GRADIENTS - set(result.absent) == {"grad.model.norm.weight"}


def test_a_loss_of_ones_own(torch_model: Any) -> None:
    def every_pair(result: Any, inputs: Inputs) -> Any:
        """Count pads, and where one document follows another."""
        tokens = torch.tensor(inputs.tokens[:, 1:], dtype=torch.int64)
        return torch.nn.functional.cross_entropy(result.logits[:, :-1].mT, tokens)

    options: dict[str, Any] = {"parameters": llamas.HF_PARAMETERS, "loss": every_pair}
    assert differentiated(hf(torch_model, **options), scenarios="causal").verdict == "equal"
    found = first(differentiated(hf(torch_model, **options)))
    assert (found.row.tap, found.kind) == ("loss", "loss")


def test_a_function_with_gradients() -> None:
    def forward(inputs: Inputs) -> dict[str, Any]:
        return {}

    def gradients(inputs: Inputs) -> dict[str, Any]:
        taps = steps(TorchReference(CHECKPOINT, dtype="f32").start_grad(inputs))
        ups = [taps[f"grad.model.layers.{i}.mlp.up_proj.weight"].T for i in range(LAYERS)]
        return {"loss": taps["loss"], "ups": np.stack(ups), "norm": taps["grad.model.norm.weight"]}

    options: dict[str, Any] = {
        "names": LOGITS,
        "config": CONFIG,
        "parameters": {
            "ups": Tap("model.layers.{i}.mlp.up_proj.weight", axes="LDF"),
            "norm": "model.norm.weight",
        },
    }
    result = differentiated(from_callable(forward, gradients=gradients, **options))
    assert result.verdict == "equal"
    assert result.compared == LAYERS + 2 and "grad.logits" in result.absent

    def wrong(inputs: Inputs) -> dict[str, Any]:
        shown = gradients(inputs)
        shown["ups"][1] *= 1.01
        return shown

    found = first(differentiated(from_callable(forward, gradients=wrong, **options)))
    assert found.row.tap == "grad.model.layers.1.mlp.up_proj.weight"

    def silent(inputs: Inputs) -> dict[str, Any]:
        return {"loss": gradients(inputs)["loss"], "ups": gradients(inputs)["ups"]}

    result = differentiated(from_callable(forward, gradients=silent, **options))
    assert result.verdict == "inconclusive"
    assert result.unmatched == ("grad.model.norm.weight",)
    with pytest.raises(InputError, match="go together"):
        from_callable(forward, gradients=gradients, names=LOGITS, config=CONFIG)


def test_layers_in_one_parameter_are_told_apart_by_an_axis() -> None:
    """Our own scanned model in somebody else's place: every weight has a leading axis of layers."""
    checkpoint = small(tied=True)
    model = load_model(checkpoint, dtype="float64")

    @jax.jit
    def forward(model: Any, ids: Any, tokens: Any) -> Any:
        mask = (masks.causal() & masks.padding() & masks.segments()).bind(tokens, tokens)
        return model(ids, positions=tokens.positions, mask=mask)[0]

    def call(model: Any, inputs: Inputs) -> Any:
        return forward(model, jnp.asarray(inputs.tokens), tokens_of(inputs, slice(None)))

    stacked = {
        name.removeprefix("model."): Tap(name.replace("layers.", "layers.{i}."), f"L{axes}")
        if "layers" in name
        else name
        for name, axes in PARAMETERS.items()
        if name != "lm_head.weight"
    }
    subject = from_nnx(
        model, names=LOGITS, call=call, config=checkpoint.config, dtype="f64", parameters=stacked
    )
    result = parity.run(checkpoint, subject=subject, modes="grad", length=11)
    assert result.verdict == "equal"
    assert max(row.error for row in result.rows) < 1e-11
    names = set(gradient_names(LAYERS, tied=True))
    weights = {name for name in names if name.endswith(".weight")}
    assert {row.tap for row in result.rows} == weights | {"loss", "grad.logits"}


def test_a_module_is_left_as_it_was(torch_model: Any, jax_model: Any) -> None:
    frozen, held = torch_model.model.norm.weight, torch_model.lm_head.weight
    frozen.requires_grad_(False)
    held.grad = torch.ones_like(held)
    before = nnx.to_pure_dict(nnx.state(jax_model))
    inputs = inputs_for(CHECKPOINT, "packed", 11)
    try:
        shown = hf(torch_model, LOGITS_OF_HF, parameters={"model.norm.weight": "model.norm.weight"})
        taps = steps(shown.start_grad(inputs))  # type: ignore[attr-defined]
        assert np.abs(taps["grad.model.norm.weight"]).max() > 0
        assert not frozen.requires_grad and frozen.grad is None
        assert held.grad is not None and bool((held.grad == 1).all())
    finally:
        frozen.requires_grad_(True)
        held.grad = None
    subject = tunix(jax_model, parameters={"final_norm.w": "model.norm.weight"})
    steps(subject.start_grad(inputs))  # type: ignore[attr-defined]
    after = nnx.to_pure_dict(nnx.state(jax_model))
    assert jax.tree.all(jax.tree.map(lambda a, b: a is b, before, after))


def test_gradients_of_what_is_inside_a_transformation(jax_model: Any) -> None:
    def compiled(model: Any, inputs: Inputs) -> Any:
        return jax.jit(lambda: llamas.tunix_call(model, inputs)[0])()

    inputs = inputs_for(CHECKPOINT, "packed", 5)
    options: dict[str, Any] = {
        "config": CONFIG,
        "parameters": {"final_norm.w": "model.norm.weight"},
    }
    subject = from_nnx(jax_model, names=LOGITS, call=compiled, **options)
    assert set(steps(subject.start_grad(inputs))) == {
        "loss",
        "grad.logits",
        "grad.model.norm.weight",
    }
    names = LOGITS | {"final_norm": "norm"}
    subject = from_nnx(jax_model, names=names, call=compiled, **options)
    with pytest.raises(InputError, match="inside a JAX transformation"):
        subject.start_grad(inputs).step()


# What the page says.


def test_the_example_of_the_page_is_equal() -> None:
    page = (Path(parity.__file__).parent / "subjects/README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (example,) = (block for block in blocks if "decode=" in block)
    made: dict[str, Any] = {}
    exec(compile(example, "README.md", "exec"), made)
    assert made["result"].verdict == "equal"
    taps = {row.tap for row in made["result"].rows}
    assert {"cache.0.k", "grad.layers.0.input", "grad.lm_head.weight"} <= taps
    rest = [block for block in blocks if "load_into(" in block or "Takes(" in block]
    for block in rest:
        exec(compile(block, "README.md", "exec"), made)
    assert len(rest) == 2 and made["takes"].positions == "columns"


# What cannot be.


def test_parameters_that_the_module_does_not_have_are_said_at_once(
    torch_model: Any, jax_model: Any
) -> None:
    names = {"model.layers.{i}.mlp.up.weight": "model.layers.{i}.mlp.up_proj.weight"}
    names |= {"head.weight": "lm_head.weight"}
    with pytest.raises(InputError) as caught:
        hf(torch_model, parameters=names)
    said = str(caught.value)
    assert "none of that name is there, but lm_head.weight, " in said
    assert all(f"model.layers.{i}.mlp.up.weight" in said for i in range(LAYERS))
    assert "head.weight" in said
    with pytest.raises(InputError, match=r"but embedder.input_embedding, .*: norm\.w"):
        tunix(jax_model, parameters={"norm.w": "model.norm.weight"})


def test_all_parameters_that_are_wrongly_named_are_said_at_once() -> None:
    names: dict[str, Any] = {
        "a": "model.norm",
        "b{i}": Tap("model.layers.{i}.self_attn.q_proj.weight", axes="DKH"),
        "c": "model.layers.{i}.mlp.up_proj.weight",
        "d{i}": Tap("model.layers.{i}.mlp.down_proj.weight", axes="LDF"),
        "e": "lm_head.weight",
        "f": Tap("lm_head.weight", axes="DV"),
    }
    with pytest.raises(InputError) as caught:
        parameters_of(names)
    said = str(caught.value)
    assert "a: 'model.norm' is no canonical parameter" in said
    assert "'DKH'" in said and "'(NH)D'" in said
    assert "c: layers are told apart" in said and "d{i}: layers are told apart" in said
    assert "f: lm_head.weight is named twice" in said
    assert "5 problems" in said
    with pytest.raises(InputError, match="no parameters are named"):
        parameters_of({})


def test_parameters_are_those_whose_gradients_are_compared() -> None:
    assert {f"grad.{name}" for name in PARAMETERS} == PARAMETER_GRADIENTS
    for name, axes in PARAMETERS.items():
        assert len(axes.replace("(NH)", "O").replace("(KH)", "O")) == len(GRAD_TAPS[f"grad.{name}"])


def test_a_parameter_of_another_shape_is_a_finding(torch_model: Any) -> None:
    keys, queries = (f"model.layers.{{i}}.self_attn.{part}_proj.weight" for part in "kq")
    found = first(differentiated(hf(torch_model, LOGITS_OF_HF, parameters={keys: queries})))
    assert found.row.tap == f"grad.model.layers.{LAYERS - 1}.self_attn.q_proj.weight"
    assert any("shape" in problem for problem in found.row.problems)


@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("names", [LOGITS, LOGITS_OF_HF, {**LOGITS, "model.norm": "norm"}])
def test_a_call_without_gradients_is_refused(torch_model: Any, names: Any, without: Any) -> None:
    """As inference code is written; its forward passes are judged all the same."""

    def call(model: Any, inputs: Inputs) -> Any:
        with without():
            return llamas.hf_call(model, inputs).logits

    subject = from_torch(
        torch_model, names=names, call=call, config=CONFIG, parameters=llamas.HF_PARAMETERS
    )
    inputs = inputs_for(CHECKPOINT, "packed", 5)
    with pytest.raises(InputError, match=r"runs under torch\.no_grad\(\)"):
        steps(subject.start_grad(inputs))  # type: ignore[attr-defined]
    assert "logits" in steps(subject.start(inputs))


def test_a_loss_that_is_a_mere_number_is_refused(torch_model: Any, jax_model: Any) -> None:
    def number(result: Any, inputs: Inputs) -> Any:
        return float(result.logits.detach().sum() if hasattr(result, "logits") else result[0].sum())

    inputs = inputs_for(CHECKPOINT, "packed", 5)
    subject = hf(torch_model, LOGITS_OF_HF, parameters=llamas.HF_PARAMETERS, loss=number)
    with pytest.raises(InputError, match="the loss depends on no parameter"):
        steps(subject.start_grad(inputs))  # type: ignore[attr-defined]
    subject = tunix(jax_model, parameters=llamas.TUNIX_PARAMETERS, loss=number)
    with pytest.raises(InputError, match="keep to JAX arrays"):
        steps(subject.start_grad(inputs))  # type: ignore[attr-defined]


def test_a_loss_needs_logits(torch_model: Any) -> None:
    names = {"model.norm": "norm"}
    subject = hf(torch_model, names, parameters={"lm_head.weight": "lm_head.weight"})
    with pytest.raises(InputError, match="nothing shows the logits"):
        differentiated(subject)
