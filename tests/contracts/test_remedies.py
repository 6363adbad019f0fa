"""Remedies, typed as said, work: every command of a message is run, or it is said why not."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import shutil
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import field_files as ff
import numpy as np
import pytest
import torch
from adapters import write_adapter
from remedies import collect, commands_in
from safetensors.torch import load_file, save_file

from jaxllama.checkpoint import convert, open_checkpoint

ROOT = Path(__file__).parents[2]
KERNEL = "model.layers.1.self_attn.q_proj"
FLOATS = "jaxllama/config_formats/quantised.py"
WEIGHTS = "jaxllama/checkpoint/hf/weights.py"


@dataclass(frozen=True)
class Case:
    """A command, what is said of it, and the command that was told.

    Attributes:
        remedies: `module: command` of those that are run here.
        asked: what is typed first; names in braces are files of `made`.
        said: in the answer to it.
        typed: then, as the answer says.
        codes: that the second may end with; 1 is a verdict.
    """

    remedies: tuple[str, ...]
    asked: str
    said: str
    typed: str
    codes: tuple[int, ...] = (0,)


RUN = "parity run {base} --scenario causal --length 8 "
FREE = RUN + "--mode free "
CASES = [
    Case(
        (f"{WEIGHTS}: jaxllama convert", f"{WEIGHTS}: --lora"),
        "jaxllama info {adapter}",
        "give the base model, with this as --lora of `jaxllama convert`",
        "jaxllama convert {base} {out} --to hf --lora {adapter}",
    ),
    Case(
        (f"{WEIGHTS}: jaxllama convert --lora",),
        "jaxllama info {both}",
        "not merged; `jaxllama convert --lora` does",
        "jaxllama convert {both} {out} --to hf --lora {both}",
    ),
    Case(
        (
            "jaxllama/checkpoint/wrappers.py: jaxllama convert",
            "jaxllama/checkpoint/wrappers.py: --lora",
        ),
        "jaxllama info {wrapped}",
        "give the base model, with the adapter as --lora of `jaxllama convert`",
        "jaxllama convert {base} {out} --to gguf --lora {adapter}",
    ),
    Case(
        ("jaxllama/checkpoint/gguf/quantise.py: --quantize",),
        "jaxllama convert {huge} {out} --to gguf --quantize q8_0",
        "without --quantize they are kept",
        "jaxllama convert {huge} {out} --to gguf",
    ),
    Case(
        ("jaxllama/checkpoint/gguf/write.py: --dtype",),
        "jaxllama convert {wide} {out} --to gguf",
        "give --dtype f32 or narrower",
        "jaxllama convert {wide} {out} --to gguf --dtype f32",
    ),
    Case(
        ("jaxllama/checkpoint/staging.py: --overwrite",),
        "jaxllama convert {base} {there} --to hf",
        "or replace it with --overwrite",
        "jaxllama convert {base} {there} --to hf --overwrite",
    ),
    Case(
        ("jaxllama/checkpoint/manifest.py: jaxllama convert",),
        "jaxllama verify {older} --manifest",
        "`jaxllama convert` writes a new one",
        "jaxllama convert {older} {out} --to hf",
    ),
    Case(
        ("jaxllama/cli.py: --manifest",),
        "jaxllama verify {base}",
        "give two checkpoints, or one and --manifest",
        "jaxllama verify {base} --manifest",
    ),
    Case(
        ("jaxllama/cli_generate.py: --chat",),
        "jaxllama generate {base} abc --max-tokens 1 --system x",
        "--system is a message of a chat; add --chat",
        "jaxllama generate {base} abc --max-tokens 1 --system x --chat",
    ),
    Case(
        ("jaxllama/cli_generate.py: --chat",),
        "jaxllama generate {base} '<|end_of_text|>' --max-tokens 1",
        "--chat reads what a user says as text",
        "jaxllama generate {base} '<|end_of_text|>' --max-tokens 1 --chat",
    ),
    Case(
        ("jaxllama/plan/request.py: --context",),
        "jaxllama plan tiny --context 200000",
        "give at most --context 131072",
        "jaxllama plan tiny --context 131072 --compiler cpu",
    ),
    *(
        Case(
            (f"jaxllama/bench/request.py: --{option}",),
            f"jaxllama bench {{base}} --{option} 999999",
            f"lower --{option}",
            f"jaxllama bench {{base}} --{option} 9 --variants floor --dtype f32 --seconds 1e-9",
        )
        for option in ("prompt", "new-tokens")
    ),
    Case(
        ("jaxllama/command_line/group.py: --help",),
        "jaxllama convert {base}",
        "jaxllama convert --help",
        "jaxllama convert --help",
    ),
    Case(
        ("jaxllama/request.py: --max-tokens",),
        "jaxllama generate {base} abc --max-tokens 30 --cache-tokens 16",
        "give --max-tokens ",
        "jaxllama generate {base} abc --max-tokens 12 --cache-tokens 16",
    ),
    Case(
        ("jaxllama/request.py: --cache-tokens",),
        "jaxllama generate {base} abc --max-tokens 30 --cache-tokens 16",
        "make it with --cache-tokens 33 or more",
        "jaxllama generate {base} abc --max-tokens 30 --cache-tokens 33",
    ),
    Case(
        ("parity/lint/facts.py: --layout",),
        "parity lint {mask} --lengths [3,4]",
        "say what the first axis is by --layout",
        "parity lint {mask} --lengths [3,4] --layout bnts --heads 3",
        (0, 1),
    ),
    Case(
        ("parity/lint/facts.py: --heads",),
        "parity lint {mask} --layout bnts",
        "give --heads",
        "parity lint {mask} --layout bnts --heads 3",
        (0, 1),
    ),
    Case(
        ("parity/lint/facts.py: --queries",),
        "parity lint causal() --lengths [3]",
        "give a mask or --queries",
        "parity lint causal() --lengths [3] --queries 3",
    ),
    *(
        Case(
            tuple(f"parity/lint/case.py: --{word}" for word in options.split()),
            "parity lint causal()",
            "a spec needs tokens: give --input-ids, --positions, --valid",
            f"parity lint causal() {given}",
        )
        for options, given in {
            "input-ids": "--input-ids {ids}",
            "positions": "--positions {positions}",
            "valid": "--valid {valid}",
            "lengths queries": "--lengths [3] --queries 3",
        }.items()
    ),
    Case(
        ("parity/lint/case.py: --valid", "parity/lint/case.py: --lengths"),
        "parity lint causal() --valid {valid} --lengths [3]",
        "both --valid and --lengths are given; leave one out",
        "parity lint causal() --valid {valid}",
    ),
    Case(
        ("parity/lint/facts.py: --segments",),
        "parity lint causal() --valid {numbered} --segments {segments}",
        "give it as 0 and 1, or leave these out",
        "parity lint causal() --valid {numbered}",
        (0, 1),
    ),
    Case(
        ("parity/lint/rules/m07_future_visible.py: --expect",),
        "parity lint {bidirectional}",
        "for a bidirectional model say so with --expect",
        "parity lint {bidirectional} --expect padding()",
    ),
    Case(
        ("parity/lint/rules/m10_seen_not_zero.py: --positional-bias",),
        "parity lint {biased} --use additive",
        "or declare the bias with --positional-bias",
        "parity lint {biased} --use additive --positional-bias",
    ),
    Case(
        ("parity/commands/lint.py: --from",),
        "parity lint",
        "or --from module:function, which runs a model",
        "parity lint --from remedy_model:attend",
        (0, 1),
    ),
    Case(
        ("parity/report/wording.py: --dtype",),
        FREE + "--dtype bf16 --override rms_norm_eps=0.3 --seconds 0.01",
        "takes the same run in float64 (--dtype f64)",
        FREE + "--dtype f64 --override rms_norm_eps=0.3 --seconds 0.01",
        (1,),
    ),
    Case(
        ("parity/commands/run.py: --tokens",),
        "parity run {base} --prompt abc --tokens 1,2",
        "--prompt and --tokens: give one of them",
        "parity run {base} --tokens 1,2,3 --dtype f64 --mode free --scenario causal",
    ),
    Case(
        ("parity/runner/gradients.py: --dtype",),
        RUN + "--mode grad --dtype bf16",
        "gradients are judged in f64 and f32; add one of them",
        RUN + "--mode grad --dtype bf16,f32",
    ),
    Case(
        ("parity/runner/prompt.py: --tokens",),
        "parity run {bare} --prompt abc --dtype f64 --mode free",
        "has no tokenizer for the prompt; give token ids (--tokens)",
        "parity run {bare} --tokens 1,2,3 --dtype f64 --mode free --scenario causal",
    ),
    Case(
        ("parity/runner/room.py: --length", "parity/runner/room.py: --scenario"),
        "parity run {base} --mode free --dtype f64 --length 131072",
        "or one of --scenario at a time",
        "parity run {base} --mode free --dtype f64 --length 9 --scenario causal",
    ),
    Case(
        ("parity/subjects/jaxllama/streamed.py: --subject",),
        FREE + "--stream --subject torch",
        "leave out --subject",
        FREE + "--stream --dtype f64",
    ),
    Case(
        ("parity/runner/quality.py: --stream",),
        FREE + "--stream --quant int8",
        "a quantised model is loaded whole; leave out --stream",
        FREE + "--quant int8 --length 7",
    ),
    Case(
        ("parity/generation/run.py: --subject",),
        RUN + "--mode generate --subject torch",
        "leave out --subject, or add another mode",
        RUN + "--mode generate,free --subject torch --dtype f64",
    ),
    Case(
        ("parity/runner/compare_captures.py: --dtype",),
        "parity compare {narrow} {narrow}",
        "capture it with --dtype f64 too",
        "parity compare {narrow} {whole}",
        (0, 3),
    ),
    Case(
        ("parity/runner/compare_captures.py: --subject",),
        "parity compare {whole} {again}",
        "a capture of --subject torch holds two, give that second",
        "parity compare {whole} {torch}",
    ),
    Case(
        ("parity/runner/recheck.py: --json",),
        "parity recheck {cut}",
        "write it again by parity run --json",
        FREE + "--dtype f64 --json {out}",
    ),
    Case(
        ("parity/noise/one_hot.py: --mode",),
        FREE + "--dtype f64,f32",
        "was not probed; that takes --mode isolated",
        RUN + "--mode isolated --dtype f64,f32",
    ),
    Case(
        ("parity/diagnose/describe.py: --seconds",),
        FREE + "--dtype f64 --override rms_norm_eps=0.3 --seconds 0.001",
        "--seconds 0.01 goes on",
        FREE + "--dtype f64 --override rms_norm_eps=0.3 --seconds 0.01",
        (1,),
    ),
]

# Run elsewhere, where what they need is.
HUB = "tests/jaxllama/checkpoint/hub/test_download.py::test_the_commands_of_the_library_fetch_it"
OVERFLOW = "tests/cases/test_cases_files.py::test_case_32_overflow_in_the_askers_words"
PYTHON = "tests/contracts/test_remedies.py::test_a_line_of_python_typed_as_said_works"
WHOLE = (
    "tests/parity/diagnose/test_whole_pass.py::"
    "test_a_kernel_that_only_runs_unwatched_is_explained_by_watching_it"
)
HEALTH = "tests/parity/health/test_command.py::test_remedies_typed_as_said_work"
QUALITY = "tests/parity/quality/test_command.py::test_remedies_typed_as_said_work"
TRAINING = "tests/jaxllama/train/test_run.py::test_the_command_trains_and_goes_on"
CONTEXT = "tests/parity/health/test_command.py::test_texts_are_no_longer_than_the_context"
PROMPT = "tests/parity/test_scenarios.py::test_more_than_the_context_is_refused_and_the_default_cut"
ELSEWHERE = {
    "parity/options.py: --dtype": HEALTH,
    "parity/options.py: --length": CONTEXT,
    "parity/scenarios.py: --length": PROMPT,
    "parity/runner/plan.py: --mode": (
        "tests/parity/runner/test_mitigations.py::test_each_step_equals_pytorchs"
    ),
    "parity/runner/step.py: --subject": (
        "tests/parity/runner/test_step.py::test_what_is_not_trained_here_is_refused_or_left_out"
    ),
    "parity/runner/lora_step.py: --mode": (
        "tests/parity/runner/test_lora_step.py::test_what_has_no_step_of_factors_is_refused"
    ),
    "jaxllama/lm_eval/model.py: --model": (
        "tests/jaxllama/lm_eval/test_lm_eval.py::test_figures_are_those_of_transformers"
    ),
    "parity/commands/explain.py: --list": (
        "tests/contracts/test_help.py::test_lists_have_all_that_there_is"
    ),
    **dict.fromkeys(
        ("jaxllama/cli.py: --max-tokens", "parity/cli.py: --help", "parity/cli.py: --list"),
        "tests/contracts/test_help.py::test_help_has_examples_that_parse",
    ),
    **dict.fromkeys(
        ("parity/pytest_plugin.py: --parity-html", "parity/pytest_plugin.py: parity"),
        "tests/parity/test_pytest_plugin.py::test_reports_have_names_of_their_own",
    ),
    "parity/schema/documents.py: --json": (
        "tests/parity/schema/test_documents.py::test_reports_of_lint_and_probe"
    ),
    **dict.fromkeys(
        (
            "parity/schema/pages.py: parity schema NAME",
            "parity/schema/pages.py: python -m parity.schema.pages docs/schema",
        ),
        "tests/parity/schema/test_documents.py::test_the_folder_is_as_it_would_be_written",
    ),
    "jaxllama/train/command.py: --resume": TRAINING,
    "jaxllama/train/state.py: --resume": TRAINING,
    **{
        f"parity/quality/{said}": QUALITY
        for said in (
            "examples.py: --length",
            "verdict.py: --baseline",
            "verdict.py: --mask",
            "verdict.py: --quant",
        )
    },
    **{f"parity/health/{said}": HEALTH for said in ("run.py: --against", "prepare.py: --length")},
    "parity/diagnose/whole_pass.py: --subject": WHOLE,
    "jaxllama/checkpoint/hub/download.py: {name.fetch_command()}": HUB,
    "jaxllama/checkpoint/hub/locate.py: {name.fetch_command()}": HUB,
    "jaxllama/checkpoint/hub/needed.py: {repo.fetch_command(packed[0])}": HUB,
    "jaxllama/checkpoint/hub/needed.py: hf download": HUB,
    "jaxllama/checkpoint/hub/needed.py: --include": HUB,
    "jaxllama/overflow.py: --dtype": OVERFLOW,
    f"{WEIGHTS}: AutoModelForCausalLM.from_pretrained(DIRECTORY).save_pretrained(OUT)": PYTHON,
    f"{FLOATS}: AutoModelForCausalLM.from_pretrained(DIRECTORY{{loading}}."
    "save_pretrained(OUT, save_original_format=False)": PYTHON,
    "jaxllama/checkpoint/info.py: AutoTokenizer.from_pretrained(DIRECTORY)."
    "save_pretrained(DIRECTORY)": PYTHON,
    "parity/lint/pages.py: python -m parity.lint.pages docs/lint": (
        "tests/parity/lint/test_pages.py::test_the_writer_writes_them"
    ),
}

# Not run, and why.
NOT_RUN = {
    "jaxllama/attention/backends.py: --dtype": "takes a GPU with cuDNN",
    "jaxllama/bench/request.py: --batch": "takes a machine with too little memory",
    "jaxllama/bench/request.py: --variants": "takes a machine with too little memory",
    "jaxllama/bench/run.py: --seconds": "says what ended the run",
    "jaxllama/checkpoint/hub/download.py: hf auth login": "takes an account of the Hub",
    f"{FLOATS}: mlx_lm.convert --hf-path DIRECTORY --dequantize": "takes Apple's mlx-lm",
    f"{FLOATS}: python convert_hf_to_gguf.py DIRECTORY --outtype bf16": "takes llama.cpp's source",
    "jaxllama/files/reading.py: git lfs pull": "takes a repository with LFS, and a network",
    "jaxllama/files/reading.py: git annex get": "takes a repository with git-annex",
    "jaxllama/plan/request.py: --device": "takes a device's own compiler",
    "jaxllama/plan/terminal.py: --mesh": "names the mesh that was found",
    "jaxllama/overflow.py: jaxllama info CHECKPOINT": "said of weights that no file here has",
    "parity/comparison/tolerance.py: parity selftest --calibrate": "takes an hour",
    "parity/diagnose/causes/masks/differs.py: parity lint": "said without a mask to give",
    "parity/diagnose/causes/masks/dropped.py: parity probe": "said without an attention to give",
    **{
        f"parity/health/rules/{said}": "said on a page that explains, of no file in particular"
        for said in (
            "single_column.py: --html",
            "gradient_not_finite.py: --dtype",
            "entropy_collapse.py: --baseline",
            "leakage.py: --mask",
            "leakage.py: --html",
            "random_weights.py: jaxllama info",
            "random_weights.py: jaxllama verify",
        )
    },
    "parity/lint/needs.py: --expect": "says what a rule was not given, not what to give",
    "parity/report/wording.py: --mode": "says which run tells two causes apart",
    "parity/runner/readings.py: --json": "says where the rest stands",
    **{
        f"parity/commands/selftest.py: --{option}": "takes minutes; refused before that or not"
        for option in ("calibrate", "family", "mutants", "quick")
    },
    "jaxllama/cli_generate.py: --mesh": "takes several processes: test_hosts.py",
    "parity/diagnose/describe.py: --dtype": "takes a model with tables of float32: test_search.py",
    "parity/subjects/jaxllama/streamed.py: --mesh": "is what is refused",
    "parity/runner/quality.py: --mode": "is what is refused",
    "parity/runner/quality.py: --quant": "takes a reader that is at fault",
    "parity/runner/quality.py: --reference": "is what is refused",
    "parity/runner/quality.py: --subject": "is what is refused",
    "parity/subjects/jaxllama/streamed.py: --mode": "is what is refused",
    "parity/subjects/jaxllama/streamed.py: --reference": "is what is refused",
    "parity/subjects/jaxllama/subject.py: --override": "names where a value came from",
    "parity/subjects/meta/package.py: --reference": "takes a model that Meta's code cannot express",
    "parity/subjects/select.py: --dtype": "takes a subject of the asker's own",
}
PIP = re.compile(r"jaxllama\[(\w+)\]")


def listed(cases: Iterable[Case] = CASES) -> set[str]:
    return {*ELSEWHERE, *NOT_RUN, *(one for case in cases for one in case.remedies)}


@cache
def collected() -> dict[str, set[str]]:
    return collect(ROOT)


def told() -> set[str]:
    every = {f"{place}: {one}" for place, said in collected().items() for one in said}
    return {one for one in every if "pip install" not in one}


def test_every_remedy_is_run_or_listed_with_a_reason() -> None:
    assert told() == listed()
    assert told() != listed(CASES[1:])
    for place in set(ELSEWHERE.values()):
        file, _, test = place.partition("::")
        assert f"def {test}(" in (ROOT / file).read_text()


def test_every_extra_that_is_to_be_installed_exists() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = [one for said in collected().values() for one in said if "pip install" in one]
    brought = {"cuda", "eval", "hub", "meta", "parity", "quality", "tpu", "train"}
    assert {*PIP.findall(" ".join(named))} == brought
    assert {*PIP.findall(" ".join(named))} <= set(extras["optional-dependencies"])


def test_what_is_collected() -> None:
    """Of a module's source: what it tells to type, not what it names, and no word for readers."""
    source = '''
def read(path, limit):
    """Read; `jaxllama info X` shows it."""
    if limit: raise Error(f"{argument('shards', limit)}: from 1 to 99")
    if not path: raise Error(f"{path}: lost; run `git gone` "
        f"or give {argument('dtypes', 'f64')}")
    raise Error("needs it: pip install 'it[x]'; `some code` is none")
typer.Option("--shards", help="As in --dtype of another.")
'''
    assert sorted(commands_in(source)) == ["--dtype", "git gone", "pip install 'it[x]'"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the files that commands are given, by name."""
    root, base = tmp_path_factory.mktemp("remedies"), ff.sound()
    names = "base there adapter both wrapped huge older bare cut wide"
    found = {name: root / name for name in names.split()}
    for name in ("base", "there"):
        convert(base, found[name], to="hf")
    write_adapter(found["adapter"], base, [KERNEL])
    for name in ("both", "wrapped", "huge", "older", "bare"):
        shutil.copytree(found["base"], found[name])
    for file in found["adapter"].iterdir():
        shutil.copy(file, found["both"])
    parts = {f"{KERNEL}.lora_A.default.weight": np.ones((4, 4), np.float32)}
    ff.store(found["wrapped"], ff.tensors(found["base"]) | parts)
    ff.store(found["huge"], {n: v * np.float32(1e9) for n, v in ff.tensors(found["base"]).items()})
    manifest = found["older"] / "jaxllama_manifest.json"
    content = json.loads(manifest.read_text())
    kept = {name: content[name] for name in ("config", "tensors")}
    manifest.write_text(json.dumps(kept | {"version": 1}))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (found["bare"] / name).unlink()
    found["cut"].write_text("{")
    convert(base, found["wide"], to="hf", dtype="f64")
    arrays: dict[str, Any] = {
        "mask": np.repeat(np.tri(4, dtype=bool)[None], 6, 0),
        "bidirectional": np.ones((1, 1, 4, 4), bool),
        "biased": np.where(np.tri(4, dtype=bool), 1, -np.inf).astype(np.float32)[None, None],
        "ids": np.array([[5, 6, 7]]),
        "positions": np.array([[0, 1, 2]]),
        "valid": np.array([[1, 1, 1]]),
        "numbered": np.array([[1, 1, 2]]),
        "segments": np.array([[0, 1, 1]]),
    }
    for name, values in arrays.items():
        found[name] = root / f"{name}.npy"
        np.save(found[name], values)
    return found | captured(found["base"], root)


def captured(base: Path, root: Path) -> dict[str, Path]:
    found = {name: root / name for name in ("narrow", "whole", "torch")}
    for name, more in {
        "narrow": "--dtype f32",
        "whole": "--dtype f64,f32",
        "torch": "--dtype f64,f32 --subject torch",
    }.items():
        words = (
            f"parity capture {base} --out {found[name]} --scenario causal --mode free --length 8"
        )
        assert run(f"{words} {more}") == 0
    found["again"] = shutil.copytree(found["whole"], root / "again")
    return found


MODEL = """
import jax.numpy as jnp, jax
def attend():
    q = jnp.ones((1, 4, 2, 8), jnp.float32)
    return jax.nn.dot_product_attention(q, q, q, mask=jnp.tril(jnp.ones((1, 1, 4, 4), bool)))
"""


@pytest.mark.ill_typed  # a plan's cache is of shapes alone
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.remedies[0])
def test_a_remedy_typed_as_said_works(
    case: Case,
    made: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "remedy_model.py").write_text(MODEL)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    places = made | {"out": tmp_path / "out.gguf"}
    capsys.readouterr()
    run(case.asked, **places)
    captured = capsys.readouterr()
    said = " ".join((captured.out + captured.err).split())
    assert case.said in said
    assert run(case.typed, **places) in case.codes, capsys.readouterr().err
    assert case.said not in " ".join(capsys.readouterr().err.split())


def run(command: str, **places: Path) -> int:
    words = shlex.split(re.sub(r"\{(\w+)\}", lambda found: str(places[found[1]]), command))
    with mock.patch("sys.argv", words), pytest.raises(SystemExit) as left:
        importlib.import_module(f"{words[0]}.cli").main()
    return int(left.value.code or 0)


def quantise_fp8(directory: Path) -> None:
    """Store the layers' weights as blocks of FP8 with a scale each, as transformers reads them."""
    found, block = load_file(directory / ff.WEIGHTS), 16
    for name in [name for name in found if "_proj." in name]:
        rows, columns = found[name].shape
        blocks = found[name].reshape(rows // block, block, columns // block, block)
        scale = blocks.abs().amax((1, 3)) / 448
        packed = (blocks / scale[:, None, :, None]).reshape(rows, columns)
        found |= {name: packed.to(torch.float8_e4m3fn), f"{name}_scale_inv": scale}
    save_file(found, directory / ff.WEIGHTS, {"format": "pt"})
    stated = {"quant_method": "fp8", "activation_scheme": "dynamic"}
    ff.edit(directory / ff.CONFIG, quantization_config=stated | {"weight_block_size": [block] * 2})


def pickle_weights(directory: Path) -> None:
    torch.save(load_file(directory / ff.WEIGHTS), directory / "pytorch_model.bin")
    (directory / ff.WEIGHTS).unlink()


def split_tokenizer(directory: Path) -> None:
    """Leave the tokenizer in the files that came before tokenizer.json."""
    vocab = json.loads((directory / "tokenizer.json").read_text())["model"]["vocab"]
    (directory / "tokenizer.json").unlink()
    (directory / "vocab.json").write_text(json.dumps(vocab))
    (directory / "merges.txt").write_text("#version: 0.2\n")
    kept = {"tokenizer_class": "GPT2Tokenizer", "bos_token": None, "eos_token": None}
    (directory / "tokenizer_config.json").write_text(json.dumps(kept))


@pytest.mark.parametrize(
    ("spoil", "largest", "saved"),
    [(quantise_fp8, 0.07, "OUT"), (pickle_weights, 0, "OUT"), (split_tokenizer, 0, "DIRECTORY")],
)
def test_a_line_of_python_typed_as_said_works(
    spoil: Any, largest: float, saved: str, made: dict[str, Path], tmp_path: Path, capsys: Any
) -> None:
    import transformers

    places = {"DIRECTORY": tmp_path / "in", "OUT": tmp_path / "out"}
    shutil.copytree(made["base"], places["DIRECTORY"])
    spoil(places["DIRECTORY"])
    run("jaxllama info {DIRECTORY} --json", **places)
    (line,) = re.findall(r"`(Auto[^`]+)`", "".join(capsys.readouterr()))
    names = {name: getattr(transformers, name) for name in re.findall(r"Auto\w+|\w+Config", line)}
    eval(line, names | {name: str(place) for name, place in places.items()})
    assert run(f"jaxllama info {{{saved}}}", **places) == 0
    if saved == "DIRECTORY":
        before, after = (
            open_checkpoint(one).tokenizer() for one in (made["base"], places["DIRECTORY"])
        )
        assert after.encode("ab é", bos=False) == before.encode("ab é", bos=False)
        return
    before, after = (ff.tensors(one) for one in (made["base"], places["OUT"]))
    for name, values in before.items():
        assert np.abs(after[name] - values).max() <= largest * np.abs(values).max()
