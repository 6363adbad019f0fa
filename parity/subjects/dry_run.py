"""What a subject shows of one short pass, without judging any of it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

from jaxllama.config import LlamaConfig
from parity.inputs import Inputs, decode_chunks
from parity.subjects.adapters.layouts import sizes_of
from parity.subjects.base import Subject, unshown_names
from parity.taps import AXES, CACHE_TAPS, expected_names, split_name, template_of

SCHEMA_VERSION = "1.0"


@dataclass(frozen=True)
class ShownTap:
    """One kind of tap as it showed, alike in some layers.

    Attributes:
        tap: canonical name, `{i}` for the layer.
        place: what it is called in the implementation; empty where that is not known.
        layers: that show it so; empty of a tap outside the layers.
        shape: in the canonical layout.
        expected: the shape that it ought to have.
        dtype: of the array.
    """

    tap: str
    place: str
    layers: tuple[int, ...]
    shape: tuple[int, ...]
    expected: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class NamesReport:
    """What showed and what did not.

    Attributes:
        subject, dtype, scenario: what was run.
        shown: in data-flow order.
        silent: taps that are named and did not show.
        absent: kinds that are declared not to be shown, `{i}` for the layer.
        unknown: names that are none of the canonical ones.
        cache, gradients: whether it offers these.
        notes: remarks: on names that never showed, on maps that were chosen for the module.
    """

    subject: str
    dtype: str
    scenario: str
    shown: tuple[ShownTap, ...]
    silent: tuple[str, ...]
    absent: tuple[str, ...]
    unknown: tuple[str, ...]
    cache: bool
    gradients: bool
    notes: tuple[str, ...]

    @property
    def faulty(self) -> bool:
        """Whether something that is named did not show, or not as it ought to."""
        misshapen = any(one.shape != one.expected for one in self.shown)
        return bool(self.silent or self.unknown or misshapen)

    def to_json(self) -> dict[str, Any]:
        """Return the versioned JSON document."""
        return {"schema_version": SCHEMA_VERSION, "faulty": self.faulty, **asdict(self)}


def dry_run(subject: Subject, inputs: Inputs, config: LlamaConfig) -> NamesReport:
    """Run a subject once, and once through its cache if it has one; list what shows.

    Args:
        subject: what is run.
        inputs: a scenario, best a short one.
        config: of the checkpoint.

    Raises:
        InputError: a slip in its names.
    """
    layers, cached = config.num_hidden_layers, hasattr(subject, "start_decode")
    arrays: dict[str, tuple[tuple[int, ...], str]] = {}
    run = subject.start(inputs)
    for _ in range(layers + 2):
        arrays |= {name: (value.shape, value.dtype.name) for name, value in run.step().items()}
    if cached:
        # The last call's, which sees all columns.
        chunks = decode_chunks(inputs)
        run = subject.start_decode(inputs, chunks)  # type: ignore[attr-defined]
        for _ in range(len(chunks) * (layers + 2)):
            for name, value in run.step().items():
                if split_name(name)[0] in CACHE_TAPS:
                    arrays[name] = value.shape, value.dtype.name
    wanted = expected_names(layers, cache=cached)
    silent = [n for n in wanted if n not in arrays and split_name(n)[0] not in subject.absent]
    forward = [kind for kind in AXES if kind in {split_name(n)[0] for n in wanted}]
    known = [name for name in wanted if name in arrays]
    return NamesReport(
        subject=subject.name,
        dtype=subject.dtype,
        scenario=inputs.name,
        shown=tuple(_grouped(known, arrays, _places(subject), sizes_of(config, inputs))),
        silent=tuple(silent),
        absent=tuple(template_of(kind) for kind in forward if kind in subject.absent),
        unknown=tuple(name for name in arrays if name not in wanted),
        cache=cached,
        gradients=hasattr(subject, "start_grad"),
        notes=(*getattr(subject, "notes", ()), *unshown_names(subject, silent)),
    )


def _places(subject: Subject) -> dict[str, str]:
    """Return what taps are called in an adapted model, by canonical name."""
    ask = getattr(subject, "places", None)
    return {} if ask is None else ask()


def _grouped(
    names: Collection[str],
    arrays: dict[str, tuple[tuple[int, ...], str]],
    places: dict[str, str],
    sizes: dict[str, int],
) -> list[ShownTap]:
    """Return taps with the layers that are alike in one."""
    found: dict[tuple[str, tuple[int, ...], str], list[int]] = {}
    for name in names:
        kind, layer = split_name(name)
        found.setdefault((kind, *arrays[name]), []).extend([] if layer is None else [layer])
    order = {kind: place for place, kind in enumerate(AXES)}
    return [
        ShownTap(
            template_of(kind),
            places.get(template_of(kind), ""),
            tuple(layers),
            shape,
            tuple(sizes[letter] for letter in AXES[kind]),
            dtype,
        )
        for (kind, shape, dtype), layers in sorted(found.items(), key=lambda one: order[one[0][0]])
    ]
