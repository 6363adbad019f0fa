"""The reference's table of rotary frequencies, of a configuration alone."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from jaxllama.config import LlamaConfig
from parity.subjects.torch_reference.program import inv_freq_program, rope_constants, run_program


class _Float64:
    """Plain arithmetic in float64."""

    compute = wide = torch.float64
    backwards = False

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        return a @ b


def frequency_table(config: LlamaConfig) -> np.ndarray:
    """Return radians per token of each feature pair [H/2], float64, fastest first.

    What a subject shows is held against it, so it runs none of the subject's code.
    """
    program = inv_freq_program(config.rope_scaling)
    return run_program(program, rope_constants(config), _Float64()).numpy()
