"""Q or k weights are in the other rotary order."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor

from parity.diagnose.cause import Cause, Hypothesis
from parity.diagnose.evidence import Evidence
from parity.diagnose.mutations import Mutation

CAUSE = Cause(
    id="qk-permutation",
    title="q or k weights are in the other rotary order",
    what=(
        "Rows of q_proj or k_proj are interleaved where they ought to be in halves, or the reverse."
    ),
    why=(
        "Meta's checkpoints and GGUF files pair neighbouring rows; Hugging Face's pair "
        "halves. A converter permutes neither, only one, or with the wrong head count."
    ),
    sources=("llama2.c#286", "nanotron#427", "maxtext#581", "maxtext#1774"),
    taps=("q_proj", "k_proj"),
    remedy=(
        "Permute q and k on conversion, each with its own head count; of a subject that rotates "
        "neighbours by rows in that order declare it: axes of q_proj and k_proj in (R2), as "
        'in "BTN(R2)".'
    ),
    rank=1,
)


def propose(e: Evidence) -> Iterator[Hypothesis]:
    """Propose either order, of both weights and of one, in all layers and in this."""
    H = e.config.head_dim
    for said, order in (("interleaved", (2, H // 2)), ("split in halves", (H // 2, 2))):
        for which in (("q_proj", "k_proj"), (e.short,)):
            for layer in (None, e.layer):
                where = "every layer" if layer is None else f"layer {layer}"
                yield Hypothesis(
                    "qk-permutation",
                    f"rows of {' and '.join(which)} {said} in {where}",
                    (permuted(which, order, layer),),
                    effective=f"rows {said}",
                    configured="rows as Hugging Face orders them",
                )


def permuted(which: tuple[str, ...], order: tuple[int, int], layer: int | None) -> Mutation:
    """Return a change that reorders the rows of each head."""

    def weight(name: str, read: Callable[[str], Tensor]) -> Tensor | None:
        module = name.split(".")[-2]
        if module not in which or (layer is not None and f".{layer}." not in name):
            return None
        w = read(name)
        heads = w.reshape(-1, *order, w.shape[1])
        return heads.transpose(1, 2).reshape(w.shape)

    return Mutation(weight=weight)
