"""What every mask rule has in common, and how rules combine: `&`, `|`, `~`, never `bool`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import jax

from jaxllama.masks.tokens import Cells, Tokens

if TYPE_CHECKING:
    from jaxllama.masks.bound import BoundMask, EmptyRow


class Mask:
    """A rule of who sees whom. Combine with `&`, `|`, `~`; never with `and`, `or`, `not`."""

    _arrays: ClassVar[tuple[str, ...]] = ()  # fields that are pytree leaves; the others are static
    __array_ufunc__ = None  # array & mask is an error here, not an array of objects in NumPy

    def cells(self, cells: Cells) -> Any:
        """Return a bool array that broadcasts to [B, T, S]; True = seen."""
        raise NotImplementedError

    def check(self, q: Tokens, k: Tokens) -> list[str]:
        """Return what makes the rule meaningless on these tokens; an empty list when nothing."""
        return []

    def parts(self) -> tuple[Mask, ...]:
        """Return the rules this one is directly made of."""
        return ()

    def bind(self, q: Tokens, k: Tokens, empty_row: EmptyRow = "zero") -> BoundMask:
        """Apply the rule to actual tokens.

        Args:
            q: the queries, [B, T].
            k: the keys, [B, S]; the same object as `q` for plain self-attention.
            empty_row: what a query that sees no key gets. "zero": attention returns exact zeros.
                "self": it sees its own key. "error": a real query without keys is an InputError,
                found now, which needs concrete values.

        Returns:
            A mask that can be lowered, drawn, questioned, and passed through jit.

        Raises:
            InputError: the tokens do not fit each other or the rule, or `empty_row="error"` found
                an empty row.
        """
        from jaxllama.masks.bound import bind

        return bind(self, q, k, empty_row)

    def __and__(self, other: Mask) -> Mask:
        return And(self, _operand(other, "&"))

    def __or__(self, other: Mask) -> Mask:
        return Or(self, _operand(other, "|"))

    def __rand__(self, other: Mask) -> Mask:
        return _operand(other, "&") & self

    def __ror__(self, other: Mask) -> Mask:
        return _operand(other, "|") | self

    def __invert__(self) -> Mask:
        return Not(self)

    def __bool__(self) -> bool:
        raise TypeError(
            f"bool({self}): a mask spec is neither true nor false, so `and`, `or`, `not` would drop"
            " a part of it silently; combine with &, | and ~"
        )


def _operand(other: object, sign: str) -> Mask:
    if not isinstance(other, Mask):
        raise TypeError(
            f"mask {sign} {type(other).__name__}: expected another mask spec; wrap a bool array in"
            " explicit(array)"
        )
    return other


SpecT = TypeVar("SpecT", bound=type[Mask])


def pytree_spec(cls: SpecT) -> SpecT:
    """Make a spec a pytree: its arrays are leaves and can be traced; all else is static."""
    fields = tuple(f.name for f in dataclasses.fields(cls))  # type: ignore[arg-type]
    leaves = cls._arrays
    static = tuple(n for n in fields if n not in leaves)

    def flatten(spec: Any) -> tuple[Any, Any]:
        key = jax.tree_util.GetAttrKey
        children = tuple((key(n), getattr(spec, n)) for n in leaves)
        return children, tuple(getattr(spec, n) for n in static)

    def unflatten(aux: Any, children: Any) -> Any:
        spec = object.__new__(cls)  # no __post_init__: JAX also passes placeholders
        for name, value in zip(static + leaves, (*aux, *children), strict=True):
            object.__setattr__(spec, name, value)
        return spec

    jax.tree_util.register_pytree_with_keys(cls, flatten, unflatten)
    return cls


@pytree_spec
@dataclass(frozen=True)
class And(Mask):
    """Seen where both rules show it."""

    left: Mask
    right: Mask
    _arrays = ("left", "right")

    def cells(self, cells: Cells) -> Any:
        return self.left.cells(cells) & self.right.cells(cells)

    def parts(self) -> tuple[Mask, ...]:
        return self.left, self.right

    def __str__(self) -> str:
        return " & ".join(f"({p})" if isinstance(p, Or) else str(p) for p in self.parts())


@pytree_spec
@dataclass(frozen=True)
class Or(Mask):
    """Seen where either rule shows it: an OR widens, so AND padding and segments last."""

    left: Mask
    right: Mask
    _arrays = ("left", "right")

    def cells(self, cells: Cells) -> Any:
        return self.left.cells(cells) | self.right.cells(cells)

    def parts(self) -> tuple[Mask, ...]:
        return self.left, self.right

    def __str__(self) -> str:
        return " | ".join(f"({p})" if isinstance(p, And) else str(p) for p in self.parts())


@pytree_spec
@dataclass(frozen=True)
class Not(Mask):
    """Seen where the rule hides it."""

    rule: Mask
    _arrays = ("rule",)

    def cells(self, cells: Cells) -> Any:
        return ~self.rule.cells(cells)

    def parts(self) -> tuple[Mask, ...]:
        return (self.rule,)

    def __str__(self) -> str:
        return f"~({self.rule})" if len(self.rule.parts()) == 2 else f"~{self.rule}"
