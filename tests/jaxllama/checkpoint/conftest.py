"""A tiny checkpoint on disk, to be damaged in every way."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from jaxllama.checkpoint.hf.write import lay_out_hf
from jaxllama.checkpoint.samples import tiny
from jaxllama.checkpoint.stream import write_small


@pytest.fixture(scope="session")
def _written(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("written")
    checkpoint = tiny(num_hidden_layers=3)
    dtypes = {name: info.dtype for name, info in checkpoint.tensors.items()}
    write_small(checkpoint, lay_out_hf(checkpoint, dtypes), root / "single")
    write_small(checkpoint, lay_out_hf(checkpoint, dtypes, shards=4), root / "sharded")
    return root


@pytest.fixture
def single(_written, tmp_path) -> Path:
    """An HF directory with one weights file, of this test alone."""
    return Path(shutil.copytree(_written / "single", tmp_path / "single"))


@pytest.fixture
def sharded(_written, tmp_path) -> Path:
    """The same in several shards with an index."""
    return Path(shutil.copytree(_written / "sharded", tmp_path / "sharded"))
