from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch

from jaxllama.errors import InputError
from parity.subjects.torch.arrays import Recorder, at_least_float32, to_numpy, to_torch, torch_dtype


def test_every_bfloat16_keeps_its_bits_both_ways() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    array = bits.view(ml_dtypes.bfloat16)
    tensor = to_torch(array)
    assert tensor.dtype == torch.bfloat16
    back = to_numpy(tensor)
    assert back.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(back.view(np.uint16), bits)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int32, np.int64, np.bool_])
def test_other_dtypes_pass_unchanged(dtype: type) -> None:
    array = np.array([[0, 1, 1], [1, 0, 0]], dtype)
    back = to_numpy(to_torch(array))
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)


def test_what_torch_cannot_share_is_copied() -> None:
    array = np.arange(6.0)
    array.flags.writeable = False
    np.testing.assert_array_equal(to_numpy(to_torch(array)), array)
    np.testing.assert_array_equal(to_numpy(to_torch(array[::-1])), array[::-1])


def test_a_bfloat16_view_that_is_not_contiguous_keeps_its_bits() -> None:
    tensor = torch.arange(12, dtype=torch.float32).to(torch.bfloat16).reshape(3, 4).T
    np.testing.assert_array_equal(to_numpy(tensor).astype(np.float32), tensor.float().numpy())


def test_widened_is_float32_at_least() -> None:
    assert at_least_float32(torch.bfloat16) == torch.float32
    assert at_least_float32(torch.float64) == torch.float64


def test_an_unknown_dtype_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="'f16': expected one of f64, f32, bf16"):
        torch_dtype("f16")


def test_the_recorder_keeps_the_value_and_continues_with_the_forced_one() -> None:
    force = {"layers.4.q_rope": np.full((1, 2, 3, 4), 1 / 3)}
    tap = Recorder(force, "layers.4.")
    value = torch.zeros(1, 3, 2, 4, dtype=torch.bfloat16)

    def swap(x: torch.Tensor) -> torch.Tensor:
        return x.transpose(1, 2)

    result = tap("q_rope", value, swap, swap)
    assert result.shape == (1, 3, 2, 4)
    assert result.dtype == torch.bfloat16
    assert float(result[0, 0, 0, 0]) == float(torch.tensor(1 / 3).bfloat16())
    assert tap.values["layers.4.q_rope"].shape == (1, 2, 3, 4)
    assert not tap.values["layers.4.q_rope"].any()
    assert tap("k_rope", value) is value
