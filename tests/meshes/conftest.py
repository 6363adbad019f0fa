"""Tests of models on several devices: they run in a process that has eight, and there alone.

`tests/jaxllama/sharding/test_eight_devices.py` starts it; by hand:

    JAX_NUM_CPU_DEVICES=8 python -m pytest tests/meshes
"""

from __future__ import annotations

import jax

if jax.device_count() < 8:
    collect_ignore_glob = ["test_*.py"]
