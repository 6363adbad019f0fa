"""Orbax directories: config.json as Hugging Face's, arrays by TensorStore, or by Orbax itself.

jaxllama takes the plain files of its conversions apart by hand, and reads by TensorStore what other
programs have left: compressed, or in one store. Of these Orbax restores one array after the other.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import tensorstore

from parity.sources.hf import CONFIG, config_of, read_object
from parity.sources.source import Source

ARRAYS = Path("arrays", "state")


def open_orbax(path: Path) -> Source:
    """Open a directory with config.json and one zarr array a tensor."""
    content = read_object(path / CONFIG)
    state = (path / ARRAYS).resolve()

    def read(name: str) -> np.ndarray:
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{state}/{name}/"}}
        opened = tensorstore.open(spec, open=True, read=True).result()
        return np.asarray(opened.read().result())

    ours = not (state / "manifest.ocdbt").exists() and not _is_compressed(state)
    return Source(
        path=path,
        format="orbax",
        stated=config_of(content, CONFIG),
        hf_config=content,
        reader=read if ours else lambda name: _restored(state.parent, name),
        place=lambda name: f"{ARRAYS}: {name}",
    )


def _is_compressed(state: Path) -> bool:
    """Whether any array is; older directories, of zarr 2, count as such."""
    described = [file.read_text() for file in state.glob("*/zarr.json")]
    return not described or any('"zstd"' in one or '"blosc"' in one for one in described)


def _restored(arrays: Path, name: str) -> np.ndarray:
    import orbax.checkpoint.experimental.v1 as ocp

    logging.getLogger("absl").setLevel(logging.CRITICAL)
    stored = ocp.metadata(arrays).metadata
    wanted = dict.fromkeys(stored, ocp.PLACEHOLDER)
    wanted[name] = np.empty(stored[name].shape, stored[name].dtype)
    return np.asarray(ocp.load(arrays, wanted)[name])
