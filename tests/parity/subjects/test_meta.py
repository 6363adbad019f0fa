from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from witnesses import LINEAR, LLAMA3, inputs_for, small, whole

from jaxllama.errors import InputError
from parity.subjects.meta.package import interleave_pairs, split_halves
from parity.subjects.meta.subject import MetaLlama


def test_layouts_are_each_others_inverse() -> None:
    x = torch.arange(2 * 3 * 10).reshape(2, 3, 10)
    assert split_halves(x)[0, 0].tolist() == [0, 2, 4, 6, 8, 1, 3, 5, 7, 9]
    assert torch.equal(interleave_pairs(split_halves(x)), x)
    assert torch.equal(split_halves(interleave_pairs(x)), x)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"head_dim": 20}, ["head_dim 20", "96/6"]),
        ({"scaling": LINEAR}, ["rope_scaling", "linear"]),
        ({"head_dim": 20, "scaling": LINEAR}, ["2 problems", "head_dim 20", "linear"]),
    ],
)
def test_what_it_cannot_express_is_refused(changes: dict[str, object], words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        MetaLlama(small(**changes), dtype="f32")  # type: ignore[arg-type]
    assert all(word in str(error.value) for word in [*words, "take another reference"])


def test_other_factors_than_its_own_are_refused() -> None:
    assert LLAMA3 is not None
    import dataclasses

    for field, value in (("factor", 32.0), ("original_max_position_embeddings", 4096)):
        scaling = dataclasses.replace(LLAMA3, **{field: value})
        with pytest.raises(InputError, match=f"{field}={value}"):
            MetaLlama(small(scaling=scaling), dtype="f32")


@pytest.mark.parametrize("package", ["fairscale", "llama_models"])
def test_missing_packages_are_named_with_the_remedy(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(sys.modules):
        if name.split(".")[0] == package:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [_Refuse(package), *sys.meta_path])
    with pytest.raises(InputError, match=rf"{package}.*pip install 'jaxllama\[meta\]'"):
        MetaLlama(small(), dtype="f32")


class _Refuse:
    """An import hook behind which a package is not installed."""

    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(self, name: str, *rest: object) -> None:
        if name.split(".")[0] == self.package:
            raise ModuleNotFoundError(f"No module named {self.package!r}", name=self.package)


def test_pads_are_left_out_and_filled_with_zeros() -> None:
    checkpoint = small()
    inputs = inputs_for(checkpoint, "left_padded")
    taps = whole(MetaLlama(checkpoint, dtype="f32"), inputs)
    pads = ~inputs.valid
    for name in ("embed", "layers.0.q_rope", "layers.1.output", "logits"):
        assert not taps[name][pads].any()
        assert taps[name][inputs.valid].any()
    assert not taps["layers.1.attn_probs"].transpose(0, 2, 1, 3)[pads].any()


def test_a_tied_head_shares_the_embeddings_memory() -> None:
    model = MetaLlama(small(tied=True), dtype="f32").model
    assert model.output.weight.data_ptr() == model.tok_embeddings.weight.data_ptr()
    model = MetaLlama(small(tied=False), dtype="f32").model
    assert model.output.weight.data_ptr() != model.tok_embeddings.weight.data_ptr()


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    MetaLlama(small(), dtype="f32")
    assert capfd.readouterr() == ("", "")


def test_its_frequencies_are_read_off_its_own_table() -> None:
    checkpoint = small()
    taps = whole(MetaLlama(checkpoint, dtype="f64"), inputs_for(checkpoint, "causal"))
    assert taps["rope.inv_freq"].dtype == np.float32
    assert taps["rope.inv_freq"].shape == (checkpoint.config.head_dim // 2,)
