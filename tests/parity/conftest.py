from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import foreign_llamas as llamas
import pytest
from foreign_subjects import CHECKPOINT


@pytest.fixture(scope="module")
def torch_model() -> Any:
    return llamas.hf_model(CHECKPOINT)


@pytest.fixture(scope="module")
def jax_model() -> Iterator[Any]:
    """Return tunix's model, mended of what parity finds in it: it never gets the config's theta."""
    model = llamas.tunix_model(CHECKPOINT)
    with pytest.MonkeyPatch.context() as patch:
        rotate = llamas.tunix().apply_rope
        patch.setattr(rotate, "__defaults__", (int(CHECKPOINT.config.rope_theta),))
        yield model
