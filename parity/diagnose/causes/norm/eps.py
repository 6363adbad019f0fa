"""A norm's eps is not the config's."""

from __future__ import annotations

from parity.diagnose.cause import Cause
from parity.diagnose.edits.named import NamedEdits, Pattern
from parity.diagnose.operators import NORMS

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

EDITS = (
    NamedEdits("eps={0:g}", (Pattern("number", "eps"),), "eps {0:g}", "{eps:g}"),
    NamedEdits(
        "eps outside the root",
        (Pattern("order", "shifted", ("after", "rms")),),
        "rms + eps",
        "sqrt(mean square + eps)",
    ),
)
