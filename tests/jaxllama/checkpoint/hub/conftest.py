from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from huggingface_hub import constants

from jaxllama.checkpoint import Checkpoint, convert, tiny


@pytest.fixture(scope="session")
def model() -> Checkpoint:
    return tiny(num_hidden_layers=2)


@pytest.fixture(scope="session")
def files(model: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, bytes]:
    """Return a repository as publishers have them: two shards, and the same in other formats."""
    made = tmp_path_factory.mktemp("made")
    convert(model, made / "hf", to="hf", shards=2)
    convert(model, made / "meta", to="meta")
    found = {file.name: file.read_bytes() for file in (made / "hf").iterdir()}
    found |= {f"original/{file.name}": file.read_bytes() for file in (made / "meta").iterdir()}
    return found | {"README.md": b"# A model", "pytorch_model.bin": b"\x80\x02"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the cache that these tests have for their own; the network is forbidden."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home" / "hub"


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Let the library use the network, which is the loopback alone."""
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return monkeypatch
