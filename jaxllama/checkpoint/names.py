"""The one table of tensor names: Hugging Face (canonical), GGUF, Meta and this model's own paths.

Every reader and writer goes through `TABLE`, in whichever direction it needs. Canonical tensors
keep Hugging Face's names, orientation [out, in] and half-split rotary order.

Shapes: N query heads, K kv heads, H head dim, D model dim, F mlp dim, V vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from jaxllama.config import LlamaConfig

Dialect = Literal["hf", "gguf", "meta"]

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


@dataclass(frozen=True)
class Entry:
    """One kind of tensor.

    Attributes:
        hf, gguf, meta: its name in each dialect, `{i}` standing for the layer.
        shape: canonical shape, in symbols that `sizes` resolves.
        rotary: whose heads ("N" or "K") order the rows; GGUF and Meta interleave these.
        shard_axis: axis that Meta splits over its model-parallel files; None: replicated.
    """

    hf: str
    gguf: str
    meta: str
    shape: tuple[str, ...]
    rotary: Literal["N", "K"] | None = None
    shard_axis: int | None = None

    @property
    def layered(self) -> bool:
        """Whether every layer has one."""
        return "{i}" in self.hf

    @property
    def path(self) -> tuple[str, ...]:
        """Return where the model keeps it: the canonical name without prefix and layer."""
        name = self.hf.removeprefix("model.").replace("layers.{i}", "layers")
        return tuple(name.split("."))

    def name(self, dialect: Dialect, layer: int | None = None) -> str:
        """Return its name in one dialect, for one layer."""
        return str(getattr(self, dialect)).replace("{i}", str(layer))


_LAYER = "model.layers.{i}."
TABLE: tuple[Entry, ...] = (
    Entry(EMBEDDING, "token_embd.weight", "tok_embeddings.weight", ("V", "D"), shard_axis=0),
    Entry(
        _LAYER + "input_layernorm.weight",
        "blk.{i}.attn_norm.weight",
        "layers.{i}.attention_norm.weight",
        ("D",),
    ),
    Entry(
        _LAYER + "self_attn.q_proj.weight",
        "blk.{i}.attn_q.weight",
        "layers.{i}.attention.wq.weight",
        ("N*H", "D"),
        rotary="N",
        shard_axis=0,
    ),
    Entry(
        _LAYER + "self_attn.k_proj.weight",
        "blk.{i}.attn_k.weight",
        "layers.{i}.attention.wk.weight",
        ("K*H", "D"),
        rotary="K",
        shard_axis=0,
    ),
    Entry(
        _LAYER + "self_attn.v_proj.weight",
        "blk.{i}.attn_v.weight",
        "layers.{i}.attention.wv.weight",
        ("K*H", "D"),
        shard_axis=0,
    ),
    Entry(
        _LAYER + "self_attn.o_proj.weight",
        "blk.{i}.attn_output.weight",
        "layers.{i}.attention.wo.weight",
        ("D", "N*H"),
        shard_axis=1,
    ),
    Entry(
        _LAYER + "post_attention_layernorm.weight",
        "blk.{i}.ffn_norm.weight",
        "layers.{i}.ffn_norm.weight",
        ("D",),
    ),
    Entry(
        _LAYER + "mlp.gate_proj.weight",
        "blk.{i}.ffn_gate.weight",
        "layers.{i}.feed_forward.w1.weight",
        ("F", "D"),
        shard_axis=0,
    ),
    Entry(
        _LAYER + "mlp.up_proj.weight",
        "blk.{i}.ffn_up.weight",
        "layers.{i}.feed_forward.w3.weight",
        ("F", "D"),
        shard_axis=0,
    ),
    Entry(
        _LAYER + "mlp.down_proj.weight",
        "blk.{i}.ffn_down.weight",
        "layers.{i}.feed_forward.w2.weight",
        ("D", "F"),
        shard_axis=1,
    ),
    Entry("model.norm.weight", "output_norm.weight", "norm.weight", ("D",)),
    Entry(HEAD, "output.weight", "output.weight", ("V", "D"), shard_axis=0),
)
# By the parameter's path in a stacked model.
ENTRIES: dict[tuple[str, ...], Entry] = {entry.path: entry for entry in TABLE}
_BY_PATTERN = {entry.hf: entry for entry in TABLE}
_LAYER_NUMBER = re.compile(r"(?<=\.)(0|[1-9]\d{0,5})(?=\.)")

# The field to look at when an axis of a tensor is not as long as the configuration says.
FIELD_OF_AXIS = {
    "V": "vocab_size",
    "D": "hidden_size",
    "F": "intermediate_size",
    "N*H": "num_attention_heads",
    "K*H": "num_key_value_heads",
}


def sizes(config: LlamaConfig) -> dict[str, int]:
    """Return the length of every symbolic axis of `Entry.shape`."""
    return {
        "V": config.vocab_size,
        "D": config.hidden_size,
        "F": config.intermediate_size,
        "N*H": config.num_attention_heads * config.head_dim,
        "K*H": config.num_key_value_heads * config.head_dim,
    }


def split_layer(name: str) -> tuple[str, int | None]:
    """Split a name into its pattern and layer: `a.3.b` is (`a.{i}.b`, 3)."""
    found = _LAYER_NUMBER.search(name)
    if found is None:
        return name, None
    return f"{name[: found.start()]}{{i}}{name[found.end() :]}", int(found.group())


def entry_of(canonical: str) -> Entry:
    """Return the table's entry for a canonical name.

    Raises:
        KeyError: the name is not in the table.
    """
    return _BY_PATTERN[split_layer(canonical)[0]]


def layer_of(canonical: str) -> int | None:
    """Return the layer a canonical name belongs to, None for those outside the layers."""
    return split_layer(canonical)[1]


def to_dialect(canonical: str, dialect: Dialect) -> str:
    """Return another dialect's name of a canonical tensor."""
    return entry_of(canonical).name(dialect, layer_of(canonical))


def from_dialect(name: str, dialect: Dialect) -> str | None:
    """Return the canonical name of a stored tensor, None if the table does not know it.

    In Hugging Face's dialect the prefix `model.` may be absent, as in files of a bare model.
    """
    pattern, layer = split_layer(name)
    for entry in TABLE:
        stored = str(getattr(entry, dialect))
        bare = dialect == "hf" and pattern == stored.removeprefix("model.")
        if pattern == stored or bare:
            return entry.name("hf", layer)
    return None


def is_buffer(name: str) -> bool:
    """Whether a tensor is a buffer of old releases: recomputed from the configuration."""
    return name.endswith(("rotary_emb.inv_freq", "rope.freqs"))


def canonical_names(
    stored: Mapping[str, str], config: LlamaConfig, dialect: Dialect
) -> tuple[dict[str, str], tuple[str, ...], tuple[str, ...]]:
    """Map canonical names to stored ones.

    Args:
        stored: the name in the dialect by stored name, which differ where a wrapper was saved.
        config: whether there may be a head.
        dialect: of the names.

    Returns:
        The mapping, notes on oddities, and problems: names unknown or present twice.
    """
    mapping: dict[str, str] = {}
    notes: list[str] = []
    problems: list[str] = []
    bare, buffers = False, []
    for name, plain in stored.items():
        canonical = from_dialect(plain, dialect)
        if canonical is None:
            if is_buffer(name):
                buffers.append(name)
                continue
            problems.append(f"{name}: unexpected tensor; no part of a Llama model has this name")
        elif canonical in mapping:
            problems.append(f"{canonical}: stored twice, as {mapping[canonical]} and {name}")
        else:
            mapping[canonical] = name
            bare |= dialect == "hf" and canonical != plain
    if buffers:
        more = f" (and {len(buffers) - 1} more)" if len(buffers) > 1 else ""
        notes.append(f"{buffers[0]}{more} is ignored: frequencies come from the configuration")
    if bare:
        notes.append("tensor names lack the prefix 'model.'")
    if config.tie_word_embeddings and HEAD in mapping:
        notes.append(f"{HEAD} is stored though tie_word_embeddings is true")
    return mapping, tuple(notes), tuple(problems)


def expected_tensors(config: LlamaConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the canonical name and shape of every tensor a model has, in the order of its flow."""
    lengths = sizes(config)
    before, layered, after = (
        [e for e in TABLE if e.hf == EMBEDDING],
        [e for e in TABLE if e.layered],
        [e for e in TABLE if not e.layered and e.hf != EMBEDDING],
    )
    flow: list[tuple[Iterable[int | None], list[Entry]]] = [
        ([None], before),
        (range(config.num_hidden_layers), layered),
        ([None], after),
    ]
    for layers, entries in flow:
        for layer in layers:
            for entry in entries:
                if entry.hf != HEAD or not config.tie_word_embeddings:
                    yield entry.name("hf", layer), tuple(lengths[s] for s in entry.shape)


def heads_of(entry: Entry, config: LlamaConfig) -> int:
    """Return how many heads order the rows of a rotary projection: q and k have their own."""
    return config.num_attention_heads if entry.rotary == "N" else config.num_key_value_heads


def interleave(weight: np.ndarray, heads: int) -> np.ndarray:
    """Reorder a projection's rows from half-split pairs (i, i + H/2) to neighbours (2i, 2i + 1).

    Args:
        weight: [heads * H, in], or its first axis alone.
        heads: number of heads in these rows.

    Source: `permute` of llama.cpp's convert_hf_to_gguf.py, undone by HF's Llama conversion script.
    """
    return _swap_pairs(weight, heads, 2, -1)


def half_split(weight: np.ndarray, heads: int) -> np.ndarray:
    """Undo `interleave`."""
    return _swap_pairs(weight, heads, -1, 2)


def _swap_pairs(weight: np.ndarray, heads: int, first: int, second: int) -> np.ndarray:
    rows = weight.reshape(heads, first, second, *weight.shape[1:])
    return np.ascontiguousarray(rows.swapaxes(1, 2)).reshape(weight.shape)
