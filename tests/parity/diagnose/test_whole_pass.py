"""What is wrong where nobody watches is told from the watched run, and shown with what differs."""

from __future__ import annotations

from typing import Any

from planting import planted
from witnesses import small

from parity.report.wording import summary
from parity.result import Result
from parity.runner import run

CHECKPOINT = small()
BLOCKWISE = "jaxllama.attention.blockwise"
TELLS = "--subject blockwise shows attention in blocks tap by tap, --subject stacked"


def judged(**options: Any) -> Result:
    options = {"modes": "free", "scenarios": "right_padded", "length": 61} | options
    return run.run(CHECKPOINT, dtypes="f64", **options)


def test_a_kernel_that_only_runs_unwatched_is_explained_by_watching_it() -> None:
    with planted(BLOCKWISE, "context * kept[..., None]", "context"):
        result, watched = judged(), judged(subject="blockwise")
    assert result.first_divergence is not None and result.cause is not None
    assert watched.first_divergence is not None
    assert watched.first_divergence.row.tap == "layers.0.attn_context"
    first = result.first_divergence
    assert (first.row.tap, first.row.mode, first.kind) == ("logits", "production", "whole")
    assert result.cause.id == "softmax-merge" and result.cause.confirmed
    said = "\n".join(summary(result))
    assert "watched stage by stage, the same pass is equal in 60 of 60 taps" in said
    assert "with whole attention maps it is equal too" in said
    assert "where attention is in blocks alone" in said and TELLS in said


def test_a_backward_pass_of_its_own_is_told_from_whole_maps() -> None:
    with planted(BLOCKWISE, "groups(wanted) - shared[..., None]", "groups(wanted)"):
        result = judged(modes="grad", scenarios="packed")
    assert result.first_divergence is not None and result.cause is not None
    assert result.first_divergence.kind == "whole"
    assert result.cause.id == "gradient-softmax" and result.cause.confirmed
    assert result.cause.evidence[1] == "with whole attention maps it is equal too"


def test_a_pass_that_is_wrong_as_a_whole_is_no_fault_of_blocks_or_of_the_compiler() -> None:
    with planted("jaxllama.model", "enumerate(self.layers):", "enumerate(self.layers[:-1]):"):
        result, stacked = judged(), judged(subject="stacked")
    assert stacked.verdict == "equal"
    assert result.first_divergence is not None and result.cause is not None
    assert (result.first_divergence.kind, result.cause.id) == ("whole", "")
    assert result.cause.title == "the pass as a whole differs from its stages one by one"
    assert sum("it differs as well" in line for line in result.cause.evidence) == 2
    assert TELLS in result.cause.evidence[-1]
