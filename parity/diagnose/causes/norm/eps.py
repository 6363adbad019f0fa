"""A norm's eps is not the config's."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from parity.diagnose.cause import Cause, Facts, Hypothesis
from parity.diagnose.evidence import Evidence
from parity.diagnose.mutations import MutationSite
from parity.diagnose.operators import (
    NORM_INPUTS,
    NORMS,
    norm_input,
    norm_weight,
    norms,
    weight_name,
)
from parity.diagnose.solve import norm_statistics

CAUSE = Cause(
    id="norm-eps",
    title="a norm's eps is not the config's",
    what=(
        "The root mean square is taken of the mean square plus another constant than "
        "rms_norm_eps, or with the constant outside the root."
    ),
    why=(
        "1e-6 is the default of many libraries, 1e-5 is Llama's. Small activations show it "
        "most; bfloat16 hides it altogether."
    ),
    sources=("llama.cpp#2373", "candle#271", "tvm#15856"),
    taps=NORMS,
    remedy=(
        "Pass rms_norm_eps from the config to every norm, added to the mean square under the root."
    ),
    rank=3,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose the eps that input and output of the norm tell."""
    x, y = e.real(NORM_INPUTS[e.short]), e.real(e.short)
    weight = e.weight(weight_name(e.short, e.layer, e.config))
    eps, spread = norm_statistics(x, y, weight)
    for value in usual(eps, spread):

        def inside(site: MutationSite, value: float = value) -> Tensor:
            wide = norm_input(site)
            rms = (wide.square().mean(-1, keepdim=True) + value).sqrt()
            return (wide / rms).to(site.value.dtype) * norm_weight(site)

        facts: Facts = {"effective": f"eps {value:g}", "configured": f"{e.config.rms_norm_eps:g}"}
        yield from norms(e, "norm-eps", f"eps={value:g}", inside, **facts)
    facts = {"effective": "rms + eps", "configured": "sqrt(mean square + eps)"}
    yield from norms(e, "norm-eps", "eps outside the root", outside, **facts)


def usual(eps: float, spread: float) -> list[float]:
    """Return the measured eps, rounded as far as the measurement allows."""
    if not 0 <= eps < 1 or spread > 1e-3:
        return []
    digits = [float(f"{eps:.{n}g}") for n in (1, 2, 4, 8)]
    common = [value for value in (1e-5, 1e-6, 1e-8, 1e-12, 0.0) if abs(value - eps) < 1e-6 + eps]
    return list(dict.fromkeys([*digits, *common]))


def outside(site: MutationSite) -> Tensor:
    """Divide by the root of the mean square, plus eps."""
    wide = norm_input(site)
    rms = wide.square().mean(-1, keepdim=True).sqrt() + site.reference.config.rms_norm_eps
    return (wide / rms).to(site.value.dtype) * norm_weight(site)
