"""Scenarios that a library has no mask or positions for are refused: it would be called wrong."""

from __future__ import annotations

from collections.abc import Collection

from jaxllama.errors import InputError, argument
from parity.inputs import Inputs
from parity.scenarios import SCENARIOS


def taken(inputs: Inputs, scenarios: Collection[str]) -> Inputs:
    """Return the inputs, if they are of these scenarios.

    Raises:
        InputError: they are of another.
    """
    for name in inputs.name.split("+"):
        if name in SCENARIOS and name not in scenarios:
            raise InputError(
                f"scenario {name}: the subject has no mask or no positions for it; run it with "
                f"{argument('scenarios', ','.join(scenarios))}"
            )
    return inputs
