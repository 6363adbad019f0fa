"""A byte left out of a file of arrays, or put in, is never read as other weights."""

from __future__ import annotations

import json
import random
import shutil

import jax
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
import pytest
import tensorstore
from jax.sharding import SingleDeviceSharding

from jaxllama.checkpoint.orbax import arrays, lengths, plain_array
from jaxllama.checkpoint.orbax.arrays import ArrayStore
from jaxllama.checkpoint.orbax.lengths import crc32c
from jaxllama.checkpoint.orbax.read import context, restore_sharded
from jaxllama.errors import CheckpointError

_RNG = np.random.default_rng(0)
VALUES = {
    "w": _RNG.normal(size=(40, 60)).astype(np.float32),
    "v": _RNG.normal(size=(24, 10)).astype(np.float32),
}
_BYTES = {"name": "bytes", "configuration": {"endian": "little"}}
_ZSTD = {"name": "zstd", "configuration": {"level": 3}}
_BLOSC = {"name": "blosc", "configuration": {"cname": "lz4", "clevel": 1, "shuffle": "noshuffle"}}
_CRC = {"name": "crc32c"}


def _sharded(codecs, index=(_BYTES, _CRC), location="end"):
    piece = {"chunk_shape": [4, 10], "codecs": list(codecs), "index_codecs": list(index)}
    return [{"name": "sharding_indexed", "configuration": piece | {"index_location": location}}]


# How Orbax may be told to save: (in one OCDBT store, as zarr 3, compressed).
SAVED = {
    "as ours": (False, True, False),
    "zarr 3, compressed": (False, True, True),
    "zarr 2": (False, False, False),
    "zarr 2, compressed": (False, False, True),
    "store, zarr 3": (True, True, False),
    "store, zarr 3, compressed": (True, True, True),
    "store, zarr 2": (True, False, False),
    "store, zarr 2, compressed": (True, False, True),
}
# Codecs that arrays are written anew with, as other writers may.
REWRITTEN = {
    "one piece a file": [_BYTES],
    "one piece a file, zstd": [_BYTES, _ZSTD],
    "one piece a file, blosc": [_BYTES, _BLOSC],
    "several pieces a file": _sharded([_BYTES]),
    "several pieces a file, the index first": _sharded([_BYTES], location="start"),
    "several pieces a file, no checksum": _sharded([_BYTES], index=[_BYTES]),
    "several pieces a file, zstd": _sharded([_BYTES, _ZSTD]),
    "several pieces a file, big-endian": _sharded([_BYTES | {"configuration": {"endian": "big"}}]),
}


def _save(directory, values, in_store, newer, compressed):
    saving = context()
    saving.array.saving.use_ocdbt = in_store
    saving.array.saving.use_zarr3 = newer
    saving.array.saving.use_compression = compressed
    with saving:
        ocp.save(directory, values)


def _saved(directory, form):
    in_store, newer, compressed = SAVED.get(form, (False, True, False))
    _save(directory, VALUES, in_store, newer, compressed)
    if form in SAVED:
        return
    for name, values in VALUES.items():
        place = directory / "state" / name
        shutil.rmtree(place)
        spec = {
            "driver": "zarr3",
            "kvstore": {"driver": "file", "path": f"{place}/"},
            "metadata": {
                "shape": values.shape,
                "data_type": "float32",
                "chunk_grid": {
                    "name": "regular",
                    "configuration": {"chunk_shape": [20, 20] if name == "w" else [8, 10]},
                },
                "codecs": REWRITTEN[form],
            },
        }
        tensorstore.open(spec, create=True).result().write(values).result()


def _damage(content, kind, at):
    return {
        "out": content[:at] + content[at + 1 :],
        "in": content[:at] + b"\x35" + content[at:],
        "exchanged": content[: at // 2] + content[at // 2 + 1 : at] + b"\x35" + content[at:],
        "cut": content[:-1],
        "more": content + b"\0",
    }[kind]


def _equal(found):
    return all(np.array_equal(found[name], values) for name, values in VALUES.items())


def _read(directory):
    store = ArrayStore(directory)
    return {name: store.read(name) for name in VALUES}


def _restored(path):
    here = SingleDeviceSharding(jax.devices()[0])
    return restore_sharded(path, lambda name, shape: here)


def _outcomes(root, tries, read):
    """Damage one file after the other; return how often it was seen, and how often it was not."""
    rng, seen, silent = random.Random(5), 0, 0
    data = [
        file
        for file in sorted((root / "arrays" / "state").rglob("*"))
        if file.is_file() and file.name not in ("zarr.json", ".zarray", "_METADATA")
    ]
    for number in range(tries):
        file, kind = rng.choice(data), ("out", "in", "cut", "more")[number % 4]
        content = file.read_bytes()
        file.write_bytes(_damage(content, kind, rng.randrange(len(content))))
        try:
            silent += not _equal(read(root))
        except CheckpointError:
            seen += 1
        file.write_bytes(content)
    return seen, silent


@pytest.mark.parametrize("form", [*SAVED, *REWRITTEN])
def test_a_byte_left_out_or_put_in_is_seen(tmp_path, form):
    _saved(tmp_path / "arrays", form)
    assert _equal(_read(tmp_path / "arrays")) and _equal(_restored(tmp_path))
    seen, silent = _outcomes(tmp_path, 40, lambda root: _read(root / "arrays"))
    assert seen > 8 and silent == 0


@pytest.mark.parametrize("form", ["as ours", "several pieces a file", "store, zarr 2"])
def test_nothing_is_restored_shifted(tmp_path, form):
    _saved(tmp_path / "arrays", form)
    seen, silent = _outcomes(tmp_path, 12, _restored)
    assert seen > 3 and silent == 0


@pytest.mark.parametrize("form", ["several pieces a file", "store, zarr 2"])
def test_without_the_check_it_would_not_be_seen(tmp_path, form, monkeypatch):
    _saved(tmp_path / "arrays", form)
    monkeypatch.setattr(arrays, "check_files", lambda *_: None)
    monkeypatch.setattr(arrays, "check_store", lambda *_: None)
    monkeypatch.setattr(arrays, "read_description", lambda *_: None)
    # Of 40 damages to a store, whose files have random names, none may have met values.
    _, silent = _outcomes(tmp_path, 400, lambda root: _read(root / "arrays"))
    assert silent > 0


def test_a_store_of_many_versions(tmp_path):
    """As many saves leave it: nodes of older versions lie beside those of the last."""
    many = {f"a{i:03}": np.full((3, 5), i, np.float32) for i in range(150)} | VALUES
    _save(tmp_path / "arrays", many, *SAVED["store, zarr 2"])
    store = ArrayStore(tmp_path / "arrays")
    assert all(np.array_equal(store.read(name), values) for name, values in many.items())


def test_the_checksum_of_an_index_is_compared(tmp_path):
    assert crc32c(b"123456789") == 0xE3069283  # the check value of its definition
    _saved(tmp_path / "arrays", "as ours")
    file = tmp_path / "arrays" / "state" / "w" / "c" / "0" / "0"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"checksum [0-9a-f]{8} of its index"):
        _read(tmp_path / "arrays")


def test_ours_are_read_as_plain_files(tmp_path):
    _saved(tmp_path / "arrays", "as ours")
    about = json.loads((tmp_path / "arrays/state/w/zarr.json").read_text())
    assert plain_array.read_description(tmp_path, about) is not None
    assert lengths.check_files(tmp_path / "arrays/state/w", about) is None
