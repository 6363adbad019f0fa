"""Slips in a map of names, each told in one line; and the like that is no slip."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from foreign_subjects import CHECKPOINT, CONFIG
from torch import nn
from witnesses import LAYERS

import parity
from jaxllama.errors import InputError
from parity.inputs import Inputs
from parity.result import Result
from parity.subjects import Tap, from_callable, from_torch
from parity.subjects.adapters.intercept import CallInterceptor
from parity.subjects.adapters.names import sites
from parity.subjects.adapters.targets import find_targets
from parity.subjects.base import Subject
from parity.subjects.torch_reference.subject import TorchReference

SETTINGS: dict[str, Any] = {"scenarios": "packed", "length": 9, "modes": "free", "seconds": 0.1}


def run(subject: Subject, **options: Any) -> Result:
    return parity.run(CHECKPOINT, subject=subject, **(SETTINGS | options))


class Pair(NamedTuple):
    hidden: Any
    rest: Any


class Passing(nn.Module):
    """Hands on a value that is computed elsewhere, in whatever form a test asks for."""

    def __init__(self, form: Any) -> None:
        super().__init__()
        self.form = form

    def forward(self, hidden: Any, scale: float = 1.0, *, mask: Any = None) -> Any:
        return self.form(hidden)


class Model(nn.Module):
    """Shows the reference's logits by way of a module that is called as a test wants it.

    Args:
        form: what the module returns of the logits.
        called: calls the module.
    """

    def __init__(self, form: Any = lambda x: x, called: Any = lambda head, x: head(x)) -> None:
        super().__init__()
        self.head, self.called = Passing(form), called

    def forward(self, inputs: Inputs, dtype: str = "f32") -> Any:
        taps = TorchReference(CHECKPOINT, dtype=dtype).start(inputs)
        for _ in range(LAYERS + 2):
            shown = taps.step()
        return self.called(self.head, torch.tensor(np.asarray(shown["logits"], np.float32)))


def subject(names: Any, **model: Any) -> Subject:
    return from_torch(Model(**model), names=names, call=lambda model, i: model(i), config=CONFIG)


@pytest.mark.parametrize(
    ("form", "item"),
    [
        (lambda x: (x, None), 0),
        (lambda x: [x], 0),
        (lambda x: Pair(None, x), 1),
        (lambda x: Pair(x, None), "hidden"),
        (lambda x: {"out": x}, "out"),
        (lambda x: SimpleNamespace(out=x), "out"),
        (lambda x: x, None),
        (lambda x: (None, x), "*"),
        (lambda x: {"out": x, "cache": ()}, "*"),
        (lambda x: x, "*"),
    ],
)
def test_an_item_of_a_result(form: Any, item: Any) -> None:
    result = run(subject({"head": Tap("logits", item=item)}, form=form))
    assert result.verdict == "equal" and result.compared == 1


@pytest.mark.parametrize(
    ("form", "tap", "said"),
    [
        (lambda x: (x, None), Tap("logits"), "is a tuple of 2, no array; say which: Tap..logits'"),
        (lambda x: {"out": x}, Tap("logits"), "a dict of 'out', no array; say which: .*item='out'"),
        (lambda x: SimpleNamespace(out=x), Tap("logits"), "a SimpleNamespace, .*item='out'"),
        (lambda x: None, Tap("logits"), "is a NoneType, no array; name what holds an array"),
        (lambda x: (x, None), Tap("logits", item=2), "no item=2 in a tuple of 2"),
        (lambda x: (x, None), Tap("logits", item=1), "is a NoneType, no array"),
        (lambda x: (x, None), Tap("logits", item="hidden"), "no item='hidden' in a tuple"),
        (lambda x: {"out": x}, Tap("logits", item="in"), "no item='in' in a dict of 'out'"),
        (lambda x: (x, x), Tap("logits", item="*"), "2 arrays are in a tuple of 2; say which"),
        (lambda x: (None,), Tap("logits", item="*"), "0 arrays are in a tuple of 1; say which"),
        (lambda x: x, Tap("logits", item=7), r"no item=7 in an array \(3, 9, "),
    ],
)
def test_an_item_forgotten_or_not_there(form: Any, tap: Tap, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        run(subject({"head": tap}, form=form))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("called", "item"),
    [
        (lambda head, x: head(x), None),
        (lambda head, x: head(hidden=x), None),
        (lambda head, x: head(scale=2.0, hidden=x), None),
        (lambda head, x: head(hidden=x), 0),
        (lambda head, x: head(x), "hidden"),
        (lambda head, x: head(x, 2.0), "hidden"),
        (lambda head, x: head(x + 1, mask=x), "mask"),
        (lambda head, x: head(x + 1, x), 1),
        (lambda head, x: head(x + 1, scale=x), 1),
    ],
)
def test_an_argument_by_place_or_by_name(called: Any, item: Any) -> None:
    result = run(subject({"head:input": Tap("logits", item=item)}, called=called))
    assert result.verdict == "equal" and result.compared == 1


def test_an_arrays_own_method_is_given_the_array_first() -> None:
    named = [Tap("layers.{i}.attn_scores"), Tap("mask", item=1)]
    places = sites({"torch.Tensor.masked_fill():input": named})
    seen: dict[str, Any] = {}
    targets = find_targets(torch.nn.Identity(), "forward", places, 1)
    watch = CallInterceptor(targets, 1, lambda tap, value: seen.setdefault(tap.name, value))
    scores, hidden = torch.arange(3.0), torch.arange(3) > 1
    with watch.watching():
        scores.masked_fill(hidden, -1.0)
    assert seen["layers.0.attn_scores"] is scores and seen["mask"] is hidden


@pytest.mark.parametrize(
    ("called", "item", "said"),
    [
        (lambda head, x: head(x), 1, "no argument 1: 1 by place and none by name"),
        (lambda head, x: head(hidden=x), "mask", "no argument 'mask': 0 by place and hidden by"),
        (lambda head, x: head(x, mask=x), 7, "no argument 7: 1 by place and mask by name"),
        (lambda head, x: head((x, x)), None, "is a tuple of 2, no array"),
    ],
)
def test_an_argument_that_is_not_there(called: Any, item: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        run(subject({"head:input": Tap("logits", item=item)}, called=called))


def test_the_same_of_a_function() -> None:
    names = {"scores": "logits"}

    def of(shown: Any) -> Subject:
        return from_callable(lambda _: {"scores": shown}, names=names, config=CONFIG)

    with pytest.raises(InputError, match="is a tuple of 2, no array; say which"):
        run(of((np.ones(3), np.ones(3))))
    with pytest.raises(InputError, match="is a str, no array"):
        run(of("scores"))


# Dtypes that are declared in vain.


def shown_in(dtype: Any, computed: str = "f32") -> Any:
    def shown(inputs: Inputs) -> dict[str, Any]:
        run = TorchReference(CHECKPOINT, dtype=computed).start(inputs)
        taps: dict[str, Any] = {}
        for _ in range(LAYERS + 2):
            taps |= run.step()
        named = {f"block{i}": taps[f"layers.{i}.output"] for i in range(LAYERS)}
        named |= {"embedded": taps["embed"], "scores": taps["logits"]}
        return {name: np.asarray(value).astype(dtype) for name, value in named.items()}

    return shown


NAMES = {"embedded": "embed", "block{i}": "layers.{i}.output", "scores": "logits"}


def declared(dtype: str, function: Any) -> Subject:
    return from_callable(function, names=NAMES, config=CONFIG, dtype=dtype)


@pytest.mark.parametrize("dtype", ["bf16", "f32"])
def test_wider_arrays_than_declared_are_refused(dtype: str) -> None:
    wider = np.float32 if dtype == "bf16" else np.float64
    function = shown_in(wider, "f32" if dtype == "bf16" else "f64")
    said = (
        rf"dtype {dtype} is declared, and nothing shows it: .*\(4\) are all {np.dtype(wider).name}"
    )
    with pytest.raises(InputError, match=said):
        run(declared(dtype, function))
    assert run(declared("f32" if dtype == "bf16" else "f64", function)).verdict == "equal"


def test_wide_arrays_of_narrow_numbers_are_none() -> None:
    # What is computed in bfloat16 and handed over in float32.
    assert run(declared("bf16", shown_in(np.float32, "bf16"))).verdict == "equal"


def test_a_cast_to_less_is_a_divergence_not_a_declaration() -> None:
    result = run(declared("f32", shown_in(jnp.bfloat16)))
    assert result.verdict == "divergent"


@pytest.mark.parametrize(
    ("declared", "held", "refused"),
    [
        (torch.float64, torch.float32, True),
        (torch.bfloat16, torch.float32, True),
        (torch.float32, torch.float32, False),
    ],
)
def test_a_modules_parameters_are_asked(declared: Any, held: Any, refused: bool) -> None:
    model = Model()
    model.weight = nn.Parameter(torch.ones(3, dtype=held))
    dtype = str(declared).removeprefix("torch.")
    made = from_torch(
        model, names={"head": "logits"}, call=lambda model, i: model(i), config=CONFIG, dtype=dtype
    )
    if refused:
        with pytest.raises(InputError, match="is declared, and nothing shows it"):
            run(made)
    else:
        assert run(made).verdict == "equal"


def test_parameters_of_the_declared_dtype_bear_it_out() -> None:
    model = Model()
    model.weight = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    names = {"head": "logits"}
    made = from_torch(
        model, names=names, call=lambda model, i: model(i), config=CONFIG, dtype="bf16"
    )
    assert run(made).verdict == "equal"


def test_what_a_users_call_raises_is_no_error_of_ours() -> None:
    """A model that takes ids alone, called with a mask: the place and the reason, in one line."""
    wrong = from_torch(
        Model(),
        names={"head": "logits"},
        call=lambda model, i: model(i, "f32", i.mask),
        config=CONFIG,
    )
    with pytest.raises(InputError) as caught:
        run(wrong)
    said = str(caught.value)
    assert "it raised TypeError: Model.forward() takes from 2 to 3 positional arguments" in said
    assert "(test_slips.py:" in said and "run by call=" in said and "\n" not in said
