"""Results of `jaxllama bench`, made by hand."""

from __future__ import annotations

from jaxllama.bench.measures import Measure
from jaxllama.bench.result import BenchResult, Timing, VariantResult

PREFILL = Measure("prefill", "f32", 1, 512)


def measured(variant: str, seconds: float, tokens: int = 7) -> VariantResult:
    timing = Timing([seconds] * 3, 3.0 + seconds, [seconds] * 3, [[tokens]])
    return VariantResult(
        variant,
        "f32",
        start_seconds=1.0,
        first_token_seconds=4.0 + seconds,
        imported_bytes=100,
        loaded_bytes=500,
        peak_bytes=800,
        timings={"prefill_512": timing},
    )


def result(*variants: VariantResult, **changes: object) -> BenchResult:
    """Return a result of one measure."""
    settings: dict[str, object] = {
        "command": "jaxllama bench <b>",
        "date": "2026-01-02T03:04:05+00:00",
        "machine": {
            "line": "Processor <i>",
            "processor": "Processor <i>",
            "instruction_set": "AVX2",
            "threads": 2,
            "platform": "Linux",
            "python": "3.11",
        },
        "checkpoint": {
            "label": "model <script>",
            "format": "hf",
            "parameters": 100,
            "bytes": {"f32": 400},
        },
        "rounds": 3,
        "measures": [PREFILL],
        "work": {"prefill_512": 1000},
        "variants": list(variants),
    }
    return BenchResult(**(settings | changes))  # type: ignore[arg-type]
