"""How to repeat a run: the command, or the call where a command cannot say it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any

from jaxllama.checkpoint import SAMPLES, Checkpoint
from parity.diagnose.search import SECONDS
from parity.runner.plan import Plan
from parity.runner.precision import HIGHEST
from parity.scenarios import DEFAULT_SCENARIOS, Prompt
from parity.subjects.select import SubjectSpec


def describe_again(
    checkpoint: str | Path | Checkpoint,
    plan: Plan,
    *,
    prompt: Prompt | None,
    length: int | None,
    subject: SubjectSpec,
    mesh: str | None,
    precision: str = HIGHEST,
    stream: bool,
    seconds: float,
    quant: str | None = None,
    cache_dtype: str | None = None,
    lora: Any = None,
) -> str:
    """Return what repeats a run, its subject included.

    Arguments are those of `parity.run`. What has no name that a command could give (weights in
    memory, a subject that was made or is a function of a function) is named in a call.
    """
    said: dict[str, Any] = {"reference": ",".join(plan.reference), "dtypes": ",".join(plan.dtypes)}
    if not plan.usual:
        said["modes"] = ",".join(plan.modes)
    if plan.scenarios != DEFAULT_SCENARIOS:  # gradients have another default than the rest
        said["scenarios"] = ",".join(plan.scenarios)
    if plan.overrides:
        said["overrides"] = list(plan.overrides)
    if plan.mitigations:
        said["mitigations"] = ",".join(plan.mitigations)
    if prompt is not None:
        said["prompt"] = prompt if isinstance(prompt, str) else [int(token) for token in prompt]
    if length is not None:
        said["length"] = length
    if mesh is not None:
        said["mesh"] = mesh
    if precision != HIGHEST:
        said["precision"] = precision
    if stream:
        said["stream"] = True
    if seconds != SECONDS:
        said["seconds"] = seconds
    rounded = {"quant": quant, "cache_dtype": cache_dtype}
    said |= {option: value for option, value in rounded.items() if value is not None}
    place = _place(checkpoint)
    name = _name(subject)
    if lora is not None:
        said["lora"] = str(lora) if isinstance(lora, str | Path) else lora
    if place is None or name is None or not isinstance(said.get("lora", ""), str):
        return _call(place, said, subject, name)
    return _command(place, {**said, **({} if name == "jaxllama" else {"subject": name})})


def _place(checkpoint: str | Path | Checkpoint) -> str | None:
    """Return what `open_checkpoint` finds it by; None of one that was made in memory."""
    if not isinstance(checkpoint, Checkpoint):
        return str(checkpoint)
    if checkpoint.path is not None:
        return str(checkpoint.path)
    return checkpoint.label if checkpoint.label in SAMPLES else None


def _name(subject: SubjectSpec) -> str | None:
    """Return what `--subject` finds it by; None where nothing does."""
    if isinstance(subject, str):
        return subject
    module, path = (getattr(subject, f"__{part}__", "") for part in ("module", "qualname"))
    if not path or module == "__main__" or "<" in path:
        return None
    try:
        found = attrgetter(path)(sys.modules[module])
    except (AttributeError, KeyError):
        return None
    return f"{module}:{path}" if found is subject else None


_OPTIONS = {
    "dtypes": "dtype",
    "modes": "mode",
    "scenarios": "scenario",
    "overrides": "override",
    "mitigations": "mitigation",
    "cache_dtype": "cache-dtype",
}


def _command(place: str, said: Mapping[str, Any]) -> str:
    words = ["parity", "run", place]
    for name, value in said.items():
        option = f"--{_OPTIONS.get(name, name)}"
        if name == "prompt" and not isinstance(value, str):
            words += ["--tokens", ",".join(map(str, value))]
        elif name == "overrides":
            words += [word for one in value for word in (option, one)]
        else:
            words += [option] if value is True else [option, _word(value)]
    return shlex.join(words)


def _word(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _call(
    place: str | None, said: Mapping[str, Any], subject: SubjectSpec, name: str | None
) -> str:
    arguments = ["checkpoint" if place is None else repr(place)]
    if name != "jaxllama":
        arguments.append("subject=" + ("subject" if name is None else repr(name)))
    arguments += [f"{key}={value!r}" for key, value in said.items()]
    what = [
        *(["checkpoint the one in memory"] if place is None else []),
        *([f"subject the {_kind(subject)} that was given"] if name is None else []),
    ]
    return f"parity.run({', '.join(arguments)})  # in Python, {' and '.join(what)}"


def _kind(subject: Any) -> str:
    named = getattr(subject, "name", None) or getattr(subject, "__qualname__", None)
    return f"{type(subject).__name__} {named}" if named else type(subject).__name__
