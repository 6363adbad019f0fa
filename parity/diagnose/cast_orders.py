"""Orders of casts in which an operator may be computed, as edits of the reference's programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from parity.diagnose.edits.edit import with_step, with_step_after
from parity.subjects.torch_reference.operations import Binary, Cast, CastLike, Unary
from parity.subjects.torch_reference.program import PROGRAM, Program, Step


@dataclass(frozen=True)
class CastOrder:
    """One order of casts in an operator.

    Attributes:
        said: what is done otherwise than in the reference.
        program: the operator so computed. An operand `NAME as given` has not been rounded.
        published: whether witnesses compute it so: then there is nothing to be said.
    """

    said: str
    program: Program
    published: bool = False


@cache
def orders_of(tap: str) -> dict[str, CastOrder]:
    """Return other orders of casts in what computes a tap, given by its short name, as they are
    said.
    """
    return {order.said: order for order in _ORDERS.get(tap, ())}


def _norm(tap: str) -> Sequence[CastOrder]:
    program = PROGRAM[tap]
    x = program[0].inputs[0]
    early = with_step(program, "rounded", inputs=("normed",), fn=Unary("identity"))
    late = with_step_after(program, "rounded", Cast("wide"))

    def stored(one: Program) -> Program:
        return with_step(one, "gain", inputs=("weight",), fn=Cast("wide"))

    def rounded(one: Program) -> Program:
        return with_step_after(one, "norm", CastLike(), x)

    return (
        CastOrder(
            "multiplying by the weight before the cast",
            rounded(with_step_after(early, "gain", Cast("wide"))),
        ),
        CastOrder(
            "multiplying by the weight as it is stored, before the cast", rounded(stored(early))
        ),
        CastOrder(
            "multiplying by the weight as it is stored, after the cast", rounded(stored(late))
        ),
        CastOrder(
            "keeping the residual stream in float32",
            with_step(program, "wide", inputs=(f"{x} as given",)),
        ),
    )


def _rope(tap: str) -> Sequence[CastOrder]:
    program = PROGRAM[tap]
    x = tap.replace("_rope", "_proj")
    tables = products = program
    for name in ("cos", "sin"):
        tables = with_step_after(tables, name, CastLike(), x)
    wide = tables
    for name in ("cos'", "sin'"):
        wide = with_step_after(wide, name, Cast("wide"))
    for name in ("first_cos", "second_sin", "second_cos", "first_sin"):
        products = with_step_after(products, name, CastLike(), x)
    return (
        CastOrder("rounding cos, sin and every product and sum", tables, published=True),
        CastOrder("rounding cos and sin alone before the rotation", wide),
        CastOrder("rounding the products before they are added", products),
    )


def _context() -> Sequence[CastOrder]:
    wide = with_step(
        PROGRAM["attn_context"], "weights", inputs=("attn_probs as given",), fn=Cast("wide")
    )
    wide = with_step_after(wide, "by_head", Cast("wide"))
    wide = with_step_after(wide, "context", CastLike(), "v")
    return (CastOrder("keeping the weights of softmax in float32 for the product with v", wide),)


def _activation() -> Sequence[CastOrder]:
    program = PROGRAM["mlp_act"]
    wide = with_step_after(program, "gate_proj", Cast("wide"))
    wide = with_step_after(wide, "up_proj", Cast("wide"))
    in_two = (
        Step("sigmoid", ("gate_proj",), Unary("sigmoid")),
        Step("activated", ("gate_proj", "sigmoid"), Binary("*")),
        *program[1:],
    )
    return (
        CastOrder(
            "keeping silu in float32 until the product with up",
            with_step_after(wide, program[-1].name, CastLike(), "gate_proj"),
        ),
        CastOrder("rounding the sigmoid within silu", in_two),
    )


def _residual(tap: str) -> Sequence[CastOrder]:
    program = PROGRAM[tap]
    (step,) = program
    x, added = step.inputs

    def of(*inputs: str) -> Program:
        return with_step_after(
            with_step(program, step.name, inputs=inputs), step.name, CastLike(), x
        )

    return (
        CastOrder("not rounding what is added to the residual stream", of(x, f"{added} as given")),
        CastOrder(
            "keeping the residual stream and what is added to it in float32",
            of(f"{x} as given", f"{added} as given"),
        ),
        CastOrder("keeping the residual stream in float32", of(f"{x} as given", added)),
    )


_ORDERS: dict[str, Sequence[CastOrder]] = {
    **{tap: _norm(tap) for tap in ("input_layernorm", "post_attention_layernorm", "norm")},
    **{tap: _rope(tap) for tap in ("q_rope", "k_rope")},
    **{tap: _residual(tap) for tap in ("post_attention", "output")},
    "attn_context": _context(),
    "mlp_act": _activation(),
}
