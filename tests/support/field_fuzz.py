"""Files of every format spoilt at random, each seeded, and what becomes of them.

A spoilt file is *refused* (in at most a dozen lines), read as the *same* model and tokenizer, or as
another one with a *note*. Anything else is wrong: an exception that is not the project's, an
endless message, or a *silent* pass. What another sound file could hold is not among the
mutations: a weight's value, a number that is in range, a text of the vocabulary.
"""

from __future__ import annotations

import dataclasses
import json
import random
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import field_files as ff

from jaxllama.checkpoint import open_checkpoint
from jaxllama.checkpoint.checks import head_problems, raise_problems, structure_problems
from jaxllama.checkpoint.info import describe
from jaxllama.checkpoint.manifest import digest
from jaxllama.errors import JaxLlamaError
from jaxllama.tokenizer import Tokenizer

MOST_LINES, LONGEST = 12, 3000
# Absent, each has a meaning that sound files make use of.
_OPTIONAL = {"rope_scaling", "use_scaled_rope", "rope_scaling_factor", "head_dim"}
_OPTIONAL |= {"chat_template", "max_position_embeddings"}
_INFORMATIVE = ("max_position_embeddings", "bos_token_id", "eos_token_ids", "pad_token_id")
_TEXTS = ("Hello, world!", "  two\n\nlines", "<|begin_of_text|>x<|pad|>", "naïve 東京")
_JSON = {
    "hf": ("config.json", "tokenizer_config.json", "generation_config.json"),
    "sharded": ("config.json", ff.INDEX),
    "meta": ("params.json", "tokenizer_config.json"),
    "orbax": ("config.json",),
}
Mutation = Callable[[Path, str, random.Random], None]


def _file(place: Path, form: str, rng: random.Random) -> Path:
    """Choose any file that is read as a whole or by its head."""
    if place.is_file():
        return place
    names = {file.name for file in place.iterdir() if file.is_file()}
    return place / rng.choice(sorted(names - {"special_tokens_map.json"}))


def strange(place: Path, form: str, rng: random.Random) -> None:
    """Put something else in a file's place."""
    file = _file(place, form, rng)
    kinds = [kind for kind in ff.STRANGERS if (kind, file.suffix) != ("zip", ".pth")]
    ff.replace_file(file, ff.STRANGERS[rng.choice(kinds)][0])


def directory(place: Path, form: str, rng: random.Random) -> None:
    """Put a directory in a file's place."""
    file = _file(place, form, rng)
    file.unlink()
    file.mkdir()


def cut(place: Path, form: str, rng: random.Random) -> None:
    """Drop the end of a file."""
    file = _file(place, form, rng)
    data = file.read_bytes()
    file.write_bytes(data[: rng.randrange(len(data))])


def break_text(place: Path, form: str, rng: random.Random) -> None:
    """Spoil the structure or the encoding of a text file, or of a file's head."""
    file = _file(place, form, rng)
    while file.suffix == ".pth":  # has none
        file = _file(place, form, rng)
    data = bytearray(file.read_bytes())
    head = {".safetensors": 8 + data[0] + 256 * data[1], ".gguf": 300}.get(file.suffix, len(data))
    places = [i for i, byte in enumerate(data[:head]) if byte in b'{}[]:,"_']
    data[rng.choice(places or [0])] = rng.choice(b"\xff\x00{]")
    file.write_bytes(data)


def _object(place: Path, form: str, rng: random.Random) -> tuple[Path, dict[str, Any]]:
    file = place / rng.choice(_JSON[form])
    return file, json.loads(file.read_text())


def _key(content: dict[str, Any], rng: random.Random) -> str:
    return rng.choice(sorted(content.keys() - _OPTIONAL))


def drop_field(place: Path, form: str, rng: random.Random) -> None:
    file, content = _object(place, form, rng)
    del content[_key(content, rng)]
    file.write_text(json.dumps(content))


def null_field(place: Path, form: str, rng: random.Random) -> None:
    file, content = _object(place, form, rng)
    content[_key(content, rng)] = None
    file.write_text(json.dumps(content))


def misspell(place: Path, form: str, rng: random.Random) -> None:
    file, content = _object(place, form, rng)
    name = rng.choice(sorted(content))
    at = rng.randrange(len(name))
    content[name[:at] + name[at + 1 :] + "x"] = content.pop(name)
    file.write_text(json.dumps(content))


def add_field(place: Path, form: str, rng: random.Random) -> None:
    file, content = _object(place, form, rng)
    names = [
        "alibi",
        "attention_multiplier",
        "quantization",
        "quantization_config",
        "sliding_window",
    ]
    names += ["use_qk_norm", "num_experts", "rope_scaling_type", "moe", "bias", "lora_args", "Dim"]
    for name in rng.sample(names, rng.choice([1, 1, 6])):
        content[name] = rng.choice([True, 7, 0.5, "linear", {"bits": 4}, [1, 2]])
    file.write_text(json.dumps(content))


def retype(place: Path, form: str, rng: random.Random) -> None:
    file, content = _object(place, form, rng)
    name = rng.choice(sorted(content))
    kinds: list[Any] = [str(content[name]), [content[name]], {"a": content[name]}, -1, True]
    kinds += [float("nan"), 10**40, "\x00", [[]], 1e308]
    wrong = rng.choice([k for k in kinds if type(k) is not type(content[name]) or k == -1])
    content[name] = wrong
    file.write_text(json.dumps(content))


def twice(place: Path, form: str, rng: random.Random) -> None:
    file, content = _object(place, form, rng)
    name = rng.choice(sorted(content))
    file.write_text(json.dumps(content)[:-1] + f', {json.dumps(name)}: "again"}}')


def lose_a_file(place: Path, form: str, rng: random.Random) -> None:
    names = sorted(f.name for f in place.iterdir() if f.suffix in (".safetensors", ".pth"))
    names += [name for name in _JSON[form] if not name.startswith(("tokenizer", "generation"))]
    (place / rng.choice(names)).unlink()


def rename_tensors(place: Path, form: str, rng: random.Random) -> None:
    found = ff.tensors(place)
    kind = rng.randrange(4)
    one = rng.choice(sorted(found))
    prefix = rng.choice(["_orig_mod.", "module.", "model.", "x.y.", "base_model.model."])
    if kind == 0:
        found = {prefix + name: values for name, values in found.items()}
    elif kind == 1:
        found[prefix + one] = found.pop(one)
    elif kind == 2:
        found[one.replace("weight", rng.choice(["scales", "qweight", "lora_A.weight"]))] = found[
            one
        ]
    else:
        found[prefix + one] = found[one] + 1
    ff.store(place, found)


def retype_tensor(place: Path, form: str, rng: random.Random) -> None:
    found = ff.tensors(place)
    one = rng.choice(sorted(found))
    kinds = [lambda v: v.astype("i1"), lambda v: v.astype("u4"), lambda v: v[..., :-1]]
    kinds += [lambda v: v.reshape(-1), lambda v: v[None]]
    found[one] = rng.choice(kinds)(found[one]).copy()
    ff.store(place, found)


def second_answer(place: Path, form: str, rng: random.Random) -> None:
    """Put a second set of weights, or another format's settings, beside the first."""
    found = {name: values + 1 for name, values in ff.tensors(place).items()}
    kind = rng.randrange(4)
    if kind == 0:
        ff.shard(place, found)
    elif kind == 1:
        ff.shard(place, found)[0].unlink()
    elif kind == 2:
        (place / "consolidated.00.pth").write_bytes(b"PK\x03\x04")
    else:
        (place / "params.json").write_text('{"dim": 7}')


def misspell_key(place: Path, form: str, rng: random.Random) -> None:
    """Change a letter of a key in a GGUF file's metadata."""
    data = bytearray(place.read_bytes())
    keys = list(re.finditer(rb"(llama|tokenizer\.ggml|jaxllama)\.[a-z_.]{3,40}", data))
    chosen = rng.choice([m for m in keys if m.start() < len(data) // 2])
    data[chosen.end() - 1] = ord("z")
    place.write_bytes(data)


def change_number(place: Path, form: str, rng: random.Random) -> None:
    """Overwrite a count, a length, a type or an offset in the head of a binary file."""
    file = place if place.is_file() else rng.choice(sorted(place.glob("*.safetensors")))
    data = bytearray(file.read_bytes())
    value = rng.choice([0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1])
    struct.pack_into("<Q", data, rng.choice([0, 8, 16]), value)
    file.write_bytes(data)


_FILES: list[Mutation] = [strange, strange, cut, break_text]
_FIELDS: list[Mutation] = [drop_field, null_field, misspell, add_field, retype, twice]
_TENSORS: list[Mutation] = [lose_a_file, rename_tensors, rename_tensors, retype_tensor]
_TENSORS += [second_answer, change_number]
MUTATIONS: dict[str, list[Mutation]] = {
    "hf": [*_FILES, directory, *_FIELDS, *_FIELDS, *_TENSORS],
    "sharded": [*_FILES, directory, *_FIELDS, lose_a_file, change_number],
    "meta": [*_FILES, directory, *_FIELDS, lose_a_file],
    "orbax": [strange, directory, *_FIELDS],
    "gguf": [*_FILES, directory, change_number, misspell_key, misspell_key, misspell_key],
}


@dataclasses.dataclass(frozen=True)
class Read:
    """What a checkpoint was read as.

    Attributes:
        means: all that decides logits and token ids.
        notes: what was said of it.
    """

    means: dict[str, Any]
    notes: frozenset[str]


def read(place: Path) -> Read:
    """Read all of a checkpoint; raises what its readers raise."""
    checkpoint = open_checkpoint(place)
    raise_problems(checkpoint, structure_problems(checkpoint) or head_problems(checkpoint))
    means: dict[str, Any] = {n: digest(checkpoint.read(n)) for n in checkpoint.tensors}
    for name, value in vars(checkpoint.config).items():
        if name not in _INFORMATIVE:
            means[name] = value
    info = describe(checkpoint)
    raise_problems(checkpoint, list(info.problems))
    if checkpoint.tokenizer_loader is not None:
        means |= _tokens(checkpoint.tokenizer())
    return Read(means, frozenset(info.odd))


def _tokens(tokenizer: Tokenizer) -> dict[str, Any]:
    found: dict[str, Any] = {text: tokenizer.encode(text) for text in _TEXTS}
    return found | {"ends": tokenizer.eos_ids, "bos": tokenizer.bos_id}


def outcome(whole: Read, place: Path) -> str:
    """Return `refused`, `same` or `noted`, or what is wrong."""
    try:
        found = read(place)
    except JaxLlamaError as error:
        said = str(error)
        short = len(said.splitlines()) <= MOST_LINES and len(said) <= LONGEST
        return "refused" if short else f"flood: {said[:400]}"
    if found.means == whole.means:
        return "same"
    if found.notes - whole.notes:
        return "noted"
    changed = [k for k in whole.means if found.means.get(k) != whole.means[k]]
    return f"silent: {changed[:4]}"


def write_whole(work: Path, form: str) -> Path:
    """Write a sound checkpoint of a form, and return where."""
    if form == "gguf":
        return ff.write(ff.sound(), work / "model.gguf", "gguf")
    to, options = ("hf", {"shards": 3}) if form == "sharded" else (form, {})
    whole = ff.write(ff.sound(), work / form, to, **options)
    if form == "hf":
        settings = {"bos_token_id": 256, "eos_token_id": [257], "temperature": 0.6}
        (whole / "generation_config.json").write_text(json.dumps(settings))
    return whole
