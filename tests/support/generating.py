"""What the program that writes is called with, for tests that look at the program itself."""

from __future__ import annotations

from typing import Any

from flax import nnx

from jaxllama import generate as generation
from jaxllama.model import Llama
from jaxllama.request import check_request
from jaxllama.sampling import GREEDY, Sampling


def operands(
    model: Llama,
    prompts: list[list[int]],
    *,
    new: int,
    cache_dtype: str | None = None,
    sampling: Sampling = GREEDY,
    fresh: bool = False,
) -> tuple[nnx.GraphDef[Llama], tuple[Any, Any, Any]]:
    """Return the model's graph; its weights, the state at the start, and the inputs.

    Args:
        model: the model.
        prompts: token ids of each row.
        new: tokens to be written at most.
        cache_dtype: of the cache; the model's if None.
        sampling: how tokens are chosen.
        fresh: whether the cache is known to be empty.
    """
    request = check_request(
        model,
        prompts,
        max_new_tokens=new,
        eos_ids=None,
        seed=0,
        cache=None,
        cache_dtype=cache_dtype,
        every=1,
    )
    state = generation._begin(model, request, sampling, None)
    graph, weights = nnx.split(model)
    return graph, (weights, state, generation._inputs(request, sampling, fresh=fresh))
