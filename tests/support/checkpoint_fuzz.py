"""Damage to the bytes and structures of checkpoints, and what becomes of it.

A damaged file is refused, found by the manifest, or read as the same weights.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

Damage = Callable[[Path, random.Random], None]
EXTREMES = [0, 1, 2**31, 2**32 - 1, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 1]
VALUES: list[Any] = [
    *(None, True, -1, 0, 1, 7, 2**31, 2**63, 10**30, 1e308, 1e-320, 0.5, "x", "8", [], [1], {}),
    *({"a": 1}, float("nan"), float("inf"), "\x00", "../x", [[[]]], 3.0, -0.0, "1e9"),
]


def _largest(directory: Path, rng: random.Random) -> Path:
    return max((f for f in directory.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)


def _any_file(directory: Path, rng: random.Random) -> Path:
    found = sorted(f for f in directory.rglob("*") if f.is_file() and "manifest" not in f.name)
    return rng.choice(found)


def _edit(path: Path, change: Callable[[bytearray], None]) -> None:
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)


def truncate(d: Path, rng: random.Random) -> None:
    path = _largest(d, rng)
    os.truncate(path, rng.choice([0, 1, 7, 8, 9, rng.randrange(path.stat().st_size)]))


def append(d: Path, rng: random.Random) -> None:
    with _largest(d, rng).open("ab") as file:
        file.write(rng.randbytes(rng.randrange(1, 100)))


def flip_in_head(d: Path, rng: random.Random) -> None:
    def change(data: bytearray) -> None:
        for _ in range(rng.choice([1, 1, 4])):
            data[rng.randrange(min(len(data), 1500))] ^= 1 << rng.randrange(8)

    _edit(_largest(d, rng), change)


def flip_anywhere(d: Path, rng: random.Random) -> None:
    def change(data: bytearray) -> None:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)

    _edit(_largest(d, rng), change)


def extreme_number(d: Path, rng: random.Random) -> None:
    def change(data: bytearray) -> None:
        at = rng.choice([0, 8, 16, 24, rng.randrange(1500), rng.randrange(1500)])
        layout = rng.choice(["<Q", "<I"])
        value = rng.choice(EXTREMES)
        struct.pack_into(layout, data, at, value % 2 ** (8 * struct.calcsize(layout)))

    _edit(_largest(d, rng), change)


def blank_a_block(d: Path, rng: random.Random) -> None:
    def change(data: bytearray) -> None:
        at, length = rng.randrange(len(data)), rng.choice([16, 512, 4096])
        data[at : at + length] = bytes([rng.choice([0, 255])]) * len(data[at : at + length])

    _edit(_largest(d, rng), change)


def move_a_block(d: Path, rng: random.Random) -> None:
    def change(data: bytearray) -> None:
        a, b, length = rng.randrange(len(data)), rng.randrange(len(data)), rng.randrange(1, 3000)
        block = data[a : a + length]
        del data[a : a + length]
        data[b:b] = block

    _edit(_largest(d, rng), change)


def replace_file(d: Path, rng: random.Random) -> None:
    path = _any_file(d, rng)
    content = path.read_bytes()
    path.unlink()
    kind = rng.randrange(6)
    if kind == 0:
        path.mkdir()
    elif kind == 1:
        outside = d.parent / "outside"
        outside.write_bytes(content)
        path.symlink_to(outside)
    elif kind == 2:
        path.symlink_to(path.name)
    elif kind == 3:
        os.mkfifo(path)
    elif kind == 4:
        path.write_bytes(rng.randbytes(rng.randrange(3000)))


def bomb(d: Path, rng: random.Random) -> None:
    path = rng.choice(sorted(d.glob("*.json")) or [_largest(d, rng)])
    content = rng.choice(
        [
            b"[" * 200_000,
            b'{"a":' * 100_000,
            b'{"vocab_size": ' + b"9" * 100_000 + b"}",
            b'{"x": "' + b"y" * 5_000_000 + b'"}',
            b"\xff\xfe{}",
            b"null",
            b'{"hidden_size": 1, "hidden_size": 2}',
        ]
    )
    path.write_bytes(content)


def change_settings(d: Path, rng: random.Random) -> None:
    path = rng.choice([p for n in ("config.json", "params.json") if (p := d / n).exists()])
    content = json.loads(path.read_text())
    key = rng.choice([*content, "unheard_of", "attention_bias"])
    if rng.random() < 0.2:
        content.pop(key, None)
    else:
        content[key] = rng.choice(VALUES)
    path.write_text(json.dumps(content))


def change_header(d: Path, rng: random.Random) -> None:
    path = rng.choice(sorted(d.glob("*.safetensors")))
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    name = rng.choice([n for n in header if n != "__metadata__"])
    fields = header[name]
    kind = rng.randrange(8)
    if kind == 0:
        fields["data_offsets"][rng.randrange(2)] = rng.choice([*EXTREMES, -1, 0.5, "3", None])
    elif kind == 1:
        fields["shape"] = rng.choice([[], [10**12], [2**63, 2], [-1, 4], [1] * 99, ["3"], None])
    elif kind == 2:
        fields["dtype"] = rng.choice(["I8", "F64", "F99", None, "BF16", [], "F8_E4M3"])
    elif kind == 3:
        header[rng.choice(["x", "../x", name + ".bias", ""])] = header.pop(name)
    elif kind == 4:
        other = rng.choice([n for n in header if n not in (name, "__metadata__")])
        header[name], header[other] = header[other], fields
    elif kind == 5:
        header["copy.of.it"] = fields
    elif kind == 6:
        header["__metadata__"] = rng.choice(VALUES)
    else:
        fields["shape"] = fields["shape"][::-1] if len(fields["shape"]) > 1 else [8, 12]
    text = json.dumps(header).encode()
    if rng.random() < 0.1:
        text = text[:-1] + b"," + json.dumps({name: fields}).encode()[1:]
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def change_index(d: Path, rng: random.Random) -> None:
    path = d / "model.safetensors.index.json"
    content = json.loads(path.read_text())
    places = content["weight_map"]
    name = rng.choice(list(places))
    shutil.copy(d / places[name], d.parent / "outside.safetensors")
    wrong = ["../outside.safetensors", str(d.parent / "outside.safetensors"), "", ".", "..", "/"]
    wrong += ["no\x00name", "x" * 5000, "none.safetensors", "config.json", 3, None, ["a"]]
    kind = rng.randrange(4)
    if kind == 0:
        places[name] = rng.choice(wrong)
    elif kind == 1:
        del places[name]
    elif kind == 2:
        places["unheard.of"] = places[name]
    else:
        content["weight_map"] = rng.choice(VALUES)
    path.write_text(json.dumps(content))


def not_a_number(d: Path, rng: random.Random) -> None:
    """Put NaN into the last float32 of the file, which is a weight."""
    _edit(_largest(d, rng), lambda data: data.__setitem__(slice(-4, None), b"\xff\xff\xff\x7f"))


class Evil:
    def __init__(self, place: Path):
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.place),)


def evil_pickle(d: Path, rng: random.Random) -> None:
    import torch

    path, evil = d / "consolidated.00.pth", Evil(d.parent / "ran")
    kind = rng.randrange(4)
    if kind == 0:
        path.write_bytes(pickle.dumps(evil))
    elif kind == 1:
        torch.save({"norm.weight": evil}, path)
    elif kind == 2:
        torch.save({**torch.load(path, weights_only=True), "x": evil}, path)
    else:
        torch.save(evil, path, _use_new_zipfile_serialization=False)


def other_state(d: Path, rng: random.Random) -> None:
    import torch

    path = d / "consolidated.00.pth"
    state = torch.load(path, weights_only=True)
    name = rng.choice(list(state))
    kind = rng.randrange(6)
    if kind == 0:
        del state[name]
    elif kind == 1:
        state[name] = torch.zeros(1).expand(10**6, 10**6)
    elif kind == 2:
        state[name] = state[name].to(torch.int8)
    elif kind == 3:
        state[name] = state[name] * float("nan")
    elif kind == 4:
        state = {n: t for n, t in state.items() if n != name} | {name + "x": state[name]}
    else:
        state[name] = rng.choice([None, 3, "x", [1], {"a": 2}])
    torch.save(state, path)


def delete_file(d: Path, rng: random.Random) -> None:
    _any_file(d, rng).unlink()


COMMON: list[Damage] = [truncate, append, flip_in_head, flip_anywhere, extreme_number]
COMMON += [blank_a_block, move_a_block, replace_file, delete_file]
DAMAGE: dict[str, list[Damage]] = {
    "hf": [*COMMON, bomb, change_settings, change_header, not_a_number],
    "sharded": [replace_file, delete_file, bomb, change_header, change_index, change_index],
    "split": [*COMMON, replace_file, delete_file],
    "gguf": [*COMMON, extreme_number, flip_in_head, not_a_number],
    "meta": [*COMMON, bomb, change_settings, evil_pickle, other_state],
    "orbax": [truncate, flip_anywhere, replace_file, delete_file, bomb, change_settings],
}


def outcome(original: Any, directory: Path) -> str:
    """Return `refused`, `manifest` or `same`, or what else happened."""
    from jaxllama.checkpoint import check_manifest, convert, open_checkpoint, validate, verify
    from jaxllama.errors import JaxLlamaError

    try:
        checkpoint = open_checkpoint(directory)
        validate(checkpoint)
        convert(checkpoint, directory.parent / "converted", to="hf")
    except JaxLlamaError as error:
        return "refused" if len(str(error)) < 20_000 else f"flood: {str(error)[:200]}"
    try:
        check_manifest(checkpoint)
    except JaxLlamaError:
        return "manifest"
    found = verify(original, checkpoint)
    # A tokenizer that was damaged is said when it is asked for; this is about the weights.
    numbers = [one for one in found.config if not one.startswith(("tokenizer", "generation"))]
    return "silent: other weights" if found.differences or numbers else "same"


def write_whole(work: Path, form: str) -> tuple[Any, Path]:
    """Return a small checkpoint and where it is written whole, with its manifest."""
    from jaxllama.checkpoint import convert, tiny

    original = tiny(
        num_hidden_layers=1, num_attention_heads=4, hidden_size=64, intermediate_size=72
    )
    to, shards = {"sharded": ("hf", 3), "split": ("gguf", 3)}.get(form, (form, None))
    convert(original, work / form, to=to, shards=shards)
    assert outcome(original, work / form) == "same"
    shutil.rmtree(work / "converted")
    return original, work / form
