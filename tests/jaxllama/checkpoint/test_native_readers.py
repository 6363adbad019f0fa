"""What was converted gives the same logits in each format's own reader."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import gguf
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from jaxllama.checkpoint import convert, load_model, tiny

TOKENS = np.random.default_rng(3).integers(0, 264, (1, 29))


def _ours(checkpoint) -> np.ndarray:
    model = load_model(checkpoint, dtype=np.float32)
    positions = jnp.arange(TOKENS.shape[1])[None]
    mask = jnp.tril(jnp.ones((1, TOKENS.shape[1], TOKENS.shape[1]), bool))
    return np.asarray(model(jnp.asarray(TOKENS), positions=positions, mask=mask)[0])


def _close(ours: np.ndarray, theirs: np.ndarray) -> bool:
    return bool(np.abs(ours - theirs).max() < 2e-5 * np.abs(theirs).max())


@pytest.mark.parametrize(
    "overrides",
    [
        {"rope_scaling": None},
        {"rope_scaling": None, "num_key_value_heads": 1, "tie_word_embeddings": True},
        {"rope_scaling": None, "num_key_value_heads": 6},
    ],
)
def test_transformers_reads_our_gguf(tmp_path, overrides):
    """Without llama3 scaling: transformers' reader passes over `rope_freqs.weight`."""
    checkpoint = tiny(num_hidden_layers=2, **overrides)
    convert(checkpoint, tmp_path / "model.gguf", to="gguf")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="model.gguf", attn_implementation="eager"
    )
    with torch.no_grad():
        theirs = model(torch.tensor(TOKENS)).logits.numpy()
    assert _close(_ours(checkpoint), theirs)
    assert not _close(_ours(tiny(seed=1, num_hidden_layers=2, **overrides)), theirs)


def test_the_formats_library_reads_our_gguf(tmp_path):
    """Every tensor and key; llama3's divisors are among the tensors, as llama.cpp has them."""
    checkpoint = tiny(num_hidden_layers=1)
    convert(checkpoint, tmp_path / "model.gguf", to="gguf", dtype="bfloat16")
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    found = {tensor.name: tensor for tensor in reader.tensors}
    assert len(found) == len(checkpoint.tensors) + 1
    assert found["output_norm.weight"].tensor_type == gguf.GGMLQuantizationType.F32
    assert found["output.weight"].tensor_type == gguf.GGMLQuantizationType.BF16
    assert found["rope_freqs.weight"].data.tolist()[:2] == [1.0, 1.0]
    assert found["rope_freqs.weight"].data[-1] == 8.0
    assert reader.fields["llama.attention.head_count_kv"].contents() == 2
    assert reader.fields["tokenizer.ggml.tokens"].contents(256) == "<|begin_of_text|>"


@pytest.mark.parametrize("overrides", [{}, {"tie_word_embeddings": True, "rope_scaling": None}])
def test_transformers_reads_our_directory(tmp_path, overrides):
    checkpoint = tiny(num_hidden_layers=2, **overrides)
    convert(checkpoint, tmp_path / "hf", to="hf", shards=2)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "hf", attn_implementation="eager"
    )
    with torch.no_grad():
        theirs = model(torch.tensor(TOKENS)).logits.numpy()
    assert _close(_ours(checkpoint), theirs)


META = textwrap.dedent("""
    import json, os, sys
    import numpy as np, torch
    import fairscale.nn.model_parallel.initialize as fs
    from pathlib import Path
    from llama_models.llama3.args import ModelArgs
    from llama_models.llama3.model import Transformer

    directory, out = Path(sys.argv[1]), sys.argv[4]
    rank, degree = int(sys.argv[2]), int(sys.argv[3])
    store = torch.distributed.FileStore(sys.argv[5], degree)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=degree)
    fs.initialize_model_parallel(degree)
    params = json.loads((directory / "params.json").read_text())
    params.pop("rope_scaling_factor", None)
    model = Transformer(ModelArgs(**params, max_batch_size=1, max_seq_len=64))
    state = torch.load(directory / f"consolidated.{rank:02}.pth", weights_only=True, mmap=True)
    model.load_state_dict(state, strict=True)
    tokens = torch.tensor(json.loads(sys.argv[6]))
    with torch.no_grad():
        logits = model(tokens, 0)
    if rank == 0:
        np.save(out, logits.numpy())
    # Leave when all are done, and at once: an interpreter that shuts down under gloo's threads
    # aborts now and then.
    store.set(f"done {rank}", "")
    store.wait([f"done {r}" for r in range(degree)])
    os._exit(0)
""")


@pytest.mark.parametrize(
    ("degree", "overrides"),
    [
        (1, {}),
        (1, {"tie_word_embeddings": True, "num_key_value_heads": 1}),
        (2, {}),
        (2, {"rope_scaling": None, "num_key_value_heads": 6}),
    ],
)
def test_metas_reference_reads_our_directory(tmp_path, degree, overrides):
    checkpoint = tiny(num_hidden_layers=2, **overrides)
    convert(checkpoint, tmp_path / "meta", to="meta", shards=degree)
    script = tmp_path / "reference.py"
    script.write_text(META)
    arguments = [tmp_path / "out.npy", tmp_path / "store", json.dumps(TOKENS.tolist())]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu"}
    running = [
        subprocess.Popen(
            [
                sys.executable,
                script,
                tmp_path / "meta",
                str(rank),
                str(degree),
                *map(str, arguments),
            ],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(degree)
    ]
    for process in running:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors[-2000:]
    theirs = np.load(tmp_path / "out.npy")
    assert _close(_ours(checkpoint), theirs)
    assert not _close(_ours(tiny(seed=1, num_hidden_layers=2, **overrides)), theirs)
