"""Orbax directories: config.json as Hugging Face's, arrays by TensorStore."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tensorstore

from parity.sources.hf import CONFIG, config_of, read_object
from parity.sources.source import Source

ARRAYS = Path("arrays", "state")


def open_orbax(path: Path) -> Source:
    """Open a directory with config.json and one zarr array a tensor."""
    content = read_object(path / CONFIG)
    state = (path / ARRAYS).resolve()
    base = {"driver": "file", "path": f"{state}/"}

    def read(name: str) -> np.ndarray:
        store: dict[str, Any] = {**base, "path": f"{state}/{name}/"}
        if (state / "manifest.ocdbt").exists():  # all arrays in one store, as Orbax does by itself
            store = {"driver": "ocdbt", "base": base, "path": f"{name}/"}
        spec = {"driver": "zarr3", "kvstore": store}
        opened = tensorstore.open(spec, open=True, read=True).result()
        return np.asarray(opened.read().result())

    return Source(
        path=path,
        format="orbax",
        stated=config_of(content, CONFIG),
        hf_config=content,
        reader=read,
        place=lambda name: f"{ARRAYS}: {name}",
    )
