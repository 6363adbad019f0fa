"""Pages of the Python interface: the names that a package exports, by kind, for autodoc."""

from __future__ import annotations

import inspect
from types import ModuleType

from docsite.reference import toctree
from docsite.stage import Stage

# Classes that are not exported and that exported ones hold or take: their fields are read by users.
ALSO = {
    "jaxllama": (
        "jaxllama.masks.Mask",
        "jaxllama.masks.Tokens",
        "jaxllama.masks.BoundMask",
        "jaxllama.sharding.ModelSharding",
        "jaxllama.model.DecoderLayer",
        "jaxllama.taps.Tapper",
        "jaxllama.checkpoint.base.TensorInfo",
        "jaxllama.checkpoint.convert.Conversion",
        "jaxllama.checkpoint.verify.Verification",
        "jaxllama.checkpoint.verify.Difference",
        "jaxllama.checkpoint.dtypes.Loss",
        "jaxllama.train.config.LoraSettings",
    ),
    "parity": (
        "parity.result.TapResult",
        "parity.result.Divergence",
        "parity.result.CauseReport",
        "parity.result.NamedCause",
        "parity.result.Experiment",
        "parity.result.Suspect",
        "parity.result.WitnessResult",
        "parity.result.Reading",
        "parity.result.ReadingDifference",
        "parity.comparison.difference.WorstElement",
        "parity.comparison.extent.Extent",
        "parity.inputs.Inputs",
        "parity.subjects.base.Subject",
        "parity.subjects.base.Run",
        "parity.subjects.base.CheckpointLike",
        "parity.lockstep.shared.SharedPasses",
        "parity.health.report.HealthReport",
        "parity.health.rule.HealthFinding",
        "parity.health.figures.LayerSummary",
        "parity.health.metrics.attention.HeadFigures",
        "parity.health.metrics.states.StateFigures",
        "parity.health.metrics.gradients.GradientFigures",
        "parity.health.baseline.HealthComparison",
        "parity.health.baseline.HealthChange",
        "parity.health.groups.GroupComparison",
        "parity.health.groups.GroupDifference",
        "parity.quality.report.QualityChange",
        "parity.quality.verdict.MeasuredChange",
        "parity.quality.report.WrittenText",
        "parity.comparison.quality.QualityFigures",
        "parity.comparison.quality.LayerLoss",
        "parity.quality.bootstrap.Interval",
    ),
}
SECTIONS = ("Functions", "Classes", "Errors", "Data")


def kind_of(member: object) -> str:
    """Return in which section a name stands."""
    if inspect.isclass(member):
        return "Errors" if issubclass(member, BaseException) else "Classes"
    return "Functions" if callable(member) else "Data"


def page(package: ModuleType) -> str:
    """Return a package's page."""
    name = package.__name__
    by_kind: dict[str, list[str]] = {section: [] for section in SECTIONS}
    for one in sorted(package.__all__, key=str.lower):
        by_kind[kind_of(getattr(package, one))].append(one)
    lines = [f"# {name}", "", (package.__doc__ or "").partition("\n")[0], ""]
    listed = [f"   {one}" for section in SECTIONS for one in by_kind[section]]
    lines += [
        "```{eval-rst}",
        f".. currentmodule:: {name}",
        "",
        ".. autosummary::",
        "   :nosignatures:",
        "",
        *listed,
        "```",
        "",
    ]
    for section, names in by_kind.items():
        if names:
            lines += [f"## {section}", ""]
            for one in names:
                lines += _entry(section, f"{name}.{one}")
    if also := ALSO.get(name):
        lines += ["## What these hold", "", "Not imported from the package itself.", ""]
        for one in also:
            lines += _entry("Classes", one)
    return "\n".join(lines)


def _entry(section: str, name: str) -> list[str]:
    directive = {
        "Functions": "autofunction",
        "Classes": "autoclass",
        "Errors": "autoexception",
        "Data": "autodata",
    }
    options = ["   :members:", "   :show-inheritance:"] if section == "Classes" else []
    return [
        f"### {name.rpartition('.')[2]}",
        "",
        "```{eval-rst}",
        f".. {directive[section]}:: {name}",
        *options,
        "```",
        "",
    ]


def write(stage: Stage) -> None:
    """Write the pages of both packages."""
    import jaxllama
    import parity
    import parity.subjects

    packages = jaxllama, parity, parity.subjects
    for package in packages:
        stage.write(f"api/{package.__name__}.md", page(package))
    text = (
        "# Python\n\nWhat both packages export: [jaxllama](jaxllama.md) and [parity](parity.md); "
        "how a model of yours becomes a [subject](parity.subjects.md).\n"
    )
    names = toctree(*(package.__name__ for package in packages))
    stage.write("api/index.md", f"{text}\n{names}\n")
