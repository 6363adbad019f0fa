"""What is said of a model that is rounded on purpose, to the terminal, the page and a CI."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.table import Table

from jaxllama.command_line.layout import make_table
from parity.comparison.quality import QualityFigures, QualityReport

# What the figures are, for who reads a page without its documentation.
ABOUT = (
    "A quantised model is another model than the checkpoint's: these figures say how much is lost, "
    "and that it is equal nowhere."
)
# Layers of a table on a terminal; of more, those with the largest losses of their own.
MOST_LAYERS = 40


def what(report: QualityReport) -> str:
    """Say what was rounded: `int8 weights, int8 cache`."""
    parts = [] if report.quant is None else [f"{report.quant} weights"]
    parts += [] if report.cache_dtype is None else [f"{report.cache_dtype} cache"]
    return ", ".join(parts)


def quality_headline(report: QualityReport) -> str:
    """Return the verdict in one line; the word comes first."""
    lanes = "; ".join(
        f"{one.lane} KL {one.kl_mean:.2e} nats a token (worst {one.kl_max:.2e}), "
        f"top-1 agreement {one.top1_agreement:.1%}, perplexity {one.perplexity:.4g} for "
        f"{one.reference_perplexity:.4g}"
        for one in report.lanes
    )
    return f"quality: {what(report)} against the float64 reference: {lanes}"


def quality_lines(report: QualityReport) -> Iterator[str]:
    """Yield what a table has no place for."""
    if report.quant is not None:
        share = report.weights_bytes / report.bf16_bytes
        yield (
            f"weights: {report.weights_bytes:,} bytes, {share:.2f} of {report.bf16_bytes:,} in "
            "bfloat16"
        )
    for one in report.lanes:
        if one.layers:
            worst = max(one.layers, key=lambda layer: layer.isolated)
            yield (
                f"layers in {one.lane}: layer {worst.layer} loses most by itself, "
                f"{worst.isolated:.1e}; after the last {one.layers[-1].free:.1e} is lost"
            )


def figures_table(report: QualityReport) -> Table:
    """One row a dtype."""
    table = make_table("quality against the float64 reference (KL in nats)")
    for column in ("dtype", "tokens", "KL mean", "KL max", "top-1", "perplexity", "reference"):
        table.add_column(column, justify="right", no_wrap=True)
    for one in report.lanes:
        table.add_row(
            one.lane,
            str(one.tokens),
            f"{one.kl_mean:.2e}",
            f"{one.kl_max:.2e}",
            f"{one.top1_agreement:.1%}",
            f"{one.perplexity:.5g}",
            f"{one.reference_perplexity:.5g}",
        )
    return table


def layers_table(figures: QualityFigures) -> Table:
    """One row a layer: what its output has lost."""
    table = make_table(
        f"loss of each layer's output in {figures.lane}, relative (mean, worst token)"
    )
    table.add_column("layer", justify="right", no_wrap=True)
    for column in ("after all before it", "worst", "by itself", "worst"):
        table.add_column(column, justify="right", no_wrap=True)
    shown = shown_layers(figures)
    for layer in figures.layers:
        if layer.layer in shown:
            cells = layer.free, layer.free_max, layer.isolated, layer.isolated_max
            table.add_row(str(layer.layer), *(f"{value:.1e}" for value in cells))
    if len(shown) < len(figures.layers):
        table.caption = f"and {len(figures.layers) - len(shown)} more layers, which lose less"
    return table


def shown_layers(figures: QualityFigures) -> Sequence[int]:
    """Return the layers that lose most by themselves, as many as a table has."""
    ranked = sorted(figures.layers, key=lambda layer: -layer.isolated)
    return [layer.layer for layer in ranked[:MOST_LAYERS]]
