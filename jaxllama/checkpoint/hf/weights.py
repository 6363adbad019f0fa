"""Which files of a directory hold its weights: one answer, what is left beside it said."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from jaxllama import files
from jaxllama.checkpoint.hf.safetensors_file import Slot, read_header
from jaxllama.config_formats.fields import FieldTable
from jaxllama.errors import CheckpointError, summarise
from jaxllama.files import limits

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
Stored = dict[str, tuple[Path, Slot]]

ADAPTER = "adapter_config.json"
_ADAPTER = "adapter_model.safetensors"
_BY_TRANSFORMERS = (
    "make safetensors of it: `AutoModelForCausalLM.from_pretrained(DIRECTORY).save_pretrained(OUT)`"
)
# Weights of other libraries, and what to do with them.
_OTHERS = {
    ".bin": ("PyTorch's pickles", _BY_TRANSFORMERS),
    ".pt": ("PyTorch's pickles", _BY_TRANSFORMERS),
    ".pth": ("PyTorch's pickles", _BY_TRANSFORMERS),
    ".ckpt": ("a trainer's checkpoint", _BY_TRANSFORMERS),
    ".h5": ("TensorFlow's", _BY_TRANSFORMERS),
    ".msgpack": ("Flax's", _BY_TRANSFORMERS),
    ".npz": ("NumPy's or MLX's", "make safetensors of it"),
    ".gguf": ("GGUF", "give the file's own path"),
}
_INDEX_TABLE = FieldTable(
    read=frozenset(["weight_map"]), harmless=frozenset(["metadata"]), could="say where weights are"
)
# What quantising tools leave; the tensors say whether weights are quantised.
_QUANTISERS = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
# That end like weights and are none.
_NO_WEIGHTS = ("training_args.bin", "optimizer.pt", "optimizer.bin", "scheduler.pt", "rng_state")
_PART = re.compile(r"-\d{5}-of-(\d{5})\.safetensors$")
_SAID = 10


def find_weights(path: Path) -> tuple[Stored, list[str]]:
    """Return every tensor of a directory's safetensors files, and notes on what is not read.

    Raises:
        CheckpointError: there are none, or two sets of them; or a file is missing or damaged, or
            the index and the files disagree.
    """
    single, index = path / SINGLE, path / INDEX
    notes: list[str] = []
    if single.exists():
        if index.exists():
            notes.append(_stale_index(path))
        read = {SINGLE}
        file = files.inside(path, SINGLE)
        stored = {name: (file, slot) for name, slot in read_header(file).items()}
    elif index.exists():
        weight_map = _weight_map(path)
        read = set(weight_map.values())
        stored = _read_sharded(path, weight_map)
    else:
        raise CheckpointError(f"{path}: holds neither {SINGLE} nor {INDEX}; {_what_is_there(path)}")
    return stored, [*notes, *left_beside(path, read)]


def _weight_map(path: Path) -> dict[str, str]:
    content = files.read_json(files.inside(path, INDEX), limits.INDEX_BYTES)
    if unknown := _INDEX_TABLE.unknown(content):
        raise CheckpointError(f"{path / INDEX}: {unknown[0]}")
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not all(
        isinstance(shard, str) for shard in weight_map.values()
    ):
        raise CheckpointError(f"{path / INDEX}: weight_map is not an object of file names")
    if not weight_map:
        raise CheckpointError(f"{path / INDEX}: weight_map names no tensor; fetch the index again")
    files.check_names(weight_map, f"{path / INDEX}: weight_map")
    if (shards := len(set(weight_map.values()))) > limits.SHARDS:
        raise CheckpointError(
            f"{path / INDEX}: {shards} files, at most {limits.SHARDS} are accepted"
        )
    return weight_map


def _stale_index(path: Path) -> str:
    """Return a note on an index beside the single file, which is read; refuse two whole sets."""
    try:
        shards = set(_weight_map(path).values()) - {SINGLE}
    except CheckpointError as error:
        return f"{SINGLE} is read; the index beside it is not, and is damaged: {error}"
    there = [shard for shard in sorted(shards) if files.inside(path, shard).exists()]
    if shards and len(there) == len(shards):
        raise CheckpointError(
            f"{path}: holds two sets of weights: {SINGLE}, and {len(there)} files that {INDEX} "
            f"names ({there[0]} ...); move one of the two elsewhere"
        )
    if not shards:
        return f"{SINGLE} is read; {INDEX} beside it names no other file"
    return (
        f"{SINGLE} is read; {INDEX} beside it is stale: of the {len(shards)} files that it names "
        f"{len(there) or 'none'} are there"
    )


def left_beside(path: Path, read: set[str]) -> list[str]:
    """Return a note on the weights of a directory that are not among the files read, if any."""
    names = sorted(entry.name for entry in path.iterdir() if entry.is_file())
    notes = []
    if _ADAPTER in names and _ADAPTER not in read:
        notes.append(f"{_ADAPTER} is a LoRA adapter and not merged; `jaxllama convert --lora` does")
    others = [name for name in names if name not in read and name != _ADAPTER and _is_weights(name)]
    notes += [
        f"{name} is not read: the tensors tell whether they are quantised"
        for name in names
        if name in _QUANTISERS
    ]
    if others:
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        notes.append(
            f"other weights are not read: {', '.join(others[:3])}{more}; {min(read)} "
            f"{'is' if len(read) == 1 else 'and its like are'}"
        )
    return notes


def _is_weights(name: str) -> bool:
    if name.startswith(_NO_WEIGHTS) or name.startswith("."):
        return False
    return Path(name).suffix in (".safetensors", *_OTHERS)


def _what_is_there(path: Path) -> str:
    """Say what a directory without safetensors of the usual names holds, and what to do."""
    names = sorted(entry.name for entry in path.iterdir())
    if _ADAPTER in names or ADAPTER in names:
        return (
            "it is a LoRA adapter: give the base model, with this as --lora of `jaxllama convert`"
        )
    tensors = [name for name in names if name.endswith(".safetensors")]
    if parts := [name for name in tensors if _PART.search(name)]:
        whole = max(int(found[1]) for name in parts if (found := _PART.search(name)))
        if whole > 1:
            return (
                f"it holds {parts[0]}{' ...' * (len(parts) > 1)}, {len(parts)} of {whole} files: "
                f"fetch {INDEX}" + ", and the other files" * (len(parts) < whole)
            )
    if tensors:
        return (
            f"it holds {', '.join(tensors[:3])}{' ...' * (len(tensors) > 3)}: "
            + (f"rename it to {SINGLE}" if len(tensors) == 1 else f"fetch the {INDEX} of these")
            + ", if the model is whole"
        )
    for name in names:
        if _is_weights(name):
            whose, remedy = _OTHERS[Path(name).suffix]
            return f"it holds {name} ({whose}), which is not read; {remedy}"
    for below in sorted(entry for entry in path.iterdir() if entry.is_dir()):
        if inner := next((n for n in (SINGLE, INDEX) if (below / n).is_file()), None):
            return f"but {below.name}/ holds {inner}; give that directory"
    return f"it holds {', '.join(names[:8]) or 'nothing'}; fetch the weights too"


def _to_do(name: str, shard: str, weight_map: Mapping[str, str]) -> str:
    if name in weight_map:
        return f"it is in {weight_map[name]} too, so fetch the files again, all of one release"
    return f'add "{name}": "{shard}" to its weight_map, or fetch the index again'


def _read_sharded(path: Path, weight_map: Mapping[str, str]) -> Stored:
    stored: Stored = {}
    problems, missing, shards = [], [], sorted(set(weight_map.values()))
    placed: dict[str, set[str]] = {shard: set() for shard in shards}
    for name, shard in weight_map.items():
        placed[shard].add(name)
    for shard in shards:
        try:
            file = files.inside(path, shard)
            if not file.exists() and not file.is_symlink():
                missing.append(shard)
                continue
            slots = read_header(file)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        listed = placed[shard]
        problems += [
            f"{shard}: lacks {name}, which {INDEX} places there"
            for name in sorted(listed - slots.keys())
        ]
        problems += [
            f"{shard}: holds {name}, which {INDEX} does not place there; "
            + _to_do(name, shard, weight_map)
            for name in sorted(slots.keys() - listed)
        ]
        stored |= {name: (file, slot) for name, slot in slots.items() if name in listed}
    if missing:
        problems.insert(
            0,
            f"{missing[0]}: does not exist"
            + (f", nor {', '.join(missing[1:3])}" if len(missing) > 1 else "")
            + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
            + f", {len(missing)} of {len(shards)} files that {INDEX} names; fetch them",
        )
    if problems:
        raise CheckpointError(f"{path}: " + "; ".join(summarise(problems, _SAID)))
    return stored
