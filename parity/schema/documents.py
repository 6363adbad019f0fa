"""The kinds of JSON document, each with its version and its schema."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from jaxllama.bench import result as bench
from jaxllama.bench.measures import Measure
from jaxllama.bench.ratios import Spread
from jaxllama.bench.result import VariantResult
from jaxllama.plan import result as plan
from parity import result
from parity.comparison.quality import QualityFigures
from parity.health import report as health
from parity.health.figures import LayerSummary
from parity.health.metrics.gradients import GradientFigures
from parity.lint import linter
from parity.lint.findings import Finding, Place
from parity.quality import report as quality
from parity.schema.annotations import (
    IN_WORDS,
    INTEGER,
    NUMBER,
    OR_NULL,
    STRING,
    STRINGS,
    Schema,
    Schemas,
    document,
)

DIALECT = "https://json-schema.org/draft/2020-12/schema"

OBJECT: Schema = {"type": "object"}
BOOLEAN: Schema = {"type": "boolean"}
_WORDS, _NULLS, _NUMBERS = Schemas(IN_WORDS), Schemas(OR_NULL), Schemas(NUMBER)


@dataclass(frozen=True)
class DocumentKind:
    """A kind of document.

    Attributes:
        name: as `parity schema` takes it.
        version: of the documents that are written today.
        command: that writes one.
        body: makes the schema of its properties.
    """

    name: str
    version: str | int
    command: str
    body: Callable[[], Schema]

    def schema(self) -> Schema:
        """Return the schema, the version included."""
        body = self.body()
        body["properties"]["schema_version"] = {"const": self.version}
        title = f"{self.name} {self.version}: what `{self.command}` writes"
        return {"$schema": DIALECT, "title": title, **body}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _array(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _versioned(properties: dict[str, Schema], optional: tuple[str, ...] = ()) -> Schema:
    return document({"schema_version": {}, **properties}, optional)


def _result() -> Schema:
    kind = _WORDS.record(result.Divergence, without=("row", "difference"))["properties"]
    first = _WORDS.record(result.TapResult, more=kind)
    counts: Schema = {"type": "object", "additionalProperties": INTEGER}
    return _versioned(
        {
            "verdict": _WORDS.of(result.Verdict),
            "difference": _or_null(_WORDS.of(result.DifferenceKind)),
            "first_divergence": _or_null(first),
            "cause": _or_null(
                _WORDS.record(result.CauseReport, without=("wrong_reference", "wrong_inputs"))
            ),
            "quality": _or_null(_WORDS.record(result.QualityReport)),
            "reading": _or_null(_WORDS.record(result.Reading)),
            "taps": _array(_WORDS.record(result.TapResult, more={"passed": BOOLEAN})),
            "witnesses": _array(_WORDS.record(result.WitnessResult, more={"agrees": BOOLEAN})),
            "coverage": document(
                {
                    "expected": INTEGER,
                    "compared": INTEGER,
                    "absent": STRINGS,
                    "unmatched": STRINGS,
                    "not_run": STRINGS,
                    "runs": counts,
                    "witnesses": counts,
                }
            ),
            "tolerance": OBJECT,
            "environment": OBJECT,
            "inputs": _array(OBJECT),
            "checkpoint": OBJECT,
            "subject": STRING,
            "command": STRING,
            "notes": STRINGS,
            "timing": OBJECT,
        }
    )


def _health() -> Schema:
    fields = _NULLS.record(health.HealthReport)["properties"]
    rows = ("leak_row", "row_sum_row", "column_row", "state_row")
    layer = _NULLS.record(LayerSummary, without=rows)["properties"]
    own = ("findings", "comparison", "groups", "checkpoint", "subject", "dtype", "mask")
    last = ("gradient_tokens", "spectra", "notes", "environment")
    return _versioned(
        {
            "kind": {"const": "health"},
            "verdict": {"enum": ["healthy", "suspect", "faulty"]},
            "random_weights": BOOLEAN,
            **{name: fields[name] for name in own},
            "text": document({"source": STRING, "rows": _array(INTEGER)}),
            "loss": OR_NULL,
            "chance": OR_NULL,
            "layers": _array(
                document(
                    {
                        "layer": INTEGER,
                        **layer,
                        "gradients": _or_null(_NULLS.record(GradientFigures)),
                    }
                )
            ),
            **{name: fields[name] for name in last},
        }
    )


def _quality() -> Schema:
    fields = _NULLS.record(quality.QualityChange)["properties"]
    apart = _NULLS.record(QualityFigures)["properties"]
    own = ("checkpoint", "change", "measures", "layout", "dtype", "length", "fail_on", "written")
    return _versioned(
        {
            "kind": {"const": "quality"},
            "verdict": STRING,
            "failed": STRINGS,
            **{name: fields[name] for name in own},
            "distributions": _or_null(
                document({name: apart[name] for name in ("kl_mean", "kl_max", "top1_agreement")})
            ),
            "bootstrap": document(
                {
                    "resamples": INTEGER,
                    "seed": INTEGER,
                    "confidence": NUMBER,
                    "each_confidence": NUMBER,
                    "least_examples": INTEGER,
                }
            ),
            "data": document(
                {"source": STRING, "examples": INTEGER, "prompts": INTEGER, "tokens": INTEGER}
            ),
            "notes": STRINGS,
            "environment": OBJECT,
        }
    )


def _finding() -> Schema:
    place = _NUMBERS.record(Place)
    place["required"] = []
    found = _NUMBERS.record(Finding, without=("place",), more={"place": place, "message": STRING})
    return _array(found)


def _lint() -> Schema:
    named = {"type": "object", "additionalProperties": STRING}
    lacking = {"type": "object", "additionalProperties": STRINGS}
    one = {
        "mask": STRING,
        "schema_version": {"const": linter.SCHEMA_VERSION},
        "verdict": {"enum": ["clean", "suspect", "faulty"]},
        "findings": _finding(),
        "explained": named,
        "checked": STRINGS,
        "unchecked": lacking,
        "notes": STRINGS,
    }
    several = {
        "from": STRING,
        "schema_version": {},
        "verdict": one["verdict"],
        "masks": _array(document(one)),
    }
    return {"properties": {"schema_version": {}}, "anyOf": [document(one), document(several)]}


def _probe() -> Schema:
    return _versioned(
        {
            "attention": STRING,
            "verdict": {"enum": ["clean", "suspect", "faulty"]},
            "findings": _finding(),
            "checked": STRINGS,
            "unchecked": {"type": "object", "additionalProperties": STRING},
        }
    )


def _bench() -> Schema:
    fields = _NUMBERS.record(bench.BenchResult)["properties"]
    spread = _NUMBERS.record(Spread)
    own = ("command", "date", "seconds", "machine", "checkpoint", "rounds", "not_run", "idle_share")
    timing: dict[str, Any] = {
        "measure": STRING,
        "variant": STRING,
        "dtype": STRING,
        "seconds": _array(NUMBER),
        "tokens_per_second": _or_null(spread),
        "first_call_seconds": OR_NULL,
        "compile_seconds": OR_NULL,
        "tokens": _array(_array(INTEGER)),
    }
    measure = _NUMBERS.record(Measure, more={"name": STRING, "tokens": INTEGER, "work": INTEGER})
    return _versioned(
        {
            **{name: fields[name] for name in own},
            "ratios": {"type": "object", "additionalProperties": spread},
            "measures": _array(measure),
            "variants": _array(
                _NUMBERS.record(VariantResult, without=("timings",), more={"about": STRING})
            ),
            "timings": _array(document(timing)),
            "notes": STRINGS,
        }
    )


def _plan() -> Schema:
    size = ("weights", "cache", "activations", "temporaries", "peak", "least_peak")
    figure = ("memory", "usable", "bandwidth", "flops")
    floors = (
        "step_seconds",
        "prefill_seconds",
        "decode_tokens_per_second",
        "prefill_tokens_per_second",
    )
    mesh = document(
        {
            "mesh": STRING,
            "devices": INTEGER,
            "rows_per_device": NUMBER,
            "bytes_per_device": document(dict.fromkeys(size, NUMBER)),
            "analysis": OBJECT,
            "fits": _or_null(BOOLEAN),
            "floors": document(dict.fromkeys(floors, NUMBER)),
        },
        optional=("fits", "floors"),  # of a named device alone
    )
    device = document({"name": STRING, "about": STRING, **dict.fromkeys(figure, NUMBER)})
    return _versioned(
        {
            "model": STRING,
            **dict.fromkeys(("batch", "context", "chunk"), INTEGER),
            "dtype": STRING,
            "cache_dtype": STRING,
            "quant": _or_null(STRING),
            "device": _or_null(device),
            "given": _or_null(mesh),
            "cheapest": _or_null(mesh),
            "tried": INTEGER,
            "gave_up": BOOLEAN,
            "notes": STRINGS,
        }
    )


@cache
def kinds() -> dict[str, DocumentKind]:
    """Return all kinds by name."""
    found = (
        DocumentKind("result", result.SCHEMA_VERSION, "parity run --json", _result),
        DocumentKind("health", health.SCHEMA_VERSION, "parity health --json", _health),
        DocumentKind("quality", quality.SCHEMA_VERSION, "parity quality --json", _quality),
        DocumentKind("lint", linter.SCHEMA_VERSION, "parity lint --json", _lint),
        DocumentKind("probe", linter.SCHEMA_VERSION, "parity probe --json", _probe),
        DocumentKind("bench", bench.SCHEMA_VERSION, "jaxllama bench --json", _bench),
        DocumentKind("plan", plan.SCHEMA_VERSION, "jaxllama plan --json", _plan),
    )
    return {one.name: one for one in found}
