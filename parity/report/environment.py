"""Where a run took place and what it cost, in sentences; older results know less."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

# What a mode's seconds are of.
PASSES = {
    "free": "forward passes",
    "isolated": "on the reference's inputs",
    "decode": "through caches",
    "grad": "gradients",
}


def environment_sentences(environment: Mapping[str, Any]) -> Iterator[str]:
    """Yield what `parity.runner.environment.describe` found, a subject a sentence."""
    machine = environment.get("machine", {})
    if "processor" in machine:
        yield from _machine(machine)
    if "backend" in environment:
        yield _products(environment)
    system = [environment["platform"]] if "platform" in environment else []
    system += [f"Python {environment['python']}"] if "python" in environment else []
    if found := [*system, *_versions(environment)]:
        yield f"Software: {', '.join(found)}."
    if settings := machine.get("settings"):
        yield f"Settings of the process: {settings}."


def _machine(found: Mapping[str, Any]) -> Iterator[str]:
    widest = found["processor_instructions"]
    count = _many(found["processors"], "processor")
    yield f"The machine is {found['processor']}: {count}, {widest} at the widest."
    xla = f"XLA computes with {found['xla_instructions']}"
    if "xla_threads" in found:
        xla += f" on {_many(found['xla_threads'], 'thread')}"
    if found.get("xla_products") == "YNNPACK":
        xla += f", matrix products by YNNPACK with {widest}"
    sides = [xla]
    if "torch_instructions" in found:
        torch = f"PyTorch with {found['torch_instructions']}"
        torch += f" on {_many(found['torch_threads'], 'thread')}"
        by = found["torch_libraries"]
        sides.append(f"{torch}, matrix products by {by}" if by else torch)
    yield f"{'; '.join(sides)}."


def _products(environment: Mapping[str, Any]) -> str:
    device, backend = environment.get("device"), environment["backend"]
    said = f"JAX ran on {_many(environment.get('devices', 1), 'device')}, {backend}"
    if device not in (None, backend):
        said += f" ({device})"
    if "x64" in environment:
        said += f", with float64 {'on' if environment['x64'] else 'off'}"
    precision = environment.get("matmul_precision")
    if precision is not None:
        said += (
            f"; it multiplies float32 matrices in {precision['float32_at_highest']} as run, in "
            f"{precision['float32_at_default']} by default"
        )
    return f"{said}."


def environment_line(environment: Mapping[str, Any]) -> str:
    """Say it in one line, for a terminal that names the machine elsewhere."""
    precision = environment["matmul_precision"]
    return (
        f"environment: {environment['backend']} ({environment['device']}), float32 matmuls "
        f"{precision['float32_at_highest']} as run, {precision['float32_at_default']} by default; "
        f"{', '.join(_versions(environment))}"
    )


def _versions(environment: Mapping[str, Any]) -> list[str]:
    found = environment.get("versions", {})
    return [f"{name} {version}" for name, version in found.items() if version]


def cost_line(timing: Mapping[str, float]) -> str:
    """Say what showing and comparing tensors costs, each mode against a run that shows none."""
    costs = []
    for mode, passes in PASSES.items():
        bare, shown = timing.get(f"bare_{mode}_s"), timing.get(f"subject_{mode}_s")
        if shown is not None:
            users = "" if bare is None else f"{bare:.1f} s as users run them, "
            costs.append(f"{passes} {users}{shown:.1f} s with taps")
    if not costs:
        return ""
    return (
        f"cost: {'; '.join(costs)}; comparing {timing.get('comparing_s', 0.0):.1f} s of a "
        f"processor; compiling {timing.get('compiling_s', 0.0):.1f} s, not in these"
    )


def plainly(value: Any) -> str:
    """Say plain data without the marks of Python's, what is not there left out."""
    if isinstance(value, Mapping):
        pairs = ((name, item) for name, item in value.items() if item is not None)
        return ", ".join(f"{name} {_inside(item)}" for name, item in pairs)
    if isinstance(value, list | tuple):
        return ", ".join(map(_inside, value))
    return str(value)


def _inside(value: Any) -> str:
    said = plainly(value)
    return f"({said})" if isinstance(value, Mapping | list | tuple) else said


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
