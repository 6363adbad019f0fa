"""Models not written here as subjects, worked examples first."""

from __future__ import annotations

import importlib
from typing import Any

import foreign_llamas as llamas
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.models.llama import modeling_llama
from witnesses import inputs_for, small

import parity
from jaxllama.errors import InputError
from parity.inputs import Inputs
from parity.report.wording import summary
from parity.result import Result
from parity.subjects import Calls, Tap, from_callable, from_nnx, from_torch
from parity.subjects.adapters.layouts import canonical, native, sizes_of
from parity.subjects.base import Subject
from parity.taps import AXES, GRAD_TAPS

# What tunix uses of JAX and Flax is older than what is installed.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:tunix")

# Neither implementation reads llama3's scaling in the version tested here, or it needs none.
CHECKPOINT = small(scaling=None)
CONFIG = CHECKPOINT.config
SETUP = {"rope.inv_freq", "positions", "mask", "cache.k", "cache.v"}


def judged(subject: Subject, **options: Any) -> Result:
    settings: dict[str, Any] = {"scenarios": "left_padded", "length": 17}
    return parity.run(CHECKPOINT, subject=subject, **(settings | options))


def hf(names: Any = None, **changes: Any) -> Subject:
    model = llamas.hf_model(CHECKPOINT, **changes)
    names = llamas.HF_NAMES if names is None else names
    return from_torch(model, names=names, call=llamas.hf_call, config=CONFIG)


@pytest.fixture(scope="module")
def tunix() -> Any:
    return llamas.tunix_model(CHECKPOINT)


@pytest.fixture
def theta_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mend what parity finds in tunix: its rotation never gets the config's theta."""
    rotate = llamas.tunix().apply_rope
    monkeypatch.setattr(rotate, "__defaults__", (int(CONFIG.rope_theta),))


def nnx(model: Any, names: Any = None, call: Any = llamas.tunix_call) -> Subject:
    names = llamas.TUNIX_NAMES if names is None else names
    return from_nnx(model, names=names, call=call, config=CONFIG)


# Worked example: Hugging Face's Llama, a PyTorch module.


def test_transformers_is_equal_in_all_it_shows() -> None:
    result = judged(hf())
    assert result.verdict == "equal"
    assert {row.mode for row in result.rows} == {"free", "isolated", "probe"}
    assert set(result.absent) == SETUP
    assert result.compared == result.expected - 3
    assert result.not_run[0] == "decode (the subject shows no cache)"


def test_transformers_with_a_wrong_theta_is_caught_placed_and_explained() -> None:
    changed = {**CHECKPOINT.hf_config.get("rope_parameters", {}), "rope_theta": 1e4}
    result = judged(hf(rope_theta=1e4, rope_parameters={"rope_type": "default", **changed}))
    assert result.first_divergence is not None and result.cause is not None
    assert result.first_divergence.row.tap == "layers.0.q_rope"
    assert result.first_divergence.kind == "operator"
    assert result.cause.id == "rope-theta" and result.cause.confirmed


# Worked example: google-tunix's Llama 3, an NNX module. What parity finds in it is real.


def test_tunix_rotates_by_another_theta_than_its_config_says(tunix: Any) -> None:
    assert tunix.config.rope_theta == CONFIG.rope_theta == 500_000
    result = judged(nnx(tunix))
    assert (result.verdict, result.exit_code) == ("divergent", 1)
    assert result.first_divergence is not None and result.cause is not None
    assert result.first_divergence.row.tap == "layers.0.q_rope"
    assert result.cause.id == "rope-theta" and result.cause.confirmed
    assert (result.cause.effective, result.cause.configured) == ("theta 1e+06", "500000")


def test_the_default_run_names_tunix_theta_and_its_missing_scaling(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scaled = small()
    model = llamas.tunix_model(scaled)
    subject = from_nnx(
        model, names=llamas.TUNIX_NAMES, call=llamas.tunix_call, config=scaled.config
    )
    # It shows neither positions nor a table of frequencies.
    assert subject.absent >= SETUP
    result = parity.run(scaled, subject=subject)
    assert result.cause is not None and result.cause.confirmed
    named = [result.cause, *result.cause.others]
    assert [(one.id, one.effective, one.configured) for one in named] == [
        ("rope-theta", "theta 1e+06", "500000"),
        ("rope-scaling", "none", "llama3 8/1/4/8192"),
    ]
    # With the one mended, the other is left.
    monkeypatch.setattr(llamas.tunix().apply_rope, "__defaults__", (500_000,))
    result = parity.run(scaled, subject=subject, scenarios="left_padded", length=17)
    assert result.cause is not None and result.cause.confirmed
    assert (result.cause.id, result.cause.others) == ("rope-scaling", [])


@pytest.mark.usefixtures("theta_obeyed")
def test_tunix_is_equal_but_for_that(tunix: Any) -> None:
    result = judged(nnx(tunix))
    assert result.verdict == "equal"
    assert set(result.absent) == SETUP
    assert {row.mode for row in result.rows} == {"free", "isolated", "probe"}


@pytest.mark.usefixtures("theta_obeyed")
def test_a_broken_weight_in_tunix_is_placed_at_its_operator(tunix: Any) -> None:
    weight = tunix.layers[1].mlp.up_proj.kernel
    right = weight[...]
    weight[...] = right.at[3, 5].mul(-2)
    try:
        result = judged(nnx(tunix))
    finally:
        weight[...] = right
    assert result.first_divergence is not None
    assert result.first_divergence.row.tap == "layers.1.up_proj"
    assert result.first_divergence.kind == "operator"


# Partial names: coarser, never silent.

COARSE = {"layers.{i}": Tap("layers.{i}.output", item=1), "output": Tap("logits", item=0)}


def test_few_names_give_a_coarse_place_and_say_what_lies_before_it(tunix: Any) -> None:
    result = judged(nnx(tunix, COARSE))
    assert result.first_divergence is not None
    assert result.first_divergence.row.tap == "layers.0.output"
    assert result.compared == 4 and "layers.q_rope" in result.absent
    said = "\n".join(summary(result))
    assert said.startswith("divergent: 4 of 60 taps")
    assert "not shown just before it: embed, layers.0.input, " in said
    alone = "\n".join(summary(judged(nnx(tunix, COARSE), modes="free")))
    assert "nothing was run on the reference's inputs" in alone


@pytest.mark.usefixtures("theta_obeyed")
def test_few_names_are_enough_to_be_equal_and_the_rest_is_declared(tunix: Any) -> None:
    result = judged(nnx(tunix, COARSE))
    assert result.verdict == "equal"
    forward = {kind for kind in AXES if kind not in GRAD_TAPS}
    assert set(result.absent) == forward - {"layers.output", "logits"}


def test_a_name_that_shows_nothing_leaves_the_verdict_open() -> None:
    names = llamas.HF_NAMES | {"torch.nn.functional.gelu()": "mask"}
    result = judged(hf(names), modes="free")
    assert (result.verdict, result.unmatched) == ("inconclusive", ("mask",))


# Any function.


def shown(inputs: Inputs, *, theta: float = CONFIG.rope_theta) -> dict[str, Any]:
    config = CONFIG.replace(rope_theta=theta)
    from parity.subjects.torch_reference.subject import TorchReference

    run = TorchReference(CHECKPOINT, dtype="f32", config=config).start(inputs)
    taps: dict[str, Any] = {}
    for _ in range(CONFIG.num_hidden_layers + 2):
        taps |= run.step()
    states = [taps[f"layers.{i}.output"] for i in range(CONFIG.num_hidden_layers)]
    return {f"block{i}": state.reshape(-1, state.shape[-1]) for i, state in enumerate(states)} | {
        "scores": jnp.asarray(taps["logits"])
    }


FUNCTION_NAMES = {"block{i}": Tap("layers.{i}.output", axes="(BT)D"), "scores": "logits"}


def test_a_function_of_its_own_names() -> None:
    subject = from_callable(shown, names=FUNCTION_NAMES, config=CONFIG)
    result = judged(subject)
    assert result.verdict == "equal" and result.compared == 4
    wrong = from_callable(lambda i: shown(i, theta=1e4), names=FUNCTION_NAMES, config=CONFIG)
    result = judged(wrong)
    assert result.first_divergence is not None
    assert result.first_divergence.row.tap == "layers.0.output"
    mute = from_callable(lambda i: {}, names=FUNCTION_NAMES, config=CONFIG)
    with pytest.raises(InputError, match="no tap was compared"):
        judged(mute)


# Layouts.


@pytest.mark.parametrize(
    ("name", "axes"),
    [
        ("layers.{i}.q_proj", "BT(NH)"),
        ("layers.{i}.q_proj", "HNBT"),
        ("layers.{i}.q_proj", "B(KG)TH"),
        ("layers.{i}.k_proj", "B1T(KH)"),
        ("layers.{i}.attn_probs", "BKGTS"),
        ("layers.{i}.attn_probs", "(BKG)TS"),
        ("layers.{i}.output", "TBD"),
        ("layers.{i}.q_proj", "BTN(R2)"),
        ("layers.{i}.q_proj", "BT(KGR2)"),
        ("layers.{i}.k_rope", "2RBTK"),
    ],
)
def test_layouts_go_there_and_back(name: str, axes: str) -> None:
    inputs = inputs_for(CHECKPOINT, "causal", 7)
    sizes, tap = sizes_of(CONFIG, inputs), Tap(name, axes, scale=0.5)
    shape = [sizes[letter] for letter in AXES[name.replace(".{i}", "")]]
    array = np.random.default_rng(3).normal(size=shape)
    there = native(array, tap, sizes)
    assert np.array_equal(canonical(there, tap, sizes), array)
    assert np.array_equal(native(canonical(there, tap, sizes), tap, sizes), there)


def test_pairs_lie_side_by_side_or_in_halves() -> None:
    sizes = sizes_of(CONFIG, inputs_for(CHECKPOINT, "causal", 7))
    H, R = sizes["H"], sizes["R"]
    pairs = np.broadcast_to(np.arange(H), (1, 7, sizes["K"], H))
    halves = canonical(pairs, Tap("layers.{i}.k_rope", "BTK(R2)"), sizes)
    assert halves[0, 0, 0].tolist() == [*range(0, H, 2), *range(1, H, 2)]
    same = canonical(halves, Tap("layers.{i}.k_rope", "BTK(2R)"), sizes)
    assert np.array_equal(same, halves) and R * 2 == H


def test_head_axes_are_grouped_as_query_heads_are_counted() -> None:
    inputs = inputs_for(CHECKPOINT, "causal", 7)
    sizes = sizes_of(CONFIG, inputs)
    K, G = sizes["K"], sizes["G"]
    grouped = np.broadcast_to(
        (np.arange(K)[:, None] * G + np.arange(G))[None, :, :, None, None], (1, K, G, 7, 7)
    )
    heads = canonical(grouped, Tap("layers.{i}.attn_scores", "BKGTS"), sizes)
    assert heads.shape == (1, K * G, 7, 7)
    assert (heads[0, :, 0, 0] == np.arange(K * G)).all()


def test_a_wrong_layout_is_a_finding() -> None:
    place = "model.layers.{i}.self_attn.q_proj"
    for axes, said in (("BT(HN)", "error"), ("BTNH", "shape")):
        names = llamas.HF_NAMES | {place: Tap("layers.{i}.q_proj", axes=axes)}
        result = judged(hf(names), modes="free")
        assert result.first_divergence is not None, axes
        assert result.first_divergence.row.tap == "layers.0.q_proj"
        problems = " ".join(result.first_divergence.row.problems)
        assert ("shape" in problems) == (said == "shape")


# What cannot be.


def test_a_layout_declared_in_vain_is_refused() -> None:
    sizes = sizes_of(CONFIG, inputs_for(CHECKPOINT, "causal", 7))
    array = np.zeros([sizes[letter] for letter in "BTNH"])
    assert canonical(array, Tap("layers.{i}.q_proj"), sizes) is array
    with pytest.raises(InputError, match=r"is the canonical layout.*leave them out"):
        canonical(array, Tap("layers.{i}.q_proj", "BT(NH)"), sizes)


def test_all_names_that_are_wrong_are_said_at_once() -> None:
    names: dict[str, Any] = {
        "model.layers.{i}.mlp": "layers.{i}.mlp",
        "model.norm": Tap("norm", axes="BTN"),
        "model.embed_tokens": "embed",
        "model.embed_tokens:before": "embed",
        "lm_head": "layers.3.output",
    }
    with pytest.raises(InputError) as caught:
        hf(names)
    said = str(caught.value)
    for part in ("layers.{i}.mlp", "'BTN'", "named twice", "after the colon", "layers.3.output"):
        assert part in said
    with pytest.raises(InputError, match="no names"):
        hf({})


def test_places_that_the_module_does_not_have() -> None:
    names = {"model.layers.{i}.mlp.gate": "layers.{i}.gate_proj", "torch.nn.gone()": "norm"}
    with pytest.raises(InputError) as caught:
        hf(names)
    assert "model.layers.2.mlp.gate: no module" in str(caught.value)
    assert "torch.nn.gone: no function" in str(caught.value)


def test_a_function_called_more_often_than_said(tunix: Any) -> None:
    names = {"tunix.models.llama3.model.apply_rope()": "layers.{i}.q_rope"}
    with pytest.raises(InputError, match="called more often than 1 times in each of 3 layers"):
        judged(nnx(tunix, names), modes="free")


def test_values_inside_a_transformation_cannot_be_taken_out(tunix: Any) -> None:
    def compiled(model: Any, inputs: Inputs) -> Any:
        return jax.jit(lambda tokens: llamas.tunix_call(model, inputs))(inputs.tokens)

    with pytest.raises(InputError, match="inside a JAX transformation"):
        judged(nnx(tunix, call=compiled), modes="free")


def test_nothing_stays_exchanged_and_other_threads_see_nothing() -> None:
    before = modeling_llama.apply_rotary_pos_emb, torch.nn.functional.softmax
    forward = modeling_llama.LlamaMLP.forward
    subject = hf()
    inputs = inputs_for(CHECKPOINT, "causal", 5)
    first, second = subject.start(inputs), subject.start(inputs)
    a, b = first.step(), second.step()
    assert modeling_llama.apply_rotary_pos_emb is not before[0]
    inner = llamas.hf_call(llamas.hf_model(CHECKPOINT), inputs)  # unwatched, in this thread
    assert inner.logits.shape[-1] == CONFIG.vocab_size
    assert np.array_equal(a["embed"], b["embed"])
    for _ in range(CONFIG.num_hidden_layers + 1):
        a, b = first.step(), second.step()
        assert list(a) == list(b)
    for run in (first, second):
        run.close()  # type: ignore[attr-defined]
    assert (modeling_llama.apply_rotary_pos_emb, torch.nn.functional.softmax) == before
    assert modeling_llama.LlamaMLP.forward is forward


# Subjects by name.


def test_a_backend_by_its_name() -> None:
    result = parity.run(
        CHECKPOINT, subject="dot_product", dtypes="f32", scenarios="causal", length=7, modes="free"
    )
    assert result.verdict == "equal"
    assert result.absent == ("layers.attn_probs", "layers.attn_scores")
    assert "subject='dot_product'" in result.command and "length=7" in result.command


def test_a_subject_of_the_users_own_module(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "from parity.subjects.jaxllama.subject import JaxLlama\n"
        "def make(m, d): return JaxLlama(m, d)\n"
    )
    (tmp_path / "mine_here.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    importlib.invalidate_caches()
    options: dict[str, Any] = {"dtypes": "f32", "scenarios": "causal", "length": 5, "modes": "free"}
    assert parity.run(CHECKPOINT, subject="mine_here:make", **options).verdict == "equal"
    with pytest.raises(InputError, match="mine_here:missing"):
        parity.run(CHECKPOINT, subject="mine_here:missing", **options)


@pytest.mark.ill_typed
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"subject": "nonsense"}, "nonsense"),
        ({"subject": 3}, "neither a subject"),
        ({"subject": {}}, "none given"),
        ({"subject": {"f16": 1}}, "f16"),
        ({"subject": "hf", "dtypes": "f64"}, "works in f32 inside"),
    ],
)
def test_what_is_no_subject(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        parity.run(CHECKPOINT, scenarios="causal", length=5, **options)


def test_what_a_given_subject_cannot_do() -> None:
    with pytest.raises(InputError, match="no run through a cache"):
        judged(hf(), modes="decode")
    with pytest.raises(InputError, match="no subject of that dtype"):
        judged(hf(), dtypes="f64")
    with pytest.raises(InputError, match="config of its own"):
        judged(hf(), overrides=["rope_theta=1e6"])


def test_calls_and_taps_are_what_the_page_says() -> None:
    assert Calls("a", "b").taps == ("a", "b")
    assert Tap("norm") == Tap(name="norm", axes=None, item=None, scale=1)
