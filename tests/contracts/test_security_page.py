"""The page of promises names tests that are there, and the limits that are in force."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from jaxllama.files import limits

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/security.md").read_text(encoding="utf-8")
TESTS = re.findall(r"`(tests/[\w/]+\.py)`", PAGE)

_MEBI, _MILLION = 1 << 20, 1_000_000
SAID = {
    f"{limits.CONFIG_BYTES // _MEBI} MiB": "config.json",
    f"{limits.INDEX_BYTES // _MEBI} MiB": "index, manifest",
    f"{limits.TOKENIZER_BYTES // _MEBI} MiB": "a tokenizer's file",
    f"{limits.HEADER_BYTES // _MEBI} MiB": "safetensors header",
    f"{limits.JSON_DEPTH} levels, {limits.JSON_ENTRIES / _MILLION:g} million entries": "JSON",
    f"{limits.TENSORS:,}": "tensors of a checkpoint",
    f"{limits.SHARDS:,}": "shards",
    f"{limits.GGUF_KEYS:,}; {limits.GGUF_ITEMS // _MILLION} million": "keys of a GGUF file",
    f"{limits.RESULT_BYTES // _MEBI} MiB": "a result of parity",
    f"{limits.TEMPLATE_CHARACTERS // _MILLION} million characters; "
    f"{limits.RENDERED_CHARACTERS // _MILLION} million": "chat template",
    f"{limits.TOKENIZER_SECONDS} s of a processor and 1 s for every {limits.TOKENIZER_SPEED:,} "
    f"characters, {limits.TOKENIZER_MEMORY // _MEBI:,} MiB and {limits.TOKENIZER_TIMES} B for "
    "every character": "a tokenizer's process",
    f"{limits.SANDBOX_SECONDS} s of a processor, {limits.SANDBOX_WAIT_SECONDS} s by the clock, "
    f"{limits.SANDBOX_BYTES // _MEBI} MiB": "a template's process",
}


def test_every_promise_has_a_test_that_is_there() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and "`tests/" in line]
    assert len(rows) == len(TESTS) >= 15
    assert limits.ZIP_DIRECTORY_BYTES == limits.HEADER_BYTES  # which share a line
    for test in TESTS:
        assert Path(test).name.startswith("test_") and (ROOT / test).is_file(), test


@pytest.mark.parametrize("limit", SAID)
def test_limits_are_those_in_force(limit: str) -> None:
    lines = [
        line for line in PAGE.splitlines() if line.startswith("| ") and line.endswith(f" {limit} |")
    ]
    assert any(SAID[limit] in line for line in lines), limit
