"""Ask a running attention which mask it obeys, even one that shows no weights.

Identity probe: with slices of the identity for V, an attention's output is its weight matrix.
Perturbation probe: K and V of one key are changed; whatever moves, by a bit, depends on that key.

Letters: B batch, T queries, S keys, N query heads, K kv heads, H head dim.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import typer

from jaxllama import compilation_cache
from jaxllama.attention import attend, check_backend
from jaxllama.errors import InputError
from jaxllama.interrupt import on_interrupt
from jaxllama.masks import BoundMask, causal, padding, window
from jaxllama.taps import Taps
from parity.lint.dtypes import dtype_named
from parity.lint.findings import Finding
from parity.probe_cases import H, ProbeCase, Probed, cases
from parity.report.json_file import check_writable, write_text
from parity.report.outputs import after_verdict

OURS = ("xla", "dot_product", "cudnn")


def run(probed: Probed, q: Any, k: Any, v: Any, mask: Any) -> np.ndarray:
    """Call an attention with arrays of its dtype and return its output in float64 [B T N H]."""
    given = mask if isinstance(mask, BoundMask) else jnp.asarray(mask)
    q, k, v = (jnp.asarray(a.astype(dtype_named(probed.dtype))) for a in (q, k, v))
    out = probed.call(q, k, v, given)
    return np.asarray(out).astype(np.float64)


def identity_probe(probed: Probed, case: ProbeCase, mask: Any = None) -> np.ndarray:
    """Return the weights an attention really uses, [B N T S], H keys at a time.

    Args:
        probed: the attention.
        case: its q, k and mask; V is replaced.
        mask: given in place of the case's bool mask, to be told the same otherwise.

    Source:
        Linearity in V: out = weights @ V, so V = identity gives the weights themselves.
    """
    mask = case.mask if mask is None else mask
    batch, s, kv_heads, h = case.k.shape
    columns = []
    for start in range(0, s, h):
        v = np.zeros((batch, s, kv_heads, h), np.float32)
        width = min(h, s - start)
        v[:, np.arange(start, start + width), :, np.arange(width)] = 1
        out = run(probed, case.q, case.k, v, mask)
        columns.append(out[..., :width])
    return np.concatenate(columns, -1).swapaxes(1, 2)


def perturbation_probe(probed: Probed, case: ProbeCase, mask: Any = None) -> np.ndarray:
    """Return which keys each output depends on, [B N T S] bool, judged to the bit.

    Each key in turn gets K and V far from its own: scores of some hundred, so that a fill too weak
    to hide such a key is noticed as well.
    """
    mask = case.mask if mask is None else mask
    before = run(probed, case.q, case.k, case.v, mask)
    moved = []
    for key in range(case.k.shape[1]):
        k, v = case.k.copy(), case.v.copy()
        k[:, key] = 150 * k[:, key] + 1
        v[:, key] = -3 * v[:, key] + 1
        after = run(probed, case.q, k, v, mask)
        same = (before == after) | (np.isnan(before) & np.isnan(after))
        moved.append((~same).any(-1))
    return np.stack(moved, -1).swapaxes(1, 2)


def head_map(probed: Probed, case: ProbeCase) -> list[list[int]]:
    """Return which kv heads each query head's output depends on, through K or through V."""
    before = run(probed, case.q, case.k, case.v, case.mask)
    heads = case.q.shape[2]
    used: list[list[int]] = [[] for _ in range(heads)]
    for kv_head in range(case.k.shape[2]):
        moved = np.zeros(heads, bool)
        for which in ("k", "v"):
            arrays = {"k": case.k.copy(), "v": case.v.copy()}
            arrays[which][:, :, kv_head] = 2 - arrays[which][:, :, kv_head]
            after = run(probed, case.q, arrays["k"], arrays["v"], case.mask)
            moved |= (before != after).any((0, 1, 3))
        for head in np.flatnonzero(moved):
            used[head].append(kv_head)
    return used


def gradients(probed: Probed, case: ProbeCase) -> dict[str, np.ndarray]:
    """Return the gradients of the outputs' squared sum by q, k and v.

    Raises:
        TypeError: the attention is not one that JAX can differentiate.
    """
    dtype = dtype_named(probed.dtype)
    arrays = [jnp.asarray(a.astype(dtype)) for a in (case.q, case.k, case.v)]

    def loss(q: Any, k: Any, v: Any) -> Any:
        out = probed.call(q, k, v, jnp.asarray(case.mask))
        return jnp.sum(jnp.square(out.astype(jnp.float32)))

    return dict(
        zip("qkv", map(np.asarray, jax.grad(loss, argnums=(0, 1, 2))(*arrays)), strict=True)
    )


def diagnose(obeyed: np.ndarray, case: ProbeCase) -> str | None:
    """Return in words which other mask an attention obeyed, [B N T S]; None if none fits."""
    mask, live = case.mask, case.live[:, None, :, None]
    batch, t, s = mask.shape
    corner, by_position = case.with_rule(causal(align="top_left")), case.with_rule(causal())
    guesses = {
        "the mask inverted: what is hidden is seen": ~mask,
        "no mask at all": np.ones_like(mask),
        "causality without padding": by_position,
        "padding without causality": case.with_rule(padding()),
        "causality aligned at the top left": corner,
        "causality at the top left, with padding": corner & case.with_rule(padding()),
        "the mask, and causality at the top left besides": mask & corner,
        "a window of one key more": case.with_rule(causal() & padding() & window(4)),
        "a window of one key less": case.with_rule(causal() & padding() & window(2)),
        "its own key hidden": mask & ~np.eye(t, s, s - t, dtype=bool),
    }
    seen = {name: np.broadcast_to(guess[:, None], obeyed.shape) for name, guess in guesses.items()}
    if batch == obeyed.shape[1]:
        by_head = np.broadcast_to(mask[None], obeyed.shape)
        seen = {"[B, T, S] read as [N, T, S]: rows taken for heads": by_head, **seen}
    for name, guess in seen.items():
        # A row in which the guess shows nothing says nothing: kernels then differ among themselves.
        decided = live & guess.any(-1, keepdims=True)
        if decided.any() and not ((guess != obeyed) & decided).any():
            return name
    return None


# Running it


@dataclass(frozen=True)
class ProbeReport:
    """What an attention was found to do.

    Attributes:
        name: the attention's.
        findings: errors first.
        checked: ids of the dynamic rules that ran.
        unchecked: ids of those that could not, with the reason.
    """

    name: str
    findings: list[Finding]
    checked: list[str]
    unchecked: dict[str, str]

    @property
    def errors(self) -> int:
        """Number of errors."""
        return sum(finding.severity == "error" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON's types."""
        return {
            "schema_version": 1,
            "attention": self.name,
            "verdict": "faulty" if self.errors else "suspect" if self.findings else "clean",
            "findings": [finding.to_json() for finding in self.findings],
            "checked": self.checked,
            "unchecked": self.unchecked,
        }

    def text(self) -> str:
        """Return the report for people; the verdict comes first."""
        warnings = len(self.findings) - self.errors
        lines = [
            f"{self.to_json()['verdict']}: {self.name}: {self.errors} errors, {warnings} warnings"
            f" in {len(cases())} cases ({', '.join(self.checked)})"
        ]
        lines += [f"{f.severity} {f.rule}: {f.message}" for f in self.findings]
        lines += [f"not checked: {rule}: {why}" for rule, why in self.unchecked.items()]
        return "\n".join(lines)


class CannotCheck(Exception):
    """A dynamic rule does not apply to this attention; the message says why."""


def probe(probed: Probed) -> ProbeReport:
    """Question an attention by every dynamic rule."""
    from parity.lint.rule import catalogue

    findings: list[Finding] = []
    checked: list[str] = []
    unchecked: dict[str, str] = {}
    for rule_id, file in catalogue().items():
        if file.rule.kind != "dynamic":
            continue
        try:
            findings += list(file.check(probed))
            checked.append(rule_id)
        except CannotCheck as reason:
            unchecked[rule_id] = str(reason)
    findings.sort(key=lambda finding: finding.severity != "error")
    return ProbeReport(probed.name, findings, checked, unchecked)


def resolve(name: str, dtype: str | None = None) -> Probed:
    """Return an attention by name.

    Args:
        name: xla, dot_product or cudnn (this project's), jax (`jax.nn.dot_product_attention` with
            the mask as [B, 1, T, S]), or `module:function` called as function(q, k, v, mask).
        dtype: of its inputs; by default float32, bfloat16 for cudnn.

    Raises:
        InputError: no such attention, or this machine cannot run it.
    """
    if name in OURS:
        return _ours(name, dtype or ("bf16" if name == "cudnn" else "f32"))
    if name == "jax":
        return Probed("jax.nn.dot_product_attention", _jax_nn, dtype=dtype or "f32")
    module, colon, function = name.partition(":")
    if not colon:
        raise InputError(f"attention {name!r}: expected {', '.join(OURS)}, jax, or module:function")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"attention {name!r}: {error}; give module:function") from error
    if not callable(found):
        raise InputError(f"attention {name!r}: a {type(found).__name__}, expected a function")
    return Probed(name, found, dtype=dtype or "f32")


@cache
def _ours(name: str, dtype: str) -> Probed:
    check_backend(name, dtype_named(dtype), H)
    scale = H**-0.5

    @jax.jit
    def call(q: Any, k: Any, v: Any, mask: Any) -> Any:
        return attend(q, k, v, mask, scale=scale, backend=name)  # type: ignore[arg-type]

    @jax.jit
    def instrumented(q: Any, k: Any, v: Any, mask: Any) -> tuple[Any, Any]:
        taps = Taps()
        out = attend(q, k, v, mask, scale=scale, tap=taps)
        return out, taps.recorded()["attn_probs"]

    return Probed(
        f"jaxllama's {name}",
        call,
        structured=name != "xla",  # the reference lowers every mask densely
        dtype=dtype,
        instrumented=instrumented,
        finite_only=True,
    )


@jax.jit
def _jax_nn(q: Any, k: Any, v: Any, mask: Any) -> Any:
    return jax.nn.dot_product_attention(q, k, v, mask=mask[:, None])


@on_interrupt()
def probe_command(
    attention: Annotated[
        str, typer.Argument(help="xla, dot_product, cudnn, jax, or module:function.")
    ],
    dtype: Annotated[str | None, typer.Option(help="f16, bf16, f32 or f64.")] = None,
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Write the report here; - for stdout.")
    ] = None,
) -> None:
    """Ask a running attention which mask it obeys, and compare with the mask it is given."""
    if json_path is not None and str(json_path) != "-":
        check_writable(json_path)
    compilation_cache.turn_on()
    report = probe(resolve(attention, dtype))
    document = json.dumps(report.to_json(), indent=1)
    typer.echo(document if str(json_path) == "-" else report.text())
    if json_path is not None and str(json_path) != "-":
        with after_verdict():
            write_text(json_path, document + "\n")
    if report.errors:
        raise typer.Exit(1)


def ways(probed: Probed, case: ProbeCase) -> Iterator[tuple[str, Any]]:
    """Yield each way to give a case's mask: as bool, and bound where a kernel is told by name."""
    yield case.name, case.mask
    if probed.structured and case.bound.structure is not None:
        yield f"{case.name}, by kernel arguments", case.bound
