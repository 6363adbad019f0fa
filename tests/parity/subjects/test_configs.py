"""A subject's configuration in the forms that people hold it in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from configs import META_SHAPED
from written_checkpoints import model, write_gguf

from jaxllama.checkpoint.samples import tiny
from jaxllama.errors import JaxLlamaError
from parity.subjects import from_callable
from parity.subjects.adapters.configs import as_config

CONFIG = META_SHAPED  # transformers takes no other
HF = CONFIG.to_hf()


def forms(folder: Path) -> dict[str, Any]:
    (folder / "config.json").write_text(json.dumps(HF))
    return {
        "LlamaConfig": CONFIG,
        "dict": HF,
        "transformers": transformers.LlamaConfig(**HF),
        "config.json": folder / "config.json",
    }


@pytest.mark.parametrize("form", ["LlamaConfig", "dict", "transformers", "config.json"])
def test_each_form_says_the_same(tmp_path: Path, form: str) -> None:
    given = forms(tmp_path)[form]
    assert as_config(given) == CONFIG
    assert from_callable(lambda _: {}, names={"out": "logits"}, config=given).dtype == "f32"


def test_checkpoints_of_other_formats_and_samples(tmp_path: Path) -> None:
    checkpoint = model()
    assert as_config(write_gguf(checkpoint, tmp_path / "m.gguf")) == checkpoint.config
    assert as_config("tiny") == tiny().config


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (3, "config= int: expected a LlamaConfig"),
        ({"model_type": "gpt2"}, "config="),
        ("./no/where", "no/where: does not exist"),
        ("no/where", "no/where: is no file or directory here"),
        ("no/where/config.json", "no/where/config.json"),
    ],
)
def test_what_is_none_is_refused(given: Any, said: str) -> None:
    with pytest.raises(JaxLlamaError, match=said):
        as_config(given)
