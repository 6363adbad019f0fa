"""What is asked for in words: dtypes by any name; a configuration changed, or no change of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from witnesses import small

import parity
from jaxllama.checkpoint import load_model
from jaxllama.checkpoint.samples import TINY
from jaxllama.dtypes import at_least_float32
from jaxllama.errors import ConfigError, InputError
from parity.options import apply_overrides, choose_dtypes, override_texts
from parity.subjects import from_callable
from parity.subjects.hf.subject import HFLlama
from parity.subjects.jaxllama.subject import JaxLlama
from parity.subjects.select import resolve_subject
from parity.subjects.torch_reference.subject import TorchReference


def test_values_are_read_as_the_field_holds_them() -> None:
    changed = apply_overrides(
        TINY, ["rope_theta=1e6", "rms_norm_eps=1", "tie_word_embeddings=true"]
    )
    assert changed.rope_theta == 1e6
    assert changed.rms_norm_eps == 1.0 and type(changed.rms_norm_eps) is float
    assert changed.tie_word_embeddings is True
    assert TINY.rope_theta == 5e5


def test_fields_of_the_rope_scaling() -> None:
    changed = apply_overrides(TINY, ["rope_scaling.factor=32", "rope_scaling.low_freq_factor=2"])
    assert changed.rope_scaling is not None
    assert (changed.rope_scaling.factor, changed.rope_scaling.low_freq_factor) == (32.0, 2.0)
    assert apply_overrides(TINY, ["rope_scaling=None"]).rope_scaling is None


def test_a_mapping_says_the_same() -> None:
    values = {"rope_theta": 1e6, "rope_scaling": {"factor": 32}, "tie_word_embeddings": True}
    texts = override_texts(values)
    assert texts == ("rope_theta=1000000.0", "rope_scaling.factor=32", "tie_word_embeddings=True")
    asked = ["rope_theta=1e6", "rope_scaling.factor=32", "tie_word_embeddings=true"]
    assert apply_overrides(TINY, texts) == apply_overrides(TINY, asked) != TINY
    none = override_texts(
        {"rope_scaling": None, "eos_token_ids": (1, 2), "bos_token_id": np.int64(7)}
    )
    changed = apply_overrides(TINY, none)
    assert changed.rope_scaling is None
    assert (changed.eos_token_ids, changed.bos_token_id) == ((1, 2), 7)
    assert (
        override_texts("rope_theta=1e6")
        == override_texts(["rope_theta=1e6"])
        == ("rope_theta=1e6",)
    )


def test_the_last_of_several_wins_and_none_changes_nothing() -> None:
    assert apply_overrides(TINY, ["rope_theta=1e4", " rope_theta = 2e4"]).rope_theta == 2e4
    assert apply_overrides(TINY, []) == TINY


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("rope_theta", "expected FIELD=VALUE"),
        ("=1", "expected FIELD=VALUE"),
        ("rope_theta=", "expected FIELD=VALUE"),
        ("theta=1e6", "rope_theta"),  # the message lists the fields there are
        ("rope_scaling.theta=1", "RopeScaling has no field 'theta'"),
        ("rope_theta.x=1", "it has no fields"),
        ("rope_theta=fast", "'fast' is no float"),
        ("rope_theta=True", "is no float"),
        ("num_hidden_layers=2.5", "is no int"),
        ("rope_theta=__import__('os')", "is no float"),
    ],
)
def test_refused_with_the_assignment_quoted(assignment: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        apply_overrides(TINY, [assignment])
    assert said in str(caught.value) and assignment in str(caught.value)


@pytest.mark.parametrize("assignment", ["rope_theta=-1", "num_key_value_heads=4", "rope_theta=0"])
def test_a_configuration_that_contradicts_itself(assignment: str) -> None:
    with pytest.raises(ConfigError):
        apply_overrides(TINY, [assignment])


def test_a_run_takes_a_mapping() -> None:
    with pytest.raises(InputError, match="'rope_thet=1': LlamaConfig has no field 'rope_thet'"):
        parity.run("tiny", overrides={"rope_thet": 1})


@pytest.mark.parametrize(
    "given",
    [
        "f32,bf16",
        "float32, bfloat16",
        ["bf16", jnp.float32],
        (np.float32, jnp.bfloat16),
        "BF16,F32",
    ],
)
def test_dtypes_by_any_of_their_names(given: Any) -> None:
    assert choose_dtypes(given) == ("f32", "bf16")


def test_one_dtype_all_and_none() -> None:
    assert choose_dtypes(jnp.float64) == choose_dtypes(np.dtype(np.float64)) == ("f64",)
    assert choose_dtypes("all") == choose_dtypes(None) == ("f64", "f32", "bf16")


@pytest.mark.parametrize("given", ["f16", "int8", "", [], "f32,nonsense", jnp.int32])
def test_other_dtypes_are_refused(given: Any) -> None:
    with pytest.raises(InputError, match=r"^dtypes.*expected one"):
        choose_dtypes(given)


def test_subjects_and_limits_are_by_any_name(tmp_path: Path) -> None:
    checkpoint = small()
    subject = from_callable(
        lambda _: {}, names={"a": "logits"}, config=checkpoint.config, dtype=jnp.float32
    )
    assert subject.dtype == "f32"
    assert list(resolve_subject({"float32": subject})) == ["f32"]  # type: ignore[arg-type]
    result = parity.run(checkpoint, dtypes="float32", modes="free", scenarios="causal", length=5)
    parity.write_report(result, json=tmp_path / "r.json")
    assert parity.recheck(tmp_path / "r.json", limits=["float32.free=9"]).rows[0].limit == 9


@pytest.mark.parametrize("dtype", ["f32", "float32", jnp.float32, np.dtype(np.float32)])
def test_subjects_take_every_name_of_a_dtype(dtype: Any) -> None:
    checkpoint = small()
    model = load_model(checkpoint, dtype=dtype)
    made = (
        JaxLlama(model, dtype),
        TorchReference(checkpoint, dtype=dtype),
        HFLlama(checkpoint, dtype=dtype),
    )
    assert {one.dtype for one in made} == {"f32"}
    assert at_least_float32(dtype) == np.float32


@pytest.mark.ill_typed
def test_subjects_by_dtype_are_refused_all_at_once() -> None:
    subject = TorchReference(small(), dtype="f32")
    given: Any = {"f32": subject, "float32": subject, "f16": subject, "x": subject, "bf16": 3}
    with pytest.raises(InputError) as caught:
        resolve_subject(given)
    said = str(caught.value)
    assert said.startswith("subject: f32 twice, f16, x, bf16: no subject; expected subjects")
