"""A trained model: its sinks are information, nothing has collapsed; spoilt, it is found."""

from __future__ import annotations

import numpy as np

import parity
from jaxllama.checkpoint import in_memory, open_checkpoint
from parity.health.report import HealthReport

LAYER = 9


def health(checkpoint: object) -> HealthReport:
    return parity.check_health(checkpoint, length=72, gradients=False)


def test_smollm2_has_sinks_and_no_collapse() -> None:
    report = health("smollm2")
    assert (report.verdict, report.is_random) == ("healthy", False)
    found = {one.rule: one for one in report.findings}
    assert set(found) >= {"sink", "massive-activations"}
    assert {one.severity for one in report.findings} == {"information"}
    count, _, total = found["sink"].message.split()[:3]
    assert int(total) == 270 and int(count) > 135 and 0.9 < found["sink"].value < 1.001
    assert report.loss < 5 < report.chance


def test_it_collapses_where_its_queries_and_keys_grow() -> None:
    whole = open_checkpoint("smollm2")
    weights = {name: whole.read(name) for name in whole.tensors}
    for part in "qk":
        name = f"model.layers.{LAYER}.self_attn.{part}_proj.weight"
        weights[name] = weights[name] * np.float32(30)
    companions = {name: read() for name, read in whole.companions.items()}
    report = health(in_memory(whole.config, weights, companions=companions))
    grave = [one for one in report.findings if one.severity != "information"]
    assert [(one.rule, one.layer) for one in grave] == [
        ("entropy-collapse", LAYER),
        ("max-logit", LAYER),
    ]
    assert grave[0].heads == grave[1].heads == tuple(range(9))
    assert not report.is_random
