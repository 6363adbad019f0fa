"""What an adapter's manifest covers is compared before the adapter is merged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapters import write_adapter
from typer.testing import CliRunner

from jaxllama.checkpoint import Checkpoint, convert, tiny
from jaxllama.checkpoint.lora import merge_lora, save_lora
from jaxllama.cli import app
from jaxllama.errors import CheckpointError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MANIFEST = "jaxllama_manifest.json"
Q = "model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def base() -> Checkpoint:
    return tiny(num_hidden_layers=1)


@pytest.fixture
def adapter(base: Checkpoint, tmp_path: Path) -> Path:
    rows, columns = base.tensors[f"{Q}.weight"].shape
    pair = np.ones((3, columns), np.float32), np.ones((rows, 3), np.float32)
    return save_lora({f"{Q}.weight": pair}, base.config, tmp_path / "adapter", alpha=6)


def edit(name: str, change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def edited(adapter: Path) -> None:
        content = json.loads((adapter / name).read_text())
        change(content)
        (adapter / name).write_text(json.dumps(content))

    return edited


def flip(adapter: Path) -> None:
    data = bytearray((adapter / WEIGHTS).read_bytes())
    data[-2] ^= 1
    (adapter / WEIGHTS).write_bytes(data)


def rename_a_factor(adapter: Path) -> None:
    data = (adapter / WEIGHTS).read_bytes()
    (adapter / WEIGHTS).write_bytes(data.replace(b"q_proj.lora_A", b"o_proj.lora_A"))


def link_out(adapter: Path) -> None:
    shutil.move(adapter / MANIFEST, adapter.parent / "elsewhere")
    (adapter / MANIFEST).symlink_to(adapter.parent / "elsewhere")


CHANGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a bit": (flip, r"lora_B.weight: digest \w+, recorded"),
    "alpha": (edit(CONFIG, lambda c: c.update(lora_alpha=7)), "adapter_config.json: was changed"),
    "a name": (rename_a_factor, "o_proj.lora_A.weight: not in the manifest"),
    "digests": (edit(MANIFEST, lambda c: c["tensors"].clear()), "not in the manifest"),
    "one more": (edit(MANIFEST, lambda c: c["tensors"].update(x="0")), "x: in the manifest, not"),
    "damage": (lambda adapter: (adapter / MANIFEST).write_text("{"), "not valid JSON"),
    "link": (link_out, "lies outside the directory"),
    "climbing": (edit(MANIFEST, lambda c: c["files"].update({"../x": "0"})), "lies outside"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_what_was_changed_is_not_merged(base: Checkpoint, adapter: Path, kind: str) -> None:
    change, said = CHANGES[kind]
    merge_lora(base, adapter)
    change(adapter)
    with pytest.raises(CheckpointError, match=said):
        merge_lora(base, adapter)
    again = CliRunner().invoke(app, ["verify", str(adapter), "--manifest"])
    assert again.exit_code == 2


def test_the_command_verifies_one(adapter: Path) -> None:
    done = CliRunner().invoke(app, ["verify", str(adapter), "--manifest"])
    assert (done.exit_code, done.output) == (0, f"equal: {adapter} is as its manifest says\n")


def test_one_without_a_manifest_and_one_within_a_checkpoint(
    base: Checkpoint, adapter: Path, tmp_path: Path
) -> None:
    write_adapter(tmp_path / "theirs", base, [Q])
    merge_lora(base, tmp_path / "theirs")
    done = CliRunner().invoke(app, ["verify", str(tmp_path / "theirs"), "--manifest"])
    assert done.exit_code == 2  # there is none
    whole = convert(base, tmp_path / "whole", to="hf").target
    for name in (CONFIG, WEIGHTS):
        shutil.copy(adapter / name, whole)
    merge_lora(base, whole)  # the manifest there is the checkpoint's
    for name in (CONFIG, WEIGHTS):
        (whole / name).replace(adapter / name)
    shutil.copy(whole / MANIFEST, adapter)
    done = CliRunner().invoke(app, ["verify", str(adapter), "--manifest"])
    assert done.exit_code == 2
