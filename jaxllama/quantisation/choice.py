"""Which quantisation is meant, by one name at every door.

`int8`: whole numbers of 8 bits and a scale for each output feature, in every product. `int4`: of 4
bits and a step for each group of inputs, in the layers' products; `int4:64` says the size of a
group. The head stays at 8 bits then: a token's choice hangs on it alone.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from jaxllama.config import LlamaConfig
from jaxllama.dtypes import checked_float
from jaxllama.errors import InputError, argument
from jaxllama.quantisation.arrays import Int4Array, Int8Array, Make, Quantised

# Of int4, unless said: a step a group takes a quarter of a bit for each weight then.
GROUP = 32
_NAMES = ("int8", "int4", "int4:GROUP")
_WEIGHTS = argument("quant")


@dataclass(frozen=True)
class QuantScheme:
    """How a model's weights are held.

    Attributes:
        bits: of a weight of the layers: 8 or 4.
        group: inputs that share a step; 0 where there are no groups.
    """

    bits: int
    group: int = 0

    @property
    def name(self) -> str:
        """As options have it."""
        return f"int{self.bits}" + (f":{self.group}" if self.group not in (0, GROUP) else "")

    def of(self, path: tuple[Any, ...], config: LlamaConfig) -> QuantScheme | None:
        """Return how one parameter is held; None of what stays in floats.

        Norms are a ten-thousandth of a model. Of a table of embeddings a token reads one row,
        unless it is the head's too.

        Args:
            path: as of `jaxllama.forms.parts_of`.
            config: the model's.
        """
        head = "embed_tokens" if config.tie_word_embeddings else "lm_head"
        if path[0] == head:
            return QuantScheme(8)
        return self if len(path) > 1 and str(path[-2]).endswith("_proj") else None

    def parts(self, inputs: int, wanted: int) -> int:
        """Return into how many parts vectors are cut: as many as wanted, or 1 where that cannot be.

        Of int4 each part has whole groups and whole bytes.

        Args:
            inputs: numbers of a vector.
            wanted: parts.
        """
        return 1 if inputs % (wanted * self.unit) else wanted

    @property
    def unit(self) -> int:
        """Numbers that stay together: a group, and two of a byte."""
        return 1 if self.bits == 8 else math.lcm(2, self.group)

    def empty(self, shape: tuple[int, ...], parts: int = 1, make: Make = np.empty) -> Quantised:
        """Return an array on the host to be filled, whose vectors can be cut into parts."""
        if self.bits == 8:
            return Int8Array.empty(shape, make)
        return Int4Array.empty(shape, self.group, parts, make)

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Return what an array takes, its scales included, in bytes."""
        size, rows = math.prod(shape), math.prod(shape[:-1])
        steps = size // self.group if self.group else 0
        return size * self.bits // 8 + steps + 4 * rows


def parse_quant(quant: str | QuantScheme) -> QuantScheme:
    """Return the quantisation of a name.

    >>> parse_quant("int4:64")
    QuantScheme(bits=4, group=64)

    Raises:
        InputError: no such name.
    """
    if isinstance(quant, QuantScheme):
        return quant
    name, colon, group = str(quant).partition(":")
    if name == "int8" and not colon:
        return QuantScheme(8)
    if name == "int4" and not colon:
        return QuantScheme(4, GROUP)
    if name == "int4" and re.fullmatch("[1-9][0-9]{0,6}", group):
        return QuantScheme(4, int(group))
    raise InputError(f"{_WEIGHTS} {quant!s}: expected one of {', '.join(_NAMES)}")


def checked_quant(quant: str | QuantScheme | None, config: LlamaConfig) -> QuantScheme | None:
    """Return the quantisation asked for, once it is known that a model can be held so.

    Args:
        quant: `int8`, `int4`, `int4:GROUP`, or None for none.
        config: the model's.

    Raises:
        InputError: no such name, or groups that do not fill each product's inputs.
    """
    if quant is None:
        return None
    found = parse_quant(quant)
    inputs = {
        "hidden_size": config.hidden_size,
        "num_attention_heads * head_dim": config.num_attention_heads * config.head_dim,
        "intermediate_size": config.intermediate_size,
    }
    if uneven := {name: size for name, size in inputs.items() if size % found.unit}:
        common = math.gcd(*inputs.values())
        fitting = [n for n in range(2, common + 1) if common % math.lcm(2, n) == 0]
        remedy = f"give int4:{fitting[-1]}" if fitting else "give int8, which has no groups"
        said = ", ".join(f"{name} is {size}" for name, size in uneven.items())
        raise InputError(
            f"{argument('quant', found.name)}: groups of {found.group} inputs, an even number in "
            f"all, have to fill every product, and {said}; {remedy}"
        )
    return found


def checked_cache_dtype(dtype: DTypeLike, name: str) -> np.dtype:
    """Return what a cache's keys and values are held in: a floating dtype that JAX has, or int8.

    Args:
        dtype: as `jaxllama.dtypes.parse` takes it, or `int8`.
        name: what the caller calls it, for the error.

    Raises:
        InputError: another dtype.
    """
    is_int8 = isinstance(dtype, str) and dtype == "int8"
    if not is_int8 and dtype is not None and not isinstance(dtype, str):
        try:
            is_int8 = np.dtype(dtype) == np.int8
        except TypeError:
            is_int8 = False
    if is_int8:
        return np.dtype(np.int8)
    try:
        return checked_float(dtype, name)
    except InputError as error:
        said = error.marked
        raise InputError(f"{said}; or int8" if "expected one of" in said else said) from None
