from __future__ import annotations

import numpy as np
import pytest

from jaxllama.checkpoint import names
from jaxllama.checkpoint.names import TABLE, from_dialect, half_split, interleave, to_dialect
from jaxllama.checkpoint.samples import TINY, tiny


@pytest.mark.parametrize("dialect", ["hf", "gguf", "meta"])
def test_every_name_is_read_back_to_itself(dialect):
    for name, _ in names.expected_tensors(TINY):
        assert from_dialect(to_dialect(name, dialect), dialect) == name


def test_names_are_distinct_in_every_dialect():
    for dialect in ("hf", "gguf", "meta"):
        assert len({getattr(entry, dialect) for entry in TABLE}) == len(TABLE)


def test_bare_names_of_hugging_face_are_accepted_there_alone():
    assert from_dialect("layers.3.mlp.up_proj.weight", "hf") == "model.layers.3.mlp.up_proj.weight"
    assert from_dialect("layers.3.mlp.up_proj.weight", "meta") is None


@pytest.mark.parametrize(
    "name", ["model.layers.3.mlp.up_proj.bias", "model.layers.x.mlp.up_proj.weight", "", "blk"]
)
def test_unknown_names_are_nobodys(name):
    assert from_dialect(name, "hf") is None


def test_expected_tensors_agree_with_transformers():
    import transformers

    checkpoint = tiny()
    config = transformers.LlamaConfig(**checkpoint.config.to_hf())
    state = transformers.LlamaForCausalLM(config).state_dict()
    assert {name: tuple(t.shape) for name, t in state.items()} == dict(
        names.expected_tensors(checkpoint.config)
    )


def test_paths_are_the_models_own():
    import jax.numpy as jnp
    from flax import nnx

    from jaxllama.model import Llama

    def build() -> Llama:
        return Llama(TINY, dtype=jnp.float32, rngs=nnx.Rngs(0))

    state = nnx.split(nnx.eval_shape(build))[1]
    assert {path for path, _ in nnx.to_flat_state(state)} == {entry.path for entry in TABLE}


def test_permutation_agrees_with_the_published_one():
    """llama.cpp's `permute`, written out for one head of six rows."""
    rows = np.arange(6)[:, None]
    assert interleave(rows, 1)[:, 0].tolist() == [0, 3, 1, 4, 2, 5]
    assert half_split(interleave(rows, 1), 1).tolist() == rows.tolist()


def test_permutation_needs_each_ones_own_head_count():
    weight = np.random.default_rng(0).standard_normal((24, 5))
    assert np.array_equal(half_split(interleave(weight, 6), 6), weight)
    assert not np.array_equal(half_split(interleave(weight, 6), 2), weight)
