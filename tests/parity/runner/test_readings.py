"""A checkpoint read twice: every fault of jaxllama's readers is seen by the run, and named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree as ET

import gguf
import ml_dtypes
import numpy as np
import pytest
from rich.console import Console
from written_checkpoints import model, weights_of, write_all, write_gguf, write_hf

from jaxllama.checkpoint import convert, names, open_checkpoint
from jaxllama.checkpoint.gguf import file as gguf_file
from jaxllama.checkpoint.gguf import read as gguf_read
from jaxllama.checkpoint.hf import read as hf_read
from jaxllama.checkpoint.load import arrays
from jaxllama.checkpoint.meta import directory as meta
from jaxllama.checkpoint.orbax.arrays import ArrayStore
from jaxllama.config import LlamaConfig, RopeScaling
from jaxllama.config_formats import gguf as gguf_config
from jaxllama.config_formats import hf as hf_config
from jaxllama.config_formats import meta as meta_config
from jaxllama.errors import CheckpointError, InputError
from parity.report import html_file, junit_file, terminal
from parity.result import Result
from parity.runner.capture import capture
from parity.runner.compare_captures import compare
from parity.runner.readings import compare_readings
from parity.runner.recheck import recheck
from parity.runner.run import run
from parity.sources.open import open_source

Q, K, V = (f"model.layers.0.self_attn.{p}_proj.weight" for p in "qkv")
GATE, UP = (f"model.layers.0.mlp.{p}_proj.weight" for p in ("gate", "up"))
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = write_all(model(), tmp_path_factory.mktemp("written"))
    split = tmp_path_factory.mktemp("split")
    write_gguf(model(), split / "model.gguf", split_max_tensors=8)
    return found | {"split": split}


def quick(path: Any, **options: Any) -> Result:
    settings: dict[str, Any] = {"dtypes": "f64", "scenarios": "causal", "length": 16}
    return run(path, **(settings | {"modes": "free"} | options))


Plant = Callable[[pytest.MonkeyPatch], None]


def replaced(owner: Any, name: str, wrong: Callable[..., Any]) -> Plant:
    """Return a fault: `wrong` is called with the right function and its arguments."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        right = getattr(owner, name)
        patch.setattr(owner, name, lambda *a, **k: wrong(right, *a, **k))

    return plant


def misread(format: Any, **wrong: Any) -> Plant:
    """Return a fault that reads fields of a configuration wrong."""
    return replaced(format, "LlamaConfig", lambda make, **fields: make(**(fields | wrong)))


def exchanged(a: str, b: str) -> Plant:
    """Return a name table that has two parts of a layer the wrong way round."""

    def wrong(right: Any, name: str, dialect: Any) -> Any:
        found = right(name, dialect)
        if found is None or not (a in found or b in found):
            return found
        return found.replace(a, b) if a in found else found.replace(b, a)

    return replaced(names, "from_dialect", wrong)


def changed_weight(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Plant:
    """Return a fault in how a tensor of a Hugging Face directory is read."""
    order = list(weights_of(model()))

    def wrong(right: Any, path: Path, slot: Any) -> np.ndarray:
        values = right(path, slot)
        expected = weights_of(model())[order[order.index(name)]]
        return change(values) if np.array_equal(values, expected) else values

    return replaced(hf_read, "read_tensor", wrong)


def rounded(values: np.ndarray) -> np.ndarray:
    return values.astype(ml_dtypes.bfloat16).astype(values.dtype)


def dequantised_off(patch: pytest.MonkeyPatch) -> None:
    def wrong(data: np.ndarray, kind: Any) -> np.ndarray:
        return gguf.dequantize(data, kind) * np.float32(1 + 2**-20)

    own = SimpleNamespace(**{**vars(gguf), "dequantize": wrong})
    patch.setattr(gguf_file, "gguf", own)


def of_another_layer(right: Any, store: Any, name: str) -> Any:
    """Read the second layer's o_proj in place of the first's."""
    return right(store, name.replace("0.self_attn.o", "1.self_attn.o"))


def of_another_part(right: Any, path: Path) -> Any:
    """Read the second layer's output in the place of the first's, which lies in another file."""
    found = right(path)
    found.tensors["blk.0.attn_output.weight"] = found.tensors["blk.1.attn_output.weight"]
    return found


ANOTHER = RopeScaling(
    kind="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=2.0,
    original_max_position_embeddings=8192,
)
UNTURNED = "the same values in another order"
FAULTS: dict[str, tuple[str, Plant, str, str]] = {
    # name: format, fault, what is named, and what is said of it
    "theta": ("hf", misread(hf_config, rope_theta=1e4), "config.rope_theta", "10000.0 as"),
    "eps": ("hf", misread(hf_config, rms_norm_eps=1e-6), "config.rms_norm_eps", "1e-06 as"),
    "no scaling": (
        "hf",
        misread(hf_config, rope_scaling=None),
        "config.rope_scaling",
        "rope_parameters",
    ),
    "another scaling": (
        "hf",
        misread(hf_config, rope_scaling=ANOTHER),
        "config.rope_scaling.high_freq_factor",
        "2.0 as jaxllama reads it, 4.0 in config.json",
    ),
    "heads": (
        "hf",
        misread(hf_config, num_attention_heads=12, num_key_value_heads=4, head_dim=8),
        "config.num_attention_heads",
        "12 as jaxllama reads it, 6 in config.json: num_attention_heads",
    ),
    "end": ("hf", misread(hf_config, eos_token_ids=(1,)), "config.eos_token_ids", "eos_token_id"),
    "k and v": ("hf", exchanged("k_proj", "v_proj"), K, f"what the file has as {V}"),
    "gate and up": ("hf", exchanged("gate_proj", "up_proj"), GATE, f"what the file has as {UP}"),
    "transposed": ("hf", changed_weight(Q, np.transpose), Q, "(transposed)"),
    "rounded": ("hf", changed_weight(UP, rounded), UP, "(rounded through bfloat16)"),
    "pairs kept": (
        "meta",
        replaced(meta, "half_split", lambda right, values, heads: values),
        Q,
        UNTURNED,
    ),
    "heads of k": (
        "meta",
        replaced(meta, "heads_of", lambda right, e, c: 6 if e.rotary == "N" else 1),
        K,
        UNTURNED,
    ),
    "meta's names": ("meta", exchanged("gate_proj", "up_proj"), GATE, "feed_forward.w3"),
    "ranks": (
        "meta",
        replaced(meta, "_shard_files", lambda right, path: right(path)[::-1]),
        EMBEDDING,
        UNTURNED,
    ),
    "meta's factor": (
        "meta",
        replaced(meta_config, "_rope_scaling", lambda right, *_: ANOTHER),
        "config.rope_scaling.high_freq_factor",
        "params.json: use_scaled_rope",
    ),
    "gguf's pairs": (
        "gguf",
        replaced(gguf_read, "half_split", lambda right, values, heads: values),
        Q,
        UNTURNED,
    ),
    "gguf's heads of q": ("gguf", replaced(gguf_read, "heads_of", lambda *_: 2), Q, "blk.0.attn_q"),
    "dequantised": ("gguf", dequantised_off, GATE, "blk.0.ffn_gate.weight"),
    "no divisors": (
        "gguf",
        replaced(gguf_config, "_solve_llama3", lambda *_: None),
        "config.rope_scaling",
        "rope_freqs.weight",
    ),
    "gguf's digits": (
        "gguf",
        replaced(gguf_config, "shortest_float", lambda right, value: float(value)),
        "config.rms_norm_eps",
        "layer_norm_rms_epsilon",
    ),
    "another part": (
        "split",
        replaced(gguf_read, "read_parts", of_another_part),
        "model.layers.0.self_attn.o_proj.weight",
        "what the file has as blk.1.attn_output.weight",
    ),
    "another layer": (
        "orbax",
        replaced(ArrayStore, "read", of_another_layer),
        "model.layers.0.self_attn.o_proj.weight",
        "what the file has as model.layers.1.self_attn.o_proj.weight",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_a_reader_is_named(
    fault: str, written: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    format, plant, what, said = FAULTS[fault]
    plant(monkeypatch)
    result = quick(written[format])
    assert result.verdict == "divergent"
    assert result.difference == "reading"
    assert result.first_divergence is not None and result.cause is not None
    assert result.first_divergence.row.tap == what
    assert result.cause.confirmed, result.cause
    assert said in result.cause.summary
    assert not result.disagreeing  # the witnesses run on parity's reading
    moved = [row for row in result.rows if not row.passed]
    assert bool(moved) == (fault != "end")


@pytest.mark.parametrize("format", ["hf", "meta", "gguf", "split", "orbax"])
def test_an_honest_run_of_each_format_is_equal(format: str, written: dict[str, Path]) -> None:
    result = quick(written[format], reference="torch,hf")
    assert result.verdict == "equal" and result.cause is None
    assert result.reading is not None and not result.reading.differences
    assert (result.reading.fields, result.reading.tensors) == (15, 21)


def test_a_tied_head_that_is_missed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No tap moves: the file holds the head twice."""
    path = tmp_path / "meta"
    convert(model(tie_word_embeddings=True), path, to="meta")
    (path / "jaxllama_manifest.json").unlink()  # by which jaxllama would see it
    assert not compare_readings(open_checkpoint(path), open_source(path)).differences
    monkeypatch.setattr(meta, "_is_tied", lambda shards: False)
    result = quick(path)
    assert result.reading is not None
    named = [one.what for one in result.reading.differences]
    assert named == ["config.tie_word_embeddings", HEAD]
    assert all(row.passed for row in result.rows)
    assert (result.verdict, result.exit_code) == ("divergent", 1)


def test_a_fault_beside_a_misreading_is_said_too(
    written: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    misread(hf_config, rope_theta=1e4)(monkeypatch)
    result = quick(written["hf"], overrides="rms_norm_eps=1e-3")
    assert result.first_divergence is not None and result.cause is not None
    assert result.first_divergence.row.tap == "config.rope_theta"
    assert not result.cause.confirmed
    assert [one.id for one in result.cause.others] == ["norm-eps"]


def first_layer_twice(right: Any, checkpoint: Any, name: str, *arguments: Any) -> np.ndarray:
    name = name.replace("layers.1.self_attn.o_proj", "layers.0.self_attn.o_proj")
    return right(checkpoint, name, *arguments)


@pytest.mark.parametrize(
    ("plant", "tap"),
    [
        (replaced(arrays.ArrayReader, "_checked", first_layer_twice), "layers.1.o_proj"),
        (replaced(arrays, "cast", lambda right, values, dtype: rounded(values)), "embed"),
    ],
)
def test_a_fault_of_loading_is_seen_by_the_taps(
    plant: Plant, tap: str, written: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    result = quick(written["gguf"])
    assert result.reading is not None and not result.reading.differences
    assert result.first_divergence is not None and result.first_divergence.row.tap == tap


def test_an_override_is_no_misreading(written: dict[str, Path]) -> None:
    result = quick(written["meta"], overrides="rope_theta=10000.0")
    assert result.first_divergence is not None and result.cause is not None
    assert result.first_divergence.row.tap == "layers.0.q_rope"
    assert result.cause.id == "rope-theta" and result.cause.confirmed
    assert result.reading is not None and not result.reading.differences


def test_what_has_no_file_is_read_once(written: dict[str, Path]) -> None:
    """An open checkpoint may hold more than its file does, such as a merged adapter."""
    opened = open_checkpoint(written["hf"])
    for given in (opened, model()):
        result = quick(given)
        assert (result.verdict, result.reading) == ("equal", None)


def test_a_streamed_run_reads_twice(
    written: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    replaced(gguf_read, "half_split", lambda right, values, heads: values)(monkeypatch)
    result = quick(written["gguf"], dtypes="f32", stream=True)
    assert result.first_divergence is not None
    assert result.first_divergence.row.tap == Q


def test_nothing_is_run_on_two_models_of_different_shape(
    written: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(written["hf"])
    opened = open_checkpoint(written["hf"])
    misread(hf_config, num_hidden_layers=1)(monkeypatch)
    with pytest.raises(CheckpointError, match=r"num_hidden_layers is 1 .*, 2 in .*nothing was run"):
        compare_readings(open_checkpoint(written["hf"]), source)
    replaced(hf_read, "read_tensor", lambda right, *a: right(*a).T)(monkeypatch)
    with pytest.raises(CheckpointError, match=r"embed_tokens.*\(96, 264\).*\(264, 96\) in model"):
        compare_readings(opened, source)


def test_another_dtype_of_the_same_values_is_a_difference(
    written: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, source = open_checkpoint(written["hf"]), open_source(written["hf"])
    assert not compare_readings(opened, source).differences
    replaced(hf_read, "read_tensor", lambda right, *a: right(*a).astype(np.float64))(monkeypatch)
    first = compare_readings(opened, source).differences[0]
    assert (first.what, first.subject, first.reference) == (EMBEDDING, "float64", "float32")


def test_zeros_have_signs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_hf(model(), tmp_path / "hf")
    opened, source = open_checkpoint(path), open_source(path)

    def wrong(right: Any, *arguments: Any) -> np.ndarray:
        values = right(*arguments)
        return np.where(values == values.flat[5], -0.0, values).astype(values.dtype)

    replaced(hf_read, "read_tensor", wrong)(monkeypatch)
    assert "-0 at [0, 5]" in compare_readings(opened, source).differences[0].subject


def test_a_new_field_of_the_config_has_to_be_read_here_too(written: dict[str, Path]) -> None:
    stated = open_source(written["hf"]).stated
    fields = set(LlamaConfig.__dataclass_fields__)
    assert fields == {*vars(stated)} - {"where"}


def test_every_report_says_it(
    written: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    misread(hf_config, rope_theta=1e4)(monkeypatch)
    result = quick(written["hf"])
    said = "config.rope_theta is 10000.0 as jaxllama reads it, 500000.0 in config.json"
    console = Console(record=True, width=120)
    terminal.show(result, console)
    text = console.export_text()
    assert text.splitlines()[0].endswith("first divergence config.rope_theta (reading)")
    assert said in text and "reading: of 15 fields and 21 tensors 1 are otherwise" in text
    page = html_file.page(result)
    assert said in page and "infinity" not in page
    (failed,) = [
        case
        for case in ET.fromstring(junit_file.document(result).encode()).iter("testcase")
        if case.get("name") == "reading"
    ]
    assert said in "".join(failed.itertext())
    document = result.to_dict()
    assert document["reading"]["differences"][0]["what"] == "config.rope_theta"
    assert document["first_divergence"]["mode"] == document["difference"] == "reading"
    saved = tmp_path / "a.json"
    saved.write_text(json.dumps(document))
    again = recheck(saved, limits=["1e30"])
    assert (again.verdict, again.difference) == ("divergent", "reading")
    assert again.cause is not None and said in again.cause.summary


def test_an_older_result_says_nothing_of_reading(written: dict[str, Path], tmp_path: Path) -> None:
    document = quick(written["hf"]).to_dict()
    del document["reading"]
    (tmp_path / "a.json").write_text(json.dumps(document))
    assert recheck(tmp_path / "a.json").reading is None


def test_captures_of_two_readings_are_not_compared(
    written: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"scenarios": "causal", "length": 16, "dtypes": "f64"}
    misread(hf_config, rope_theta=1e4)(monkeypatch)
    capture(written["hf"], tmp_path / "torch", subject="torch", **options)
    capture(written["hf"], tmp_path / "wrong", **options)
    with pytest.raises(InputError, match=r"other configurations: rope_theta 10000.0 in"):
        compare(tmp_path / "wrong", tmp_path / "torch")
    monkeypatch.undo()
    capture(written["hf"], tmp_path / "right", **options)
    assert compare(tmp_path / "right", tmp_path / "torch").verdict == "equal"
