"""Names and texts of files reach no terminal as it would obey them, nor as lines of their own."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import field_files
import gguf
import numpy as np
import pytest
import records
import token_files
import torch

from jaxllama import cli
from jaxllama.command_line.streams import EscapedText
from jaxllama.tokenizer import Tokenizer
from parity import cli as parity_cli
from parity.report import json_file

# A title, a cleared screen, reversed text, and a verdict of its own on a line begun anew.
FORGED = "equal: forged"
HOSTILE = f"x\x1b]0;t\x07\x1b[2J\x9b1A\u202e\r\n{FORGED}"
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")

Spoil = Callable[[Path], Any]


def renamed(directory: Path) -> None:
    field_files.rename(directory, lambda name: HOSTILE if "norm" in name else name)


def in_index(directory: Path) -> None:
    field_files.shard(directory, field_files.tensors(directory))
    index = directory / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"] |= {HOSTILE: HOSTILE}
    index.write_text(json.dumps(content))


def keyed(name: str, *inner: str) -> Spoil:
    def spoil(directory: Path) -> None:
        file = directory / name
        content = json.loads(file.read_text()) if file.exists() else {}
        within = content
        for key in inner:
            within = within[key]
        within[HOSTILE] = HOSTILE
        file.write_text(json.dumps(content))

    return spoil


def valued(name: str, key: str) -> Spoil:
    return lambda directory: field_files.edit(directory / name, **{key: HOSTILE})


SPOILT: dict[str, Spoil] = {
    "tensor": renamed,
    "index": in_index,
    "config key": keyed("config.json"),
    "architecture": valued("config.json", "model_type"),
    "dtype": valued("config.json", "dtype"),
    "rope key": keyed("config.json", "rope_scaling"),
    "generation key": keyed("generation_config.json"),
    "tokenizer key": keyed("tokenizer_config.json"),
    "tokenizer class": valued("tokenizer_config.json", "tokenizer_class"),
    "tokens": keyed("tokenizer.json", "model", "vocab"),
    "no json": lambda directory: (directory / "config.json").write_text(HOSTILE),
    "file": lambda directory: (directory / f"{HOSTILE}.safetensors").write_bytes(b""),
}


def said(main: Callable[[list[str]], Any], arguments: list[str]) -> tuple[int, str]:
    """Return what a command ends with, and all that it writes."""
    below = io.BytesIO()
    stream = EscapedText(below, encoding="utf-8", errors="replace", write_through=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        patch.setattr(sys, "stderr", stream)
        try:
            main(arguments)
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
    return code, below.getvalue().decode()


def is_harmless(text: str) -> bool:
    lines = [line.strip(" -│") for line in text.splitlines()]
    return not (OBEYED.search(text) or any(line.startswith(FORGED) for line in lines))


def test_what_is_looked_for_is_seen() -> None:
    assert not is_harmless("a\x1b[2J") and not is_harmless(f"a\n  - {FORGED}")
    assert is_harmless(f"a\n b {FORGED}")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = field_files.write(field_files.sound(), tmp_path_factory.mktemp("whole") / "model")
    token_files.write_tokenizer(directory)
    return directory


def copied(whole: Path, to: Path) -> Path:
    to.mkdir()
    for file in whole.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


@pytest.mark.parametrize("kind", SPOILT)
@pytest.mark.parametrize("command", ["info", "convert"])
def test_names_of_a_checkpoint(whole: Path, tmp_path: Path, kind: str, command: str) -> None:
    directory = copied(whole, tmp_path / "model")
    SPOILT[kind](directory)
    more = [str(tmp_path / "out"), "--to", "hf"] if command == "convert" else []
    code, text = said(cli.app, [command, str(directory), *more])
    assert code in (0, 2) and is_harmless(text), text


def test_names_in_gguf_and_pth(whole: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(file, HOSTILE)
    writer.add_string(HOSTILE, HOSTILE)
    writer.add_tensor(HOSTILE, np.zeros((2, 2), np.float32))
    for write in ("write_header_to_file", "write_kv_data_to_file", "write_tensors_to_file"):
        getattr(writer, write)()
    writer.close()
    meta = tmp_path / "meta"
    meta.mkdir()
    (meta / "params.json").write_text(json.dumps({"dim": 8, HOSTILE: HOSTILE}))
    torch.save({HOSTILE: torch.zeros(2)}, meta / "consolidated.00.pth")
    for path in (file, meta):
        code, text = said(cli.app, ["info", str(path)])
        assert code == 2 and is_harmless(text), text


@pytest.mark.parametrize(
    "template", [f"{{{{ raise_exception({HOSTILE!r}) }}}}", f"{{{{ {HOSTILE!r}.no }}}}{{% nope %}}"]
)
def test_what_a_template_says(whole: Path, tmp_path: Path, template: str) -> None:
    directory = copied(whole, tmp_path / "model")
    (directory / "chat_template.jinja").write_text(template)
    arguments = ["generate", str(directory), "--chat", "--prompt", "a", "--max-new-tokens", "1"]
    code, text = said(cli.app, arguments)
    assert code == 2 and is_harmless(text), text
    with pytest.raises(ValueError, match="template"):
        Tokenizer.from_directory(directory).render_chat([{"role": "user", "content": "x"}])


def test_names_in_results_and_masks(tmp_path: Path) -> None:
    found = records.result(
        [records.row(f"layers.0.{HOSTILE}", failed=True, scenario=HOSTILE, problems=(HOSTILE,))],
        notes=[HOSTILE],
        unmatched=(HOSTILE,),
    )
    saved = tmp_path / "result.json"
    json_file.write(found, saved)
    np.savez(tmp_path / "mask.npz", **{"a\x1b[2J\u202e": np.ones((4, 4), bool)})
    odd = tmp_path / "mask\x1b\udc80\u202e.npy"
    np.save(odd, np.ones((4, 4), bool))
    files = {kind: tmp_path / f"report.{kind}" for kind in ("sarif", "html", "junit")}
    reports = ["--html", str(files["html"]), "--junit", str(files["junit"])]
    for arguments in (
        ["recheck", str(saved), *reports],
        ["lint", str(odd), "--sarif", str(files["sarif"])],
        ["lint", str(tmp_path / "mask.npz")],
        ["lint", HOSTILE],
        ["run", HOSTILE],
        ["run", "tiny", "--subject", f"{HOSTILE}:x"],
        ["run", "tiny", f"--{HOSTILE}"],
        ["explain", HOSTILE],
        ["compare", str(saved), HOSTILE],
    ):
        code, text = said(parity_cli.app, arguments)
        assert code in (1, 2, 3) and is_harmless(text), (arguments, text)
    ET.fromstring(files["junit"].read_text(encoding="utf-8"))
    (run,) = json.loads(files["sarif"].read_text(encoding="utf-8"))["runs"]
    assert run["artifacts"][0]["location"]["uri"].endswith("mask%1B%80%E2%80%AE.npy")
    for kind in ("html", "junit"):
        assert not OBEYED.search(files[kind].read_text(encoding="utf-8")), kind
