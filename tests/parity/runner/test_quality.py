"""`parity run --quant`: how much a quantised model loses, and that it is never called equal."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import jax
import numpy as np
import pytest
from planting import planted

import parity
from jaxllama.checkpoint import Checkpoint, convert, load_model, tiny
from jaxllama.checkpoint.hf import read as hf_read
from jaxllama.errors import InputError
from parity.cli import main
from parity.comparison.quality import QualityFigures, QualityMeter
from parity.comparison.reference import ReferenceTap
from parity.report.wording import headline, summary
from parity.result import EXIT_CODES, Result
from parity.runner.quality import measure
from parity.scenarios import scenario
from parity.subjects.jaxllama.subject import JaxLlama
from parity.subjects.torch_reference.subject import TorchReference

SHORT = {"length": 23, "dtypes": "f32"}
LAYERS = 2


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return tiny(num_hidden_layers=LAYERS)


@pytest.fixture(scope="module")
def int8(checkpoint: Checkpoint) -> Result:
    return parity.run(checkpoint, quant="int8", **SHORT)


@pytest.fixture(scope="module")
def int4(checkpoint: Checkpoint) -> Result:
    return parity.run(checkpoint, quant="int4:8", **SHORT)


def figures(result: Result) -> QualityFigures:
    assert result.quality is not None
    return result.quality.lanes[0]


def test_the_verdict_is_of_quality_alone(int8: Result) -> None:
    assert (int8.verdict, int8.exit_code) == ("quality", 0)
    assert EXIT_CODES["quality"] == 0 and not int8.rows
    said = headline(int8)
    assert said.startswith("quality: int8 weights against the float64 reference: f32 KL ")
    assert "equal" not in "\n".join(summary(int8))
    assert int8.subject == "jaxllama-int8"
    with pytest.raises(AssertionError, match=r"^quality: int8 weights"):
        parity.assert_equal(int8)


def test_more_bits_lose_less_in_every_figure(int8: Result, int4: Result) -> None:
    eight, four = figures(int8), figures(int4)
    assert 1e-6 < eight.kl_mean < eight.kl_max < 0.05
    assert four.kl_mean > 20 * eight.kl_mean and four.kl_max > 20 * eight.kl_max
    assert four.top1_agreement < eight.top1_agreement <= 1
    assert eight.tokens == 23 and eight.foretold == 22
    assert eight.reference_perplexity == four.reference_perplexity
    assert abs(np.log(eight.perplexity / eight.reference_perplexity)) < 0.05
    for one, other in zip(eight.layers, four.layers, strict=True):
        assert other.isolated > 5 * one.isolated and other.free > 5 * one.free
    first, last = eight.layers[0], eight.layers[-1]
    # Nothing is before the first layer; what is before the last adds to what it loses itself.
    assert first.free == pytest.approx(first.isolated, rel=1e-6)
    assert last.free > 1.2 * last.isolated


def test_what_is_not_rounded_loses_nothing(checkpoint: Checkpoint) -> None:
    """The same way, unquantised: a cache of float64 in a float64 run."""
    result = parity.run(checkpoint, cache_dtype="f64", length=23, dtypes="f64")
    found = figures(result)
    assert result.verdict == "quality"  # not even then is it called equal
    assert found.kl_max < 1e-25 and found.top1_agreement == 1
    assert found.perplexity == pytest.approx(found.reference_perplexity, rel=1e-12)
    assert max(layer.free_max for layer in found.layers) < 1e-12


def test_a_rounded_cache_is_measured_by_itself(checkpoint: Checkpoint, int8: Result) -> None:
    result = parity.run(checkpoint, cache_dtype="int8", **SHORT)
    found = figures(result)
    assert 1e-7 < found.kl_mean < 0.05
    assert result.quality is not None and result.quality.quant is None
    assert "int8 cache against" in headline(result)
    both = figures(parity.run(checkpoint, quant="int8", cache_dtype="int8", **SHORT))
    assert both.layers[0].isolated > max(found.layers[0].isolated, figures(int8).layers[0].isolated)


def test_scales_of_another_head_show(checkpoint: Checkpoint, int8: Result) -> None:
    """A fault that the checkpoint's reader and every shape let pass."""
    inputs = scenario("causal", lambda text: list(text.encode()), checkpoint.config, length=23)
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        reference = TorchReference(checkpoint, dtype="f64")

        def loss(shift: int) -> QualityFigures:
            model = load_model(checkpoint, dtype="float32", quant="int8", form="unrolled")
            weight = model.layers[1].self_attn.q_proj.weight[...]
            rolled = np.roll(np.asarray(weight.scale), shift)
            object.__setattr__(weight, "scale", jax.device_put(rolled))
            model.layers[1].self_attn.q_proj.weight.set_value(weight)
            subject = JaxLlama(model, "f32")
            return measure(reference, {"f32": subject}, [inputs], checkpoint.config)[0]

        right, wrong = loss(0), loss(checkpoint.config.head_dim)
    assert wrong.kl_mean > 10 * right.kl_mean
    assert wrong.layers[1].isolated > 3 * right.layers[1].isolated
    assert wrong.layers[0] == right.layers[0]  # which layer it is, is told


@pytest.mark.parametrize(
    ("module", "before", "after"),
    [
        ("arrays", "np.rint(wide / _nonzero(scale))", "np.rint(0.9 * wide / _nonzero(scale))"),
        ("product", "total / _BASE + part", "total + part"),
        (
            "choice",
            "        if self.bits == 8:\n            return Int8",
            "        if True:\n            return Int8",
        ),
    ],
)
def test_faults_of_each_module_show(
    checkpoint: Checkpoint, int8: Result, int4: Result, module: str, before: str, after: str
) -> None:
    quant, right = ("int4:8", int4) if module == "choice" else ("int8", int8)
    with planted(f"jaxllama.quantisation.{module}", before, after):
        found = figures(parity.run(checkpoint, quant=quant, **SHORT))
    if module == "choice":  # int4 that is none loses too little
        assert found.kl_mean < figures(right).kl_mean / 5
    else:
        assert found.layers[0].isolated > 3 * figures(right).layers[0].isolated


def test_a_checkpoint_that_is_read_wrong_is_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(tiny(num_hidden_layers=1), tmp_path / "one", to="hf")
    result = parity.run(tmp_path / "one", quant="int8", length=7)
    assert result.reading is not None and not result.reading.differences
    read = hf_read.read_tensor
    monkeypatch.setattr(hf_read, "read_tensor", lambda *which: 2 * read(*which))
    with pytest.raises(InputError, match="would count as lost by rounding; leave out quant"):
        parity.run(tmp_path / "one", quant="int8", length=7)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"subject": "hf"}, "quant with subject='hf': only this project's model is quantised here"),
        ({"subject": "no.such:thing"}, "no.such"),
        ({"modes": "tokens"}, "quant with modes='tokens': expected free, isolated"),
        ({"modes": "free,decode,grad"}, "quant with modes='decode,grad': expected free, isolated"),
        ({"reference": "hf"}, "quant with reference='hf': expected torch"),
        ({"stream": True}, "quant with stream: a quantised model is loaded whole"),
        ({"quant": "int3"}, "quant int3: expected one of int8, int4, int4:GROUP"),
        ({"quant": "int4"}, "quant='int4': groups of 32 .*; give int4:8"),
        ({"cache_dtype": "int4"}, "cache_dtype int4: expected one of f64.*; or int8"),
    ],
)
def test_what_does_not_go_with_it_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        parity.run("tiny", **{"quant": "int8", **options})


def test_the_reports_have_every_figure(int8: Result, tmp_path: Path) -> None:
    places = {kind: tmp_path / f"r.{kind}" for kind in ("json", "html", "junit")}
    parity.write_report(int8, **places)
    document = json.loads(places["json"].read_text())
    assert (document["schema_version"], document["verdict"]) == ("1.5", "quality")
    (lane,) = document["quality"]["lanes"]
    found = figures(int8)
    assert lane["kl_mean"] == found.kl_mean and len(lane["layers"]) == LAYERS
    assert document["quality"]["weights_bytes"] < 0.6 * document["quality"]["bf16_bytes"]
    page = places["html"].read_text()
    for said in ("quality", "int8 weights", f"{found.kl_mean:.2e}", f"{found.kl_max:.2e}"):
        assert said in page
    assert page.count('class="bar"') == 2 * LAYERS and "<script" not in page
    suite = ET.fromstring(places["junit"].read_text())
    assert (suite.get("failures"), suite.get("errors")) == ("0", "0")
    told = {p.get("name"): p.get("value") for p in suite.iter("property")}
    assert told["verdict"] == "quality"
    with pytest.raises(InputError, match="a result of quality, which has no limits"):
        parity.recheck(places["json"])


def test_the_command_says_it_first_and_can_be_repeated(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["tiny", "--quant", "int4:8", "--cache-dtype", "int8", "--length", "9"]
    monkeypatch.setattr(sys, "argv", ["parity", "run", *options])
    with pytest.raises(SystemExit) as exit_:
        main()
    out = capsys.readouterr().out
    assert exit_.value.code == 0
    assert out.startswith("quality: int4:8 weights, int8 cache against the float64 reference: f32")
    assert "top-1" in out and "by itself" in out and "bytes, 0." in out
    again = out.strip().splitlines()[-1]
    assert again.endswith("--length 9 --quant int4:8 --cache-dtype int8")


def test_logits_that_are_not_finite_foretell_nothing() -> None:
    rng = np.random.default_rng(0)
    truth, valid = rng.standard_normal((1, 3, 5)), np.ones((1, 3), bool)
    tap = ReferenceTap("logits", truth, valid, np.ones((1, 3, 3), bool))
    meter = QualityMeter("f32")
    broken = truth.copy()
    broken[0, 1, 2] = np.nan
    meter.add_logits(tap, broken, [(0, 0, 1), (0, 1, 2)])
    found = meter.figures()
    assert found.kl_max == found.kl_mean == found.perplexity == np.inf
    assert found.top1_agreement == pytest.approx(2 / 3) and np.isfinite(found.reference_perplexity)
