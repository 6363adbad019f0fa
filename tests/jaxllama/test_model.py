"""The model against the same maths in NumPy, and the laws any forward pass must obey."""

from __future__ import annotations

import ast
import sys
import types
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from small_llama import (
    CONFIG,
    build,
    numpy_llama,
    padded_rows,
    random_tokens,
    random_weights,
    visible,
)

import jaxllama.attention.backends
import jaxllama.attention.reference
import jaxllama.model
from jaxllama.attention import Backend
from jaxllama.cache import KVCache
from jaxllama.checkpoint import in_memory
from jaxllama.errors import InputError
from jaxllama.masks import Tokens, causal, padding
from jaxllama.model import Llama
from jaxllama.taps import LAYER_TAPS, MODEL_TAPS, Taps, untapped

B, T = 3, 11
TOKENS = random_tokens(CONFIG, B, T)
# One row without pads, one padded on the left, one on the right; positions past 8192, far apart.
POSITIONS, VALID = padded_rows(T, [0, 3, 0], [T, T, T - 2], first=9000, stride=173)
MASK = visible(POSITIONS, VALID)
GIVEN = tuple(jnp.asarray(x) for x in (TOKENS, POSITIONS, MASK))


@jax.jit
def logits_of(model: Llama, tokens: Any, positions: Any, mask: Any) -> jax.Array:
    return model(tokens, positions=positions, mask=mask)[0]


@jax.jit
def taps_of(model: Llama, tokens: Any, positions: Any, mask: Any, forced: Any) -> Any:
    taps = Taps(forced)
    logits, _ = model(tokens, positions=positions, mask=mask, tap=taps)
    return logits, taps.recorded()


@pytest.fixture(scope="module")
def model() -> Llama:
    return build()


@pytest.fixture(scope="module")
def gold() -> dict[str, np.ndarray]:
    return numpy_llama(CONFIG, random_weights(CONFIG), TOKENS, POSITIONS, MASK)


def relative(found: Any, expected: Any) -> float:
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


# What is compared


def test_every_canonical_tap_has_its_shape_and_equals_numpy_in_float64(
    model: Llama, gold: dict[str, np.ndarray]
) -> None:
    logits, taps = taps_of(model, *GIVEN, {})
    N, K, H = CONFIG.num_attention_heads, CONFIG.num_key_value_heads, CONFIG.head_dim
    D, F, V = CONFIG.hidden_size, CONFIG.intermediate_size, CONFIG.vocab_size
    layer: dict[str, tuple[int, ...]] = {
        **dict.fromkeys(("q_proj", "q_rope", "attn_context"), (B, T, N, H)),
        **dict.fromkeys(("k_proj", "v_proj", "k_rope"), (B, T, K, H)),
        **dict.fromkeys(("attn_scores", "attn_probs"), (B, N, T, T)),
        **dict.fromkeys(("gate_proj", "up_proj", "mlp_act"), (B, T, F)),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "rope.inv_freq": (H // 2,),
        "positions": (B, T),
        "mask": (B, T, T),
        "embed": (B, T, D),
        "norm": (B, T, D),
        "logits": (B, T, V),
    }
    for i in range(CONFIG.num_hidden_layers):
        shapes |= {f"layers.{i}.{name}": layer.get(name, (B, T, D)) for name in LAYER_TAPS}
    assert {name: value.shape for name, value in taps.items()} == shapes
    assert sorted(gold) == sorted(shapes)
    for name, value in taps.items():
        if name not in ("positions", "mask"):
            assert value.dtype == jnp.float64, name
            assert relative(value, gold[name]) < 1e-12, name
    np.testing.assert_array_equal(taps["logits"], logits)
    probs = np.asarray(taps["layers.2.attn_probs"])
    np.testing.assert_array_equal(probs > 0, np.repeat(MASK[:, None], N, axis=1))


@pytest.mark.parametrize("change", ["rope_theta", "rms_norm_eps", "tie_word_embeddings"])
def test_the_comparison_would_see_a_wrong_number(change: str) -> None:
    """Negative control: NumPy with another number is far from the model's 1e-12."""
    right = CONFIG.replace(tie_word_embeddings=change == "tie_word_embeddings")
    weights = random_weights(right)
    logits = logits_of(build(right), *GIVEN)
    assert relative(logits, numpy_llama(right, weights, *_inputs())["logits"]) < 1e-12
    values: dict[str, Any] = {"rope_theta": 5.0001e5, "rms_norm_eps": 1.1e-5}
    wrong = right.replace(**{change: values[change]}) if change in values else CONFIG
    weights = weights | {"lm_head.weight": random_weights(CONFIG)["lm_head.weight"]}
    assert relative(logits, numpy_llama(wrong, weights, *_inputs())["logits"]) > 1e-7


def _inputs() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return TOKENS, POSITIONS, MASK


@pytest.mark.parametrize(
    ("dtype", "backend", "bound"),
    [
        # float32: the angles' own rounding, position * 2^-24 rad, is far above all else.
        ("float32", "xla", 2.0**-24 * POSITIONS.max()),
        ("float32", "dot_product", 2.0**-24 * POSITIONS.max()),
        # bfloat16: four layers of eight roundings each, were they all to add up. test_hf_matrix.py
        # holds the model to the noise of another implementation.
        ("bfloat16", "xla", 2.0**-8 * 32),
        ("bfloat16", "dot_product", 2.0**-8 * 32),
    ],
)
def test_other_dtypes_and_backends_stay_near(
    dtype: str, backend: Backend, bound: float, gold: dict[str, np.ndarray]
) -> None:
    logits, taps = taps_of(build(CONFIG, dtype, backend=backend), *GIVEN, {})
    assert logits.dtype == jnp.float32
    assert taps["layers.1.mlp_act"].dtype == taps["norm"].dtype == jnp.dtype(dtype)
    assert taps["rope.inv_freq"].dtype == jnp.float32
    missing = set() if backend == "xla" else {"attn_scores", "attn_probs"}
    assert {name.split(".")[-1] for name in gold if name not in taps} == missing
    assert relative(logits, gold["logits"]) < bound


def test_parameters_and_arithmetic_have_dtypes_of_their_own(gold: dict[str, np.ndarray]) -> None:
    """The weights are bfloat16 numbers, so storing them as such changes nothing, to the bit."""
    checkpoint = in_memory(CONFIG, random_weights(CONFIG))
    model = Llama.from_pretrained(checkpoint, dtype="float64", param_dtype="bfloat16")
    assert {x.dtype for x in jax.tree.leaves(nnx.state(model))} == {jnp.dtype("bfloat16")}
    logits = logits_of(model, *GIVEN)
    assert logits.dtype == jnp.float64
    assert relative(logits, gold["logits"]) < 1e-12


# Taps cost nothing when off, change nothing when on


class _WithoutTaps(ast.NodeTransformer):
    """Turns every `tap(name, value)` into `value`."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        named_tap = isinstance(node.func, ast.Name) and node.func.id == "tap"
        return node.args[1] if named_tap and len(node.args) == 2 else node


def _without_taps(module: types.ModuleType, **imported: Any) -> Any:
    """Return a module's namespace, run again from its source with all taps cut out."""
    assert module.__file__ is not None
    source = Path(module.__file__).read_text()
    tree = ast.fix_missing_locations(_WithoutTaps().visit(ast.parse(source)))
    assert source.count('tap("') > 1
    assert 'tap("' not in ast.unparse(tree).replace("'", '"')
    stripped = types.ModuleType("stripped")
    monkey = pytest.MonkeyPatch()
    # Annotated dataclasses and nnx look their module up while the classes are made.
    monkey.setitem(sys.modules, "stripped", stripped)
    exec(compile(tree, module.__file__, "exec"), stripped.__dict__)
    monkey.undo()
    stripped.__dict__.update(imported)
    return stripped


def test_an_untapped_run_is_the_program_without_taps() -> None:
    reference = _without_taps(jaxllama.attention.reference)
    backends = _without_taps(
        jaxllama.attention.backends, attend_reference=reference.attend_reference
    )
    stripped = _without_taps(jaxllama.model, attend=backends.attend)

    def program(of: Any, tap: Any) -> str:
        def forward(model: Any, cache: Any, tokens: Any, positions: Any, mask: Any) -> Any:
            out = model(tokens, positions=positions, mask=mask, cache=cache, tap=tap)
            return out, tap.recorded()

        with_cache = KVCache.empty(CONFIG, B, T, "float64").extend(GIVEN[1], jnp.asarray(VALID))
        abstract = nnx.eval_shape(lambda: of.Llama(CONFIG, dtype="float64", rngs=nnx.Rngs(0)))
        return str(jax.make_jaxpr(forward)(abstract, with_cache, *GIVEN))

    untouched = program(stripped, untapped)
    assert untouched.count(" = ") > 50
    assert program(jaxllama.model, untapped) == untouched
    # Negative control: a recording tap does show, in the program's results at least.
    assert program(jaxllama.model, Taps()) != untouched


def test_captured_production_and_single_layer_runs_agree_to_the_bit(model: Llama) -> None:
    logits, taps = taps_of(model, *GIVEN, {})
    np.testing.assert_array_equal(logits, logits_of(model, *GIVEN))

    @jax.jit
    def one_layer(model: Llama, index: Any, x: Any, cos_sin: Any) -> Any:
        taps = Taps()
        x, _ = model.layer(index)(x, cos_sin, GIVEN[2], tap=taps)
        return x, taps.recorded()

    x, cos_sin, _ = jax.jit(lambda m: m.embed(*GIVEN))(model)
    for i in range(CONFIG.num_hidden_layers):
        x, single = one_layer(model, i, x, cos_sin)
        for name in LAYER_TAPS:
            np.testing.assert_array_equal(single[name], taps[f"layers.{i}.{name}"], err_msg=name)
    np.testing.assert_array_equal(jax.jit(lambda m, x: m.head(x))(model, x), logits)
    # Negative control: layers run in another order do not agree.
    x, _, _ = jax.jit(lambda m: m.embed(*GIVEN))(model)
    swapped, _ = one_layer(model, 1, x, cos_sin)
    assert np.abs(swapped - taps["layers.0.output"]).max() > 0.1


def test_op_by_op_agrees_with_jit(model: Llama, gold: dict[str, np.ndarray]) -> None:
    taps = Taps()
    model(GIVEN[0], positions=GIVEN[1], mask=GIVEN[2], tap=taps)
    assert list(taps.recorded())[:6] == [*MODEL_TAPS[:4], "layers.0.input", LAYER_NORM]
    assert relative(taps.recorded()["logits"], gold["logits"]) < 1e-12


LAYER_NORM = "layers.0.input_layernorm"


def test_nnx_jit_and_a_bound_mask_serve_as_well(model: Llama) -> None:
    tokens = Tokens(GIVEN[1], jnp.asarray(VALID))
    mask = (causal() & padding()).bind(tokens, tokens)
    np.testing.assert_array_equal(mask.to_bool(), MASK)
    run = nnx.jit(lambda m, tokens, mask: m(tokens, positions=mask.q.positions, mask=mask)[0])
    np.testing.assert_array_equal(run(model, GIVEN[0], mask), logits_of(model, *GIVEN))


# Forced taps


def test_forcing_a_runs_own_record_changes_nothing(model: Llama) -> None:
    logits, taps = taps_of(model, *GIVEN, {})
    again, retaken = taps_of(model, *GIVEN, taps)
    for name, value in taps.items():
        np.testing.assert_array_equal(retaken[name], value, err_msg=name)
    np.testing.assert_array_equal(again, logits)


def test_a_forced_value_reaches_what_depends_on_it_and_nothing_before(model: Llama) -> None:
    _, taps = taps_of(model, *GIVEN, {})
    stack = jnp.stack([taps[f"layers.{i}.v_proj"] for i in range(CONFIG.num_hidden_layers)])
    # Layer 2's values alone are moved; the others are forced to what they are anyway.
    logits, moved = taps_of(model, *GIVEN, {"layers.v_proj": stack.at[2].add(1.0)})
    same = {name for name in taps if (np.asarray(taps[name]) == np.asarray(moved[name])).all()}
    assert {"layers.2.v_proj", "layers.2.attn_probs", "layers.1.output", "mask"} <= same
    assert not same & {"layers.2.attn_context", "layers.2.output", "layers.3.input", "logits"}
    np.testing.assert_array_equal(logits, moved["logits"])


def test_a_forced_mask_takes_the_place_of_the_given_one(model: Llama) -> None:
    every = jnp.ones_like(GIVEN[2])
    logits, taps = taps_of(model, *GIVEN, {"mask": every})
    np.testing.assert_array_equal(taps["mask"], MASK)
    np.testing.assert_array_equal(logits, logits_of(model, *GIVEN[:2], every))


# Laws


@pytest.mark.parametrize(("dtype", "backend"), [("float64", "xla"), ("bfloat16", "dot_product")])
def test_hidden_tokens_and_neighbouring_rows_cannot_move_an_output(
    dtype: str, backend: Backend
) -> None:
    model = build(CONFIG, dtype, backend=backend)
    before = np.asarray(logits_of(model, *GIVEN))
    live = VALID

    def moved(row: int, column: int) -> np.ndarray:
        other = TOKENS.copy()
        other[row, column] = (other[row, column] + 1) % CONFIG.vocab_size
        return (np.asarray(logits_of(model, jnp.asarray(other), *GIVEN[1:])) != before).any(-1)

    for pad in ((1, 1), (2, T - 1)):
        assert not (moved(*pad) & live).any()
    # A later token moves no earlier one, and no row moves another.
    changed = moved(0, 6)
    expected = np.zeros((B, T), bool)
    expected[0, 6:] = True
    np.testing.assert_array_equal(changed & live, expected)


def test_a_row_alone_gives_what_it_gives_among_others(model: Llama) -> None:
    together = logits_of(model, *GIVEN)
    for row in range(B):
        alone = logits_of(model, *(x[row : row + 1] for x in GIVEN))
        live = VALID[row]
        assert relative(alone[0][live], together[row][live]) < 1e-13


def test_left_and_right_padding_give_the_same_logits(model: Llama) -> None:
    text = random_tokens(CONFIG, 1, T - 3, seed=5)[0]
    positions, valid = padded_rows(T, [0, 3], [T - 3, T])
    tokens = np.zeros((2, T), np.int32)
    tokens[0, : T - 3], tokens[1, 3:] = text, text
    mask = visible(positions, valid)
    logits = logits_of(model, *(jnp.asarray(x) for x in (tokens, positions, mask)))
    assert relative(logits[0, : T - 3], logits[1, 3:]) < 1e-13
    # Control: a left-padded row counted from its pads is rotated otherwise... by the same for all
    # its tokens, so relative positions hide it; counted twice as fast it shows.
    doubled = jnp.asarray(positions * 2)
    wrong = logits_of(model, jnp.asarray(tokens), doubled, jnp.asarray(mask))
    assert relative(wrong[1, 3:], logits[1, 3:]) > 0.01


def test_gradients_of_every_parameter_are_finite_with_empty_rows(model: Llama) -> None:
    mask = GIVEN[2].at[0, 4].set(False)

    @jax.jit
    def grads(model: Llama) -> Any:
        return jax.grad(lambda m: jnp.mean(jnp.square(logits_of(m, *GIVEN[:2], mask))))(model)

    found = nnx.to_flat_state(nnx.state(grads(model)))
    assert len(found) == 12
    for path, value in found:
        assert np.isfinite(value[...]).all(), path
        assert np.abs(value[...]).max() > 1e-6, path


def test_a_tied_head_is_the_embedding() -> None:
    tied = CONFIG.replace(tie_word_embeddings=True)
    model = build(tied)
    assert model.lm_head is None
    expected = numpy_llama(tied, random_weights(tied), TOKENS, POSITIONS, MASK)["logits"]
    assert relative(logits_of(model, *GIVEN), expected) < 1e-12


# Bad input


def refused(model: Llama, **changes: Any) -> str:
    given = {"tokens": GIVEN[0], "positions": GIVEN[1], "mask": GIVEN[2]} | changes
    unchecked: Any = getattr(Llama.__call__, "__wrapped__", Llama.__call__)
    with pytest.raises(InputError) as error:
        unchecked(model, given.pop("tokens"), **given)
    return str(error.value)


def test_bad_inputs_are_named(model: Llama) -> None:
    assert "token ids 0 to 67: the vocabulary is 0 to 66" in refused(
        model, tokens=GIVEN[0].at[1, 1].set(CONFIG.vocab_size).at[0, 0].set(0)
    )
    assert "token ids -1 to" in refused(model, tokens=GIVEN[0].at[1, 1].set(-1))
    assert "tokens (3, 11), positions (3, 4)" in refused(model, positions=GIVEN[1][:, :4])
    assert "expected bool (3, 11, 11)" in refused(model, mask=GIVEN[2][:, :, :4])
    other = KVCache.empty(CONFIG.replace(num_key_value_heads=3), B, T, "float64")
    text = refused(model, cache=other)
    assert "(layers, kv heads, head dim) (4, 3, 16), the model's are (4, 2, 16)" in text
    assert "cache.extend(positions, valid) for exactly these tokens first" in text


def test_a_token_outside_the_vocabulary_shows_as_nan_under_jit(model: Llama) -> None:
    for wrong in (CONFIG.vocab_size, -1):
        logits = np.asarray(logits_of(model, GIVEN[0].at[0, 6].set(wrong), *GIVEN[1:]))
        assert np.isnan(logits[0, 6:]).all()
        assert np.isfinite(logits[1:][VALID[1:]]).all()


def test_layers_outside_the_model_and_impossible_settings(model: Llama) -> None:
    for index in (-1, CONFIG.num_hidden_layers):
        with pytest.raises(InputError, match=f"layer {index}: expected 0 to 3"):
            model.layer(index)
    with pytest.raises(InputError, match="dtype int32"):
        Llama(CONFIG, dtype="int32", rngs=nnx.Rngs(0))
    checkpoint = in_memory(CONFIG, random_weights(CONFIG))
    with pytest.raises(InputError, match="use xla for float64"):
        Llama.from_pretrained(checkpoint, dtype="float64", backend="dot_product")
    with pytest.raises(InputError, match="use xla for float64"):
        Llama(CONFIG, dtype="float64", backend="dot_product", rngs=nnx.Rngs(0))


def test_random_initial_weights_differ_between_layers_and_keep_unit_scale() -> None:
    model = nnx.jit(lambda: Llama(CONFIG, dtype="float32", rngs=nnx.Rngs(0)))()
    q = np.asarray(model.layers.self_attn.q_proj.weight[...])
    assert q.shape == (4, 96, 30)
    assert np.abs(q[0] - q[1]).max() > 0.1
    assert np.std(q) * np.sqrt(30) == pytest.approx(1, rel=0.05)
    np.testing.assert_array_equal(model.layer(2).self_attn.q_proj.weight[...], q[2])
