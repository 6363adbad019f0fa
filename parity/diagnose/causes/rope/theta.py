"""Rope theta is not the config's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from parity.diagnose.cause import Cause, Hypothesis
from parity.diagnose.causes.rope.frequency_tables import configured, effective_table
from parity.diagnose.edits.named import NamedEdits, Pattern
from parity.diagnose.evidence import Evidence
from parity.diagnose.solve import scaling_in_words, solve_frequencies

CAUSE = Cause(
    id="rope-theta",
    title="rope theta is not the config's",
    what="Rotary frequencies are powers of another base than the configuration's rope_theta.",
    why=(
        "A reader looks under another key (rope_parameters, rope_scaling, a preset) and falls "
        "back to a default such as 1e4 or 1e6. Short prompts hardly show it: the angle errs "
        "by thousandths at the first tokens."
    ),
    sources=("airllm#368", "llama2.c#356", "levanter#649", "tpu-inference#2838"),
    taps=("q_rope", "k_rope", "rope.inv_freq"),
    remedy=(
        "Read rope_theta from the checkpoint's config, in both spellings, and refuse a config "
        "without it."
    ),
    rank=1,
)

EDITS = (
    NamedEdits(
        "theta={0:g}", (Pattern("number", "theta"),), "theta {0:.6g}", "{theta:.6g}", searched=True
    ),
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose theta, and the scaling that goes with it, from the angle table."""
    table = effective_table(e)
    if table is None:
        return
    found = solve_frequencies(table.values, e.config, table.noise)
    if not found.exact or found.theta == e.config.rope_theta:
        return
    theta = Hypothesis(
        CAUSE.id,
        f"theta={found.theta:g}",
        effective=f"theta {found.theta:.6g}",
        configured=f"{e.config.rope_theta:.6g}",
    )
    if found.scaling != e.config.rope_scaling:
        said, asked = scaling_in_words(found.scaling), scaling_in_words(e.config.rope_scaling)
        scaling = Hypothesis("rope-scaling", f"scaling {said}", effective=said, configured=asked)
        both = f"{theta.said}, {scaling.said}"
        theta = replace(theta, said=both, parts=(theta, scaling))
    yield configured(e, theta, found)
