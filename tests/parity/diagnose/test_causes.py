"""Causes: their pages, and the reference made wrong in their way."""

from __future__ import annotations

import numpy as np
import pytest
from typer.testing import CliRunner
from witnesses import small

from parity.cli import app
from parity.diagnose.cause import catalogue
from parity.diagnose.mutated_reference import MutatedReference
from parity.diagnose.mutations import Mutation
from parity.inputs import Inputs
from parity.scenarios import scenario
from parity.subjects.base import Arrays, Run
from parity.subjects.torch_reference.subject import TorchReference
from parity.taps import GRAD_TAPS, LAYER_TAPS, SETUP_TAPS, in_flow_order

CHECKPOINT = small()
SHOWN = {*SETUP_TAPS, *LAYER_TAPS, "embed", "norm", "logits", "keys", "values", *GRAD_TAPS}


def inputs() -> Inputs:
    return scenario("left_padded", lambda text: list(text.encode()), CHECKPOINT.config, length=7)


def taps(run: Run, stages: int) -> Arrays:
    found: Arrays = {}
    for _ in range(stages):
        found |= run.step()
    return found


def test_every_cause_has_a_page_and_known_taps() -> None:
    assert len(catalogue()) >= 60
    for cause_id, file in catalogue().items():
        cause = file.cause
        assert set(cause.taps) <= SHOWN and cause.taps, cause_id
        assert cause.page().startswith(f"# {cause_id}: {cause.title}")
        assert cause.what and cause.remedy, cause_id
        leaf = file.name.rpartition(".")[2]
        assert cause_id.replace("-", "_").endswith(leaf)


@pytest.mark.parametrize("cause_id", ["rope-theta", "activation", "RESIDUAL"])
def test_causes_and_rules_are_explained_by_the_same_verb(cause_id: str) -> None:
    found = CliRunner().invoke(app, ["explain", cause_id])
    assert found.exit_code == 0
    assert found.output.startswith(f"# {cause_id.lower()}: ")


@pytest.mark.parametrize("chunks", [None, [4, 2, 1]])
def test_without_changes_it_is_the_reference(chunks: list[int] | None) -> None:
    stages = (CHECKPOINT.config.num_hidden_layers + 2) * len(chunks or [0])
    runs = []
    for subject in (TorchReference(CHECKPOINT), MutatedReference(CHECKPOINT)):
        run = subject.start(inputs()) if chunks is None else subject.start_decode(inputs(), chunks)
        runs.append(taps(run, stages))
    assert list(runs[0]) == list(runs[1])
    for name in runs[0]:
        np.testing.assert_array_equal(runs[0][name], runs[1][name])


def test_a_change_is_made_in_its_layer_and_shown() -> None:
    stages = CHECKPOINT.config.num_hidden_layers + 2
    right = taps(TorchReference(CHECKPOINT).start(inputs()), stages)
    doubled = Mutation("up_proj", lambda site: 2 * site.value).within(1)
    wrong = taps(MutatedReference(CHECKPOINT, [doubled]).start(inputs()), stages)
    first = next(n for n in in_flow_order(right) if not np.array_equal(right[n], wrong[n]))
    assert first == "layers.1.up_proj"
    np.testing.assert_array_equal(wrong[first], 2 * right[first])


def test_changes_of_weights_and_of_one_tap_add_up() -> None:
    def halved(name: str, read: object) -> object:
        return read(name) / 2 if "layers.0.mlp.up_proj" in name else None  # type: ignore[operator]

    changes = [
        Mutation(weight=halved),  # type: ignore[arg-type]
        Mutation("up_proj", lambda site: 2 * site.value),
        Mutation("up_proj", lambda site: site.value + 1),
    ]
    right = taps(TorchReference(CHECKPOINT).start(inputs()), 2)
    wrong = taps(MutatedReference(CHECKPOINT, changes).start(inputs()), 2)
    name = "layers.0.up_proj"
    np.testing.assert_allclose(wrong[name], right[name] + 1, rtol=1e-12)
