"""Devices that are not there, for which a compiler that is installed can compile."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from jaxllama.plan.devices import Accelerator
from jaxllama.sharding import AXES
from jaxllama.sharding.mesh import Sizes

# JAX's plugins for CUDA, by the release of CUDA.
_PLUGINS = ("jax_plugins.xla_cuda13", "jax_plugins.xla_cuda12")
_A_NODE = 8
# What the compilers want said on a machine that has none of their devices. Products' fastest
# kernels are found by trying them, which a compiler without a device cannot do.
ENVIRONMENT = {
    "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    # Else a process that holds a TPU would keep this one from compiling for one.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
XLA_FLAGS = "--xla_gpu_autotune_level=0"


def why_not(device: Accelerator, count: int) -> str | None:
    """Return why the device's own compiler cannot be asked here; None if it can."""
    if (problem := device.slice_problem(count)) is not None:
        return problem
    if device.slices is not None:
        if find_spec("libtpu") is None:
            return (
                "libtpu is not installed; pip install 'jaxllama[tpu]' brings it, and needs no TPU"
            )
        return None
    if not any(_is_installed(plugin) for plugin in _PLUGINS):
        return (
            "JAX's plugin for CUDA is not installed; pip install 'jaxllama[cuda]' brings it, and "
            "needs no GPU"
        )
    return None


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # its package is not there either
        return False


def mesh_of(sizes: Sizes, device: Accelerator | None) -> Mesh:
    """Return a mesh of a device's kind, or of this machine's if there is none.

    Args:
        sizes: devices along each axis.
        device: whose compiler is to be asked.
    """
    count = 1
    for size in sizes.values():
        count *= size
    devices = jax.devices() if device is None else _described(device, count)
    return jax.make_mesh(
        tuple(sizes.values()),
        AXES,
        axis_types=(AxisType.Auto,) * len(AXES),
        devices=devices[:count],
    )


def _described(device: Accelerator, count: int) -> list[Any]:
    jax.devices()  # registers the plugins
    if device.slices is None:
        nodes, own = divmod(count, _A_NODE)
        shape = f"1x{nodes}x{_A_NODE}" if nodes and not own else f"1x1x{count}"
        topology = topologies.get_topology_desc(
            platform="cuda", target_config=_cuda_target(device), topology=shape
        )
        return topology.devices
    sides = device.slices[count]
    # A host has a square of four chips; smaller slices are part of one.
    host = tuple(min(side, 2) for side in sides[:2])
    name = f"{device.name}:{'x'.join(map(str, sides))}"
    extra = {"chip_config_name": "megacore"} if device.name == "v4" else {}
    return topologies.get_topology_desc(
        name, platform="tpu", chips_per_host_bounds=(*host, 1), **extra
    ).devices


def _cuda_target(device: Accelerator) -> str:
    """Return a device as XLA's `GpuTargetConfigProto`, in text."""
    chip = device.cuda
    assert chip is not None
    return f"""
        gpu_device_info {{
          threads_per_warp: 32 threads_per_block_limit: 1024
          threads_per_core_limit: {chip.threads}
          shared_memory_per_block: 49152
          shared_memory_per_block_optin: {chip.shared_bytes - 1024}
          shared_memory_per_core: {chip.shared_bytes}
          registers_per_block_limit: 65536 registers_per_core_limit: 65536
          block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
          thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
          core_count: {chip.cores} fpus_per_core: {chip.units} clock_rate_ghz: {chip.clock_ghz}
          l2_cache_size: {chip.cache_bytes}
          memory_bandwidth: {int(device.bandwidth)} device_memory_size: {int(device.memory)}
          cuda_compute_capability {{ major: {chip.capability[0]} minor: {chip.capability[1]} }}
        }}
        platform_name: "CUDA"
        dnn_version_info {{ major: 9 minor: 10 }}
        device_description_str: "{device.about}"
    """
