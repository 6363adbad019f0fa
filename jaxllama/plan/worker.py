"""The process that compiles: a plan's question on stdin, what the compiler says on stdout.

It has as many devices as the mesh, which JAX makes out of one CPU when it is started, or describes
to another device's compiler.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np

from jaxllama.config import LlamaConfig
from jaxllama.dtypes import parse
from jaxllama.plan.devices import DEVICES
from jaxllama.plan.programs import passes
from jaxllama.plan.topology import mesh_of
from jaxllama.quantisation import checked_quant
from jaxllama.sharding import ModelSharding


def answer(question: dict[str, Any]) -> dict[str, int]:
    """Return bytes on each device: see `jaxllama.plan.process.MeasuredPrograms`.

    Args:
        question: as `jaxllama.plan.process.question` makes it.
    """
    config = LlamaConfig.from_hf(question["config"])
    device = DEVICES.get(question["device"])
    own = device if question["own"] else None
    prefill, step = passes(
        config,
        ModelSharding(mesh_of(question["mesh"], own), config),
        rows=question["batch"],
        slots=question["context"],
        chunk=question["chunk"],
        dtype=np.dtype(parse(question["dtype"])),
        cache_dtype=np.dtype(parse(question["cache_dtype"])),
        # Where no device is named, as on any accelerator.
        platform="gpu" if device is None else device.platform,
        quant=checked_quant(question["quant"], config),
    )
    return {
        "arguments": step.arguments,
        "activations": prefill.temporaries,
        "temporaries": step.temporaries,
    }


if __name__ == "__main__":
    print(json.dumps(answer(json.load(sys.stdin))))
