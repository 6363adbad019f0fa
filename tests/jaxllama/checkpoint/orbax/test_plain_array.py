from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import tensorstore

from jaxllama.checkpoint.orbax.lengths import crc32c
from jaxllama.checkpoint.orbax.plain_array import PlainArray, read_description
from jaxllama.errors import CheckpointError

_INDEX = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]


def stored(
    directory: Path, values: np.ndarray, cell, piece, codecs=_INDEX[:1]
) -> PlainArray | None:
    """Let TensorStore write an array, and describe it."""
    sharded = {"chunk_shape": piece, "codecs": codecs, "index_codecs": _INDEX}
    spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": f"{directory}/"},
        "metadata": {
            "shape": values.shape,
            "data_type": values.dtype.name,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": cell}},
            "codecs": [{"name": "sharding_indexed", "configuration": sharded}],
        },
    }
    tensorstore.open(spec, create=True).result().write(values).result()
    return read_description(directory, json.loads((directory / "zarr.json").read_text()))


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize(
    ("shape", "cell", "piece"),
    [
        ((7,), (7,), (7,)),
        ((8,), (4,), (2,)),
        ((12, 10), (12, 10), (12, 10)),
        ((12, 10), (4, 10), (4, 10)),  # rows: read in place
        ((12, 10), (6, 10), (2, 10)),
        ((12, 10), (6, 5), (3, 5)),
        ((13, 11), (8, 6), (8, 6)),  # over both edges
        ((8, 6, 4), (4, 6, 4), (2, 2, 4)),
    ],
)
def test_what_tensorstore_writes(shape, cell, piece, dtype, tmp_path):
    values = (np.arange(np.prod(shape)) % 250 + 1).reshape(shape).astype(dtype)
    array = stored(tmp_path, values, cell, piece)
    assert (array.shape, array.dtype) == (shape, dtype)
    assert np.array_equal(array.read(), values)


def test_other_ways_to_store_are_left_to_tensorstore(tmp_path):
    values = np.ones((4, 6), np.float32)
    assert stored(tmp_path / "plain", values, (4, 6), (4, 6)) is not None
    squeezed = [*_INDEX[:1], {"name": "zstd", "configuration": {"level": 3}}]
    assert stored(tmp_path / "zstd", values, (4, 6), (4, 6), squeezed) is None
    big = [{"name": "bytes", "configuration": {"endian": "big"}}]
    assert stored(tmp_path / "big", values, (4, 6), (4, 6), big) is None
    turned = [{"name": "transpose", "configuration": {"order": [1, 0]}}, *_INDEX[:1]]
    assert stored(tmp_path / "turned", values, (4, 6), (4, 6), turned) is None
    assert stored(tmp_path / "over", np.ones((5, 6), np.float32), (4, 6), (2, 6)) is None
    assert stored(tmp_path / "ints", values.astype(np.int32), (4, 6), (4, 6)) is None


def summed(raw: bytes) -> bytes:
    """Add the checksum of an index of two pieces."""
    return raw + crc32c(raw[-32:]).to_bytes(4, "little")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda raw: raw[:-1], "bytes, expected"),
        (lambda raw: raw + b"\0", "bytes, expected"),
        (lambda raw: b"", "bytes, expected"),
        (lambda raw: raw[:-20] + b"\x08" + raw[-19:], "checksum .* of its index"),
        (lambda raw: raw[:-1] + bytes([raw[-1] ^ 1]), "checksum .* of its index"),
        (lambda raw: summed(raw[:-20] + b"\x08" + raw[-19:-4]), "do not lie where its index says"),
        (lambda raw: summed(raw[:-12] + b"\x08" + raw[-11:-4]), "do not lie where its index says"),
        (lambda raw: summed(raw[:-36] + raw[-20:-4] * 2), "do not lie where its index says"),
    ],
)
def test_damage_is_seen(spoil, said, tmp_path):
    array = stored(tmp_path, np.ones((4, 6), np.float32), (4, 6), (2, 6))
    file = tmp_path / "c" / "0" / "0"
    array.read()
    file.write_bytes(spoil(file.read_bytes()))
    with pytest.raises(CheckpointError, match=said):
        array.read()
    file.unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        array.read()
