"""The verdict as an assertion, for test suites of other projects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxllama.checkpoint import Checkpoint
from parity.report.outputs import check_reports, write_report
from parity.report.wording import summary
from parity.result import Result


def assert_equal(
    checkpoint: str | Path | Checkpoint | Result = "tiny",
    *,
    json: str | Path | None = None,
    html: str | Path | None = None,
    junit: str | Path | None = None,
    **options: Any,
) -> Result:
    """Fail unless the JAX model computes what PyTorch computes.

    Args:
        checkpoint: as of `parity.run`; or the result of a run, to judge that.
        json: where to write the result, whatever it is; `html` and `junit` likewise.
        html: see `json`.
        junit: see `json`.
        options: of `parity.run`.

    Returns:
        The result, whose verdict is `equal`.

    Raises:
        AssertionError: the verdict is another: it says where the difference begins, what causes
            it and how to see it again.
        JaxLlamaError: an option or the checkpoint is bad; nothing was judged.
    """
    __tracebackhide__ = True  # pytest then points at the test, not in here
    if isinstance(checkpoint, Result):
        if options:
            raise TypeError(f"options {', '.join(options)}: the result of a run takes none")
        result = checkpoint
    else:
        from parity.runner.run import run

        check_reports(json, html, junit)
        result = run(checkpoint, **options)
    write_report(result, json=json, html=html, junit=junit)
    if result.verdict != "equal":
        raise AssertionError("\n".join(summary(result)))
    return result
