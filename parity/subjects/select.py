"""What users may name as the implementation under judgement, and how it becomes subjects."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeGuard, cast, get_args

from numpy.typing import DTypeLike

from jaxllama.attention import Backend
from jaxllama.checkpoint import Checkpoint, load_model
from jaxllama.config import LlamaConfig
from jaxllama.errors import InputError, argument, meant
from jaxllama.forms import Form, checked_form
from jaxllama.model import Llama
from jaxllama.sharding import ModelSharding, model_sharding, parse_mesh
from parity.comparison.tolerance import UNIT_ROUNDOFF
from parity.options import LANES, Dtypes, choose_dtypes, lane_of
from parity.subjects.base import CheckpointLike, Subject
from parity.subjects.jaxllama.subject import JaxLlama, weights_dtype, with_config
from parity.subjects.published import DTYPES, load_published, published_names
from parity.user_code import call, import_named

# From the loaded JAX model or the checkpoint, and a dtype; ready-made, one a dtype; or one of
# `NAMES`, a published name, a directory of traces, `package.module:name`.
SubjectSpec = Callable[[Any, str], Subject] | Subject | Mapping[str, Subject] | str
SubjectFactory = Callable[[str], Subject]

BACKENDS: tuple[str, ...] = get_args(Backend)
WITNESSES = ("torch", "hf", "meta")
FORMS: tuple[str, ...] = get_args(Form)
NAMES = ("jaxllama", *BACKENDS, *FORMS, *WITNESSES)
ADAPTERS = "parity.subjects.adapters."
# What the first parameter of a factory is annotated as that takes the checkpoint.
_CHECKPOINTS = (Checkpoint.__name__, CheckpointLike.__name__)


@dataclass(frozen=True)
class Named:
    """This project's model, as users run it or with one thing chosen; called as a factory.

    Attributes:
        name: how reports call it.
        backend: of attention.
        form: how layers are held; the fastest here if None.
        mesh: devices that it is laid out on; one if None.
        cache_dtype: of its cache; the model's dtype if None.
    """

    name: str
    backend: Backend = "xla"
    form: Form | None = None
    mesh: str | None = None
    cache_dtype: DTypeLike | None = None

    def sharding(self, config: LlamaConfig) -> ModelSharding | None:
        """Return where a model's arrays lie; None on one device.

        Raises:
            InputError: a mesh that is not there, or does not divide the model.
        """
        return None if self.mesh is None else model_sharding(self.mesh, config, self.form)

    def __call__(self, model: Llama, lane: str) -> Subject:
        return JaxLlama(
            model, lane, backend=self.backend, name=self.name, cache_dtype=self.cache_dtype
        )


@dataclass(frozen=True)
class FromCheckpoint:
    """A subject that reads the checkpoint by its own means.

    A function is taken for `make` by itself where its first parameter is called `checkpoint` or
    annotated as a `Checkpoint`.

    Attributes:
        make: from the checkpoint and a dtype.
        dtypes: that it is run in unless others are asked for.
    """

    make: Callable[[Checkpoint, str], Subject]
    dtypes: tuple[str, ...] = LANES


Resolved = Callable[[Llama, str], Subject] | Mapping[str, Subject] | FromCheckpoint


def resolve_subject(given: SubjectSpec | FromCheckpoint, mesh: str | None = None) -> Resolved:
    """Return what makes the subjects that a user asks for.

    Args:
        given: the subject.
        mesh: devices that this project's model is laid out on.

    Raises:
        InputError: an unknown name, something that is no subject, or a mesh for what this project
            does not lay out.
    """
    dtypes: tuple[str, ...] = LANES
    if isinstance(given, str):
        name = given
        if name not in NAMES and name in published_names():
            given, dtypes = load_published(name)
        else:
            given = _named(name)
    if mesh is not None:
        if not isinstance(given, Named):
            raise InputError(
                f"{argument('mesh', mesh)}: lays out this project's model, and the subject is "
                f"another; leave it out, or give a subject of {', '.join(NAMES[: -len(WITNESSES)])}"
            )
        given = on_mesh(given, mesh)
    if isinstance(given, FromCheckpoint):
        return given
    if _is_subject(given):
        given = {given.dtype: given}
    if isinstance(given, Mapping):
        by_dtype: dict[str, Subject] = {}
        strange = []
        for dtype, one in given.items():
            lane = lane_of(dtype)
            if lane not in LANES or lane in by_dtype:
                strange.append(f"{lane} twice" if lane in by_dtype else lane)
            elif not _is_subject(one):
                strange.append(f"{lane}: no subject")
            by_dtype[lane] = one
        if strange or not given:
            raise InputError(
                f"subject: {', '.join(strange) or 'none given'}; expected subjects by dtype, of "
                f"{', '.join(LANES)}"
            )
        return by_dtype
    if not callable(given):
        raise InputError(
            f"subject: {type(given).__name__} is neither a subject (see parity/subjects/README.md) "
            "nor a function that makes one of a checkpoint or a model, and a dtype"
        )
    if isinstance(given, Named) or not _takes_checkpoint(given):
        return given
    return FromCheckpoint(given, dtypes)


def _takes_checkpoint(factory: Callable[..., Any]) -> bool:
    """Return whether a factory says that it is to be given the checkpoint, not the loaded model."""
    try:
        first = next(iter(inspect.signature(factory).parameters.values()), None)
    except (TypeError, ValueError):  # what is written in C may hide its signature
        return False
    if first is None:
        return False
    annotated = getattr(first.annotation, "__name__", str(first.annotation)).strip("\"'")
    return first.name == "checkpoint" or annotated.rpartition(".")[2] in _CHECKPOINTS


def on_mesh(named: Named, mesh: str) -> Named:
    """Return the same, laid out on devices.

    Raises:
        InputError: it is no mesh. Whether there are such devices is said with what else is wrong,
            once the model is known: by `Named.sharding`.
    """
    parse_mesh(mesh)
    return replace(named, name=f"{named.name}-sharded", mesh=mesh)


def dtypes_of(resolved: Resolved, dtypes: Dtypes) -> tuple[str, ...]:
    """Return the dtypes to run: those asked for, or all that there are subjects of.

    Raises:
        InputError: an unknown dtype, or one that no subject is given for.
    """
    if isinstance(resolved, Mapping):
        held = tuple(lane for lane in LANES if lane in resolved)
        lanes = held if dtypes is None or dtypes == "all" else choose_dtypes(dtypes)
        missing = [lane for lane in lanes if lane not in resolved]
        if missing:
            raise InputError(
                f"{argument('dtypes', ','.join(missing))}: no subject of that dtype, only "
                f"{', '.join(held)}"
            )
        return lanes
    if dtypes is None and isinstance(resolved, FromCheckpoint):
        return resolved.dtypes
    return choose_dtypes(dtypes)


def subject_factory(
    resolved: Resolved, checkpoint: Checkpoint, config: LlamaConfig, *, quant: str | None = None
) -> SubjectFactory:
    """Return a function from a dtype to its subject; the JAX model is loaded if one needs it.

    Args:
        resolved: as `resolve` gives it.
        checkpoint: whose weights are run.
        config: the subject's: the checkpoint's own, or what overrides made of it.
        quant: of the loaded model's weights, see `jaxllama.quantisation`.

    Raises:
        InputError: the configuration is overridden of a subject that does not follow it.
    """
    if isinstance(resolved, Mapping) and config != checkpoint.config:
        raise InputError(
            f"{argument('overrides')}: a subject that is given ready-made has a config of its own"
        )
    ours = with_config(checkpoint, config)
    if isinstance(resolved, Mapping | FromCheckpoint):
        made = resolved

        def ready(lane: str) -> Subject:
            if isinstance(made, Mapping):
                return _fit(made[lane], lane)
            return _fit(_made(made.make, ours, lane, "checkpoint"), lane)

        return ready
    factory = resolved
    # A user's own factory may take the model apart: an array for each name.
    form, sharding = checked_form("stacked", config), None
    if isinstance(factory, Named):
        form = checked_form(factory.form, config, factory.mesh is not None)
        sharding = factory.sharding(config)
    dtype = weights_dtype(checkpoint)
    model = load_model(
        ours, dtype="float32", param_dtype=dtype, form=form, quant=quant, mesh=sharding
    )
    return lambda lane: _fit(_made(factory, model, lane, "loaded model"), lane)


def _made(factory: Callable[[Any, str], Subject], given: Any, lane: str, what: str) -> Subject:
    """Call a user's function, and say so where it cannot be called or makes no subject."""
    name = getattr(factory, "__qualname__", type(factory).__name__)
    how = f"subject {name}: called with the {what} and {lane!r}"
    remedy = "it has to return a subject of that dtype (parity/subjects/README.md)"
    try:
        inspect.signature(factory).bind(given, lane)
    except TypeError as error:
        raise InputError(f"{how}, which it does not take ({error}); {remedy}") from error
    except ValueError:  # what is written in C may hide its signature
        pass
    home = getattr(factory, "__module__", None) or ""
    # An adapter of a published library runs that library, whose errors are not ours.
    own = home.startswith(("jaxllama", "parity")) and not home.startswith(ADAPTERS)
    made = factory(given, lane) if own else call(factory, f"subject {name}", how, given, lane)
    if not _is_subject(made):
        raise InputError(f"{how}, it gave {type(made).__name__}; {remedy}")
    return made


def _fit(subject: Subject, lane: str) -> Subject:
    """Refuse a subject of another dtype, and one whose rounding float64 would call a fault."""
    if subject.dtype != lane:
        raise InputError(f"subject {subject.name}: its dtype is {subject.dtype}, asked for {lane}")
    if lane == "f64" and UNIT_ROUNDOFF[subject.internal_dtype] > UNIT_ROUNDOFF["f64"]:
        raise InputError(
            f"subject {subject.name}: works in {subject.internal_dtype} inside, which float64 "
            f"would take for a difference of meaning; run it with {argument('dtypes', 'f32,bf16')}"
        )
    return subject


def _is_subject(given: object) -> TypeGuard[Subject]:
    parts = ("name", "dtype", "absent", "can_force", "internal_dtype", "start")
    return not isinstance(given, type) and all(hasattr(given, part) for part in parts)


def _named(name: str) -> Any:
    if name == "jaxllama":
        return Named(name)
    if name in BACKENDS:
        return Named(f"jaxllama-{name}", backend=cast("Backend", name))
    if name in FORMS:
        return Named(f"jaxllama-{name}", form=cast("Form", name))
    if name in WITNESSES:
        dtypes = DTYPES if name == "hf" else LANES  # its norms are float32 in any case
        return FromCheckpoint(lambda checkpoint, lane: witness(name, checkpoint, lane), dtypes)
    if Path(name).is_dir():
        from parity.subjects.traces import from_traces

        return from_traces(name)
    if ":" in name:
        return import_named(name, "subject")
    known = (*NAMES, *published_names())
    raise InputError(
        f"subject {name!r}: {meant(name, known)}expected {', '.join(known)}, a directory of traces,"
        " or module:name"
    )


def witness(name: str, checkpoint: CheckpointLike, lane: str) -> Subject:
    """Return a PyTorch implementation over a checkpoint."""
    if name == "hf":
        from parity.subjects.hf.subject import HFLlama

        return HFLlama(checkpoint, dtype=lane)
    if name == "meta":
        from parity.subjects.meta.subject import MetaLlama

        return MetaLlama(checkpoint, dtype=lane)
    if name == "torch":
        from parity.subjects.torch_reference.subject import TorchReference

        return TorchReference(checkpoint, dtype=lane)
    raise InputError(f"witness {name}: nothing makes one; add it to parity.subjects.select.witness")
