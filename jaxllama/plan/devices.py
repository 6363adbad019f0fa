"""Accelerators by name: published memory, bandwidth and arithmetic, and what XLA asks of a GPU.

Sizes are in bytes, as published: a GB is 10^9 of them. Bandwidths are bytes a second, arithmetic
operations a second of dense bfloat16 products summed in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from jaxllama.errors import InputError, argument

# Of a device's memory: the rest is the runtime's, its collectives' and lost between buffers. JAX
# takes 0.75 of a GPU beforehand unless XLA_PYTHON_CLIENT_MEM_FRACTION says more.
USABLE = 0.9


@dataclass(frozen=True)
class CudaTarget:
    """What XLA is told of a GPU that is not there.

    Attributes:
        capability: of CUDA, major and minor.
        cores: multiprocessors.
        units: float32 units of each.
        clock_ghz: at most.
        shared_bytes: of a multiprocessor's shared memory; a block has 1 KiB less.
        cache_bytes: of the second level.
        threads: of a multiprocessor, at most.
    """

    capability: tuple[int, int]
    cores: int
    units: int
    clock_ghz: float
    shared_bytes: int
    cache_bytes: int
    threads: int = 2048


@dataclass(frozen=True)
class Accelerator:
    """A device as its maker describes it.

    Attributes:
        name: as options have it.
        about: as people say it.
        memory: bytes.
        bandwidth: bytes a second between memory and chip.
        flops: operations a second.
        most_tensor: devices that are near enough to share every product.
        slices: of a TPU, the chips along each side of a slice, by their number.
        cuda: of a GPU.
    """

    name: str
    about: str
    memory: float
    bandwidth: float
    flops: float
    most_tensor: int = 8
    slices: Mapping[int, tuple[int, ...]] | None = None
    cuda: CudaTarget | None = None

    @property
    def platform(self) -> str:
        """What JAX calls its kind."""
        return "tpu" if self.cuda is None else "gpu"

    @property
    def usable(self) -> int:
        """Bytes that a model may take."""
        return int(USABLE * self.memory)

    def slice_problem(self, count: int) -> str | None:
        """Return why so many devices cannot be had together; None if they can."""
        if self.slices is None or count in self.slices:
            return None
        return (
            f"no slice of {self.name} has {count} chips; there are those of "
            f"{', '.join(map(str, self.slices))}"
        )


# cloud.google.com/tpu/docs/v5e and v6e: 2D tori; a slice of 256 chips is the largest.
_FLAT = {
    1: (1, 1), 2: (1, 2), 4: (2, 2), 8: (2, 4), 16: (4, 4), 32: (4, 8), 64: (8, 8),
    128: (8, 16), 256: (16, 16),
}  # fmt: skip
# cloud.google.com/tpu/docs/v4 and v5p: 3D tori.
_CUBIC = {
    1: (1, 1, 1), 2: (1, 2, 1), 4: (2, 2, 1), 8: (2, 2, 2), 16: (2, 2, 4), 32: (2, 4, 4),
    64: (4, 4, 4), 128: (4, 4, 8), 256: (4, 8, 8), 512: (8, 8, 8), 1024: (8, 8, 16),
}  # fmt: skip

# Multiprocessors, clocks and memories on the chip: of NVIDIA's whitepapers on each architecture,
# and CUDA C++ Programming Guide, "Technical Specifications per Compute Capability".
_HOPPER = CudaTarget((9, 0), 132, 128, 1.98, 233_472, 52_428_800)

DEVICES: dict[str, Accelerator] = {
    one.name: one
    for one in (
        # NVIDIA H100 Tensor Core GPU datasheet, SXM: 80 GB, 3.35 TB/s, 1979 TFLOPS with sparsity.
        Accelerator("h100", "NVIDIA H100 SXM 80 GB", 80e9, 3.35e12, 989.4e12, cuda=_HOPPER),
        # NVIDIA H200 datasheet, SXM: 141 GB, 4.8 TB/s; arithmetic as H100's.
        Accelerator("h200", "NVIDIA H200 SXM 141 GB", 141e9, 4.8e12, 989.4e12, cuda=_HOPPER),
        # NVIDIA A100 datasheet, 80GB SXM: 2039 GB/s, 312 TFLOPS.
        Accelerator(
            "a100-80g",
            "NVIDIA A100 SXM 80 GB",
            80e9,
            2.039e12,
            312e12,
            cuda=CudaTarget((8, 0), 108, 64, 1.41, 167_936, 41_943_040),
        ),
        # NVIDIA HGX B200 datasheet, a GPU's eighth: 180 GB, 8 TB/s, 4.5 PFLOPS with sparsity.
        Accelerator(
            "b200",
            "NVIDIA B200 180 GB",
            180e9,
            8e12,
            2250e12,
            cuda=CudaTarget((10, 0), 148, 128, 1.965, 233_472, 132_644_864),
        ),
        # NVIDIA L40S datasheet: 48 GB, 864 GB/s, 733 TFLOPS with sparsity; no NVLink.
        Accelerator(
            "l40s",
            "NVIDIA L40S 48 GB",
            48e9,
            0.864e12,
            362.05e12,
            cuda=CudaTarget((8, 9), 142, 128, 2.52, 102_400, 100_663_296, 1536),
        ),
        # cloud.google.com/tpu/docs/v4: 32 GiB, 1228 GB/s, 275 TFLOPS.
        Accelerator("v4", "TPU v4 32 GiB", 32 * 2**30, 1.228e12, 275e12, slices=_CUBIC),
        # cloud.google.com/tpu/docs/v5e: 16 GB, 819 GB/s, 197 TFLOPS.
        Accelerator("v5e", "TPU v5e 16 GB", 16e9, 0.819e12, 197e12, slices=_FLAT),
        # cloud.google.com/tpu/docs/v5p: 95 GB, 2765 GB/s, 459 TFLOPS.
        Accelerator("v5p", "TPU v5p 95 GB", 95e9, 2.765e12, 459e12, slices=_CUBIC),
        # cloud.google.com/tpu/docs/v6e: 32 GB, 1640 GB/s, 918 TFLOPS.
        Accelerator("v6e", "TPU v6e 32 GB", 32e9, 1.64e12, 918e12, slices=_FLAT),
    )
}


def device(name: str) -> Accelerator:
    """Return an accelerator.

    Raises:
        InputError: none of that name is known.
    """
    if (found := DEVICES.get(name.lower())) is None:
        raise InputError(f"{argument('device', name)}: expected one of {', '.join(DEVICES)}")
    return found
