"""What weights say by themselves: whether they were trained."""

from __future__ import annotations

import numpy as np

from parity.subjects.base import CheckpointLike

_STEPS = 60


def weight_spectra(checkpoint: CheckpointLike) -> dict[str, float]:
    """Return how far the largest singular value of query and key weights stands out, by name.

    It is said beside sqrt(m) + sqrt(n) times the standard deviation of an m by n matrix, where
    those of independent random numbers end. The first, the middle and the last layer are read.

    Source: Marchenko and Pastur 1967; Martin and Mahoney 2021 (JMLR 22:165) for trained weights.
    """
    layers = checkpoint.config.num_hidden_layers
    found = {}
    for layer in dict.fromkeys((0, layers // 2, layers - 1)):
        for part in ("q_proj", "k_proj"):
            name = f"model.layers.{layer}.self_attn.{part}.weight"
            found[name] = spectral_edge(np.asarray(checkpoint.read(name)).astype(np.float32))
    return found


def spectral_edge(matrix: np.ndarray) -> float:
    """Return the largest singular value of a matrix over that of random numbers like its own."""
    centred = matrix - matrix.mean()
    spread = float(centred.std())
    if not spread:
        return float("inf")  # all equal: nothing is less random
    vector = np.asarray(np.random.default_rng(0).standard_normal(matrix.shape[1], np.float32))
    size = 0.0
    for _ in range(_STEPS):  # the power method; from below, by a hundredth where values are dense
        image = centred @ (vector / np.linalg.norm(vector))
        size = float(np.linalg.norm(image))
        vector = centred.T @ image
    return float(size / (spread * (np.sqrt(matrix.shape[0]) + np.sqrt(matrix.shape[1]))))
