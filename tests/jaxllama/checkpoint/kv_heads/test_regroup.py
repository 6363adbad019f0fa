"""Key and value heads pooled and repeated: by hand, to the bit where nothing changes, on disk."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from planting import planted
from small_llama import CONFIG, random_weights

from jaxllama import Llama, masks
from jaxllama.checkpoint import Checkpoint, convert, in_memory, open_checkpoint
from jaxllama.checkpoint.kv_heads import with_kv_heads
from jaxllama.errors import InputError

KEY, VALUE, QUERY = (f"model.layers.1.self_attn.{name}_proj.weight" for name in "kvq")


@pytest.fixture(scope="module")
def small() -> Checkpoint:
    config = CONFIG.replace(num_hidden_layers=2)
    return in_memory(config, random_weights(config))


def logits(checkpoint: Checkpoint) -> np.ndarray:
    model = Llama.from_pretrained(checkpoint)
    ids = jnp.array([[3, 1, 4, 1, 5, 9, 2, 6]], jnp.int32)
    positions = jnp.arange(8, dtype=jnp.int32)[None]
    tokens = masks.Tokens(positions, jnp.ones_like(positions, bool))
    bound = masks.causal().bind(tokens, tokens)
    return np.asarray(model(ids, positions=positions, mask=bound)[0])


def test_pooled_to_as_many_is_the_same(small: Checkpoint) -> None:
    assert with_kv_heads(small, CONFIG.num_key_value_heads) is small


# Neighbours, which share query heads; in their place heads taken in turn, 0 2 4 and 1 3 5.
NEIGHBOURS = "heads.reshape(wanted, held // wanted, *heads.shape[1:])"
IN_TURN = "heads.reshape(held // wanted, wanted, *heads.shape[1:]).swapaxes(0, 1)"


@pytest.mark.parametrize("sound", [True, False], ids=["sound", "planted"])
@pytest.mark.parametrize("name", [KEY, VALUE])
def test_pooled_heads_are_means_by_hand(name: str, sound: bool, small: Checkpoint) -> None:
    four = with_kv_heads(with_kv_heads(small, 2), 6)
    H, weight = CONFIG.head_dim, np.array(four.read(name), np.float32)
    for head in range(6):  # each different, or any pooling would do
        weight[head * H : (head + 1) * H] += np.float32(head)
    weight = weight.astype(ml_dtypes.bfloat16)
    read = {n: (weight if n == name else four.read(n)) for n in four.tensors}
    fault = planted("jaxllama.checkpoint.kv_heads.regroup", NEIGHBOURS, IN_TURN, compiled=False)
    with nullcontext() if sound else fault:
        pooled = with_kv_heads(in_memory(four.config, read), 2).read(name)
    assert pooled.shape == (2 * H, CONFIG.hidden_size) and pooled.dtype == weight.dtype
    w, expected = weight.astype(np.float32), []
    for group in range(2):
        a, b, c = (w[h * H : (h + 1) * H] for h in range(3 * group, 3 * group + 3))
        expected.append(((a + b + c) / np.float32(3)).astype(ml_dtypes.bfloat16))
    assert (pooled == np.concatenate(expected)).all() == sound


def test_copies_compute_the_same_and_pool_back(small: Checkpoint) -> None:
    mha = with_kv_heads(small, 6)
    assert mha.config.num_key_value_heads == 6
    np.testing.assert_allclose(logits(mha), logits(small), rtol=1e-4, atol=1e-4)
    back = with_kv_heads(mha, 2)
    for name in small.tensors:
        np.testing.assert_array_equal(back.read(name), small.read(name))
    assert np.abs(logits(with_kv_heads(small, 1)) - logits(small)).max() > 0.1


def test_other_weights_are_left_as_they_are(small: Checkpoint) -> None:
    mqa = with_kv_heads(small, 1)
    assert {name for name in small.tensors if mqa.tensors[name] != small.tensors[name]} == {
        f"model.layers.{layer}.self_attn.{name}_proj.weight" for layer in range(2) for name in "kv"
    }
    np.testing.assert_array_equal(mqa.read(QUERY), small.read(QUERY))


@pytest.mark.parametrize("wanted", [0, -1, 3, 4, 5, 7, 12])
def test_numbers_that_do_not_divide_are_refused(wanted: int, small: Checkpoint) -> None:
    with pytest.raises(InputError) as found:
        with_kv_heads(small, wanted)
    assert str(found.value) == (
        f"kv_heads={wanted}: memory checkpoint has 2 key heads for 6 query heads; expected one of "
        "1, 2, 6"
    )


@pytest.mark.parametrize("form", ["hf", "gguf"])
def test_it_is_written_and_read_again(form: str, tmp_path: Path) -> None:
    convert("tiny", tmp_path / "mqa", to=form, kv_heads=1)
    found, whole = open_checkpoint(tmp_path / "mqa"), open_checkpoint("tiny")
    assert found.config == whole.config.replace(num_key_value_heads=1)
    wanted = with_kv_heads(whole, 1)
    for name in (KEY, VALUE):
        np.testing.assert_array_equal(found.read(name), wanted.read(name))
    with pytest.raises(InputError, match="expected one of 1, 2, 6"):
        convert("tiny", tmp_path / "no", to=form, kv_heads=5)
    assert not (tmp_path / "no").exists()
