"""transformers' and tunix' Llama as subjects, and what a run of them found."""

from __future__ import annotations

from typing import Any

import foreign_llamas as llamas
from witnesses import small

from parity.result import Divergence, Result
from parity.subjects import from_nnx, from_torch
from parity.subjects.base import Subject

CHECKPOINT = small(scaling=None)
CONFIG = CHECKPOINT.config


def hf(model: Any, names: Any = None, **options: Any) -> Subject:
    names = llamas.HF_NAMES | llamas.HF_CACHE if names is None else names
    return from_torch(model, names=names, call=llamas.hf_call, config=CONFIG, **options)


def tunix(model: Any, names: Any = None, **options: Any) -> Subject:
    names = llamas.TUNIX_NAMES | llamas.TUNIX_CACHE if names is None else names
    return from_nnx(model, names=names, call=llamas.tunix_call, config=CONFIG, **options)


def first(result: Result) -> Divergence:
    assert result.verdict == "divergent"
    assert result.first_divergence is not None
    return result.first_divergence
