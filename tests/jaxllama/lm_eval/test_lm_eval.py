"""lm-evaluation-harness on a local task: our model's figures are its transformers backend's."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxllama.checkpoint import convert
from jaxllama.errors import CheckpointError, InputError

ROOT = Path(__file__).parents[3]
WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while", "seven"]
# Shorter than most texts: contexts are cut and whole texts windowed.
CONTEXT = 24
TASKS = {
    "choice": """
output_type: multiple_choice
doc_to_text: "{{text}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "whole": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}]
""",
    "written": """
output_type: generate_until
doc_to_text: "{{text}}"
doc_to_target: "{{choices[0]}}"
generation_kwargs: {until: ["e"], max_gen_toks: 12}
metric_list: [{metric: exact_match}]
""",
}


def write_tasks(folder: Path) -> None:
    """Write a data set of ten texts and three tasks on it."""
    draw = random.Random(0)
    rows = [
        {
            "text": " ".join(draw.choices(WORDS, k=draw.randint(2, 30))),
            "choices": draw.sample(WORDS, 3),
            "answer": number % 3,
        }
        for number in range(10)
    ]
    data = folder / "texts.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, task in TASKS.items():
        files = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}"
        (folder / f"{name}.yaml").write_text(f"task: {name}\n{files}\ntest_split: test\n{task}")


def harness(folder: Path, model: str, arguments: str, *more: str) -> subprocess.CompletedProcess:
    """Run the harness's command as users do, on all tasks, with no network."""
    words = ["run", "--model", model, "--model_args", arguments, "--include_path", str(folder)]
    words += ["--tasks", ",".join(TASKS), "--batch_size", "4", "--log_samples"]
    return subprocess.run(
        [sys.executable, "-m", "jaxllama.lm_eval", *words, "--output_path", folder / model, *more],
        cwd=folder,
        env=os.environ
        | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home")},
        capture_output=True,
        text=True,
        check=False,
    )


def outcome(folder: Path, model: str) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Return a run's metrics by task, and what was answered to each request, in its order."""
    (results,) = (folder / model).rglob("results_*.json")
    answers = {}
    for task in TASKS:
        (file,) = (folder / model).rglob(f"samples_{task}_*.jsonl")
        samples = sorted(map(json.loads, file.read_text().splitlines()), key=lambda s: s["doc_id"])
        answers[task] = [sample["resps"] for sample in samples]
    return json.loads(results.read_text())["results"], answers


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("harness")
    convert("tiny", folder / "checkpoint", to="hf")
    write_tasks(folder)
    shared = f"pretrained={folder / 'checkpoint'},max_length={CONTEXT}"
    for model, arguments in (("jaxllama", shared), ("hf", f"{shared},dtype=float32")):
        ran = harness(folder, model, arguments, "--device", "cpu")
        assert ran.returncode == 0, ran.stderr[-1500:]
    return folder


def test_figures_are_those_of_transformers(folder: Path) -> None:
    (ours, answers), (theirs, expected) = (outcome(folder, model) for model in ("jaxllama", "hf"))
    for task in TASKS:
        names = [n for n in theirs[task] if n.endswith(",none") and "stderr" not in n]
        assert names
        for name in names:
            # The two round float32 otherwise: measured 3e-7 of a perplexity of 4e13.
            assert ours[task][name] == pytest.approx(theirs[task][name], rel=1e-5), (task, name)
    assert answers["written"] == expected["written"]
    assert len({str(text) for text in answers["written"]}) > 3
    for task in ("choice", "whole"):
        one, other = (
            np.array(
                [[resp[0][0] if task == "choice" else resp[0] for resp in row] for row in rows]
            )
            for rows in (answers[task], expected[task])
        )
        np.testing.assert_allclose(one.astype(float), other.astype(float), rtol=1e-6)


def test_batches_change_nothing_and_other_weights_do(folder: Path) -> None:
    """The second is the control: what is compared above tells rounded weights apart."""
    from lm_eval.api.instance import Instance

    from jaxllama.lm_eval.model import HarnessLlama

    pairs = [("the quick", " brown fox"), ("", "jumps"), ("over a lazy ", "dog"), ("a " * 30, "b")]
    requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    found = [
        HarnessLlama(str(folder / "checkpoint"), max_length=CONTEXT, **options).loglikelihood(
            requests, disable_tqdm=True
        )
        for options in ({}, {"batch_size": 3}, {"quant": "int4:8"})
    ]
    alone, together, rounded = (np.array([likely for likely, _ in one]) for one in found)
    np.testing.assert_allclose(alone, together, rtol=1e-6)
    assert np.abs(rounded / alone - 1).max() > 1e-3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"pretrained": "/nowhere"}, "/nowhere: does not exist"),
        ({"dtyp": "f32"}, "--model_args dtyp: did you mean dtype?"),
        ({"batch_size": "auto"}, "--batch_size auto: expected a whole number"),
    ],
)
def test_bad_input_is_one_line(options: dict[str, str], said: str) -> None:
    from jaxllama.lm_eval.model import HarnessLlama

    with pytest.raises((InputError, CheckpointError), match=said):
        HarnessLlama(**{"pretrained": "tiny", **options})


def test_tasks_that_cannot_be_done_are_refused() -> None:
    from lm_eval.api.instance import Instance

    from jaxllama.lm_eval.model import HarnessLlama

    model = HarnessLlama("tiny", max_length=CONTEXT)
    for options, said in (
        ({"max_gen_toks": CONTEXT}, "max_gen_toks 24: expected 1 to 23"),
        (
            {"temperature": 1.0, "num_beams": 3, "max_gen_toks": 2},
            "--gen_kwargs num_beams: expected some of",
        ),
    ):
        with pytest.raises(InputError, match=said):
            model.generate_until([Instance("generate_until", {}, ("a", options), 0)])
