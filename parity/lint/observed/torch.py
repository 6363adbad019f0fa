"""Watching PyTorch's attentions: the arguments of its functions, and eager softmaxes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from jaxllama import dtypes
from parity.lint.observed.call import AttentionCall, of_scores

_MHA = inspect.signature(torch.nn.functional.multi_head_attention_forward)
_SDPA = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")


@contextmanager
def watch_torch(seen: Callable[[AttentionCall], None]) -> Iterator[None]:
    """Hand on every attention that runs in this thread, as PyTorch's own functions get it."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # it calls none of the functions watched
    try:
        with _Watch(seen):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


class _Watch(TorchFunctionMode):
    def __init__(self, seen: Callable[[AttentionCall], None]) -> None:
        super().__init__()
        self._seen = seen

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in _READERS and (call := _READERS[name](args, kwargs)) is not None:
            self._seen(call)
        return func(*args, **kwargs)  # what it calls itself is not watched


def _softmax(args: Any, kwargs: Any) -> AttentionCall | None:
    scores: Tensor = args[0] if args else kwargs["input"]
    axis = kwargs.get("dim", args[1] if len(args) > 1 else None)
    if axis not in (-1, scores.ndim - 1) or not scores.is_floating_point():
        return None
    return of_scores("softmax in PyTorch", _numpy(scores.float()), _dtype(scores))


def _sdpa(args: Any, kwargs: Any) -> AttentionCall:
    given = {**dict(zip(_SDPA, args, strict=False)), **kwargs}
    q, k, mask = given["query"], given["key"], given.get("attn_mask")
    t, s = q.shape[-2], k.shape[-2]
    folded = q.ndim == 3 and mask is not None and mask.ndim == 3
    array = np.ones((1, 1, t, s), bool) if mask is None else _numpy(mask)
    array = array if folded else _four_axes(array)
    causal = bool(given.get("is_causal"))
    if causal:  # aligned at the top left, and never beside a mask
        array = np.tri(t, s, dtype=bool)[None, None]
    heads = q.shape[-3] if q.ndim > 3 else None
    name = "scaled_dot_product_attention in PyTorch"
    return AttentionCall(name, array, heads, _dtype(q), causal)


def _mha(args: Any, kwargs: Any) -> AttentionCall:
    given = _MHA.bind(*args, **kwargs).arguments
    query, key, heads = given["query"], given["key"], given["num_heads"]
    t, s = query.shape[0], key.shape[0]  # batch_first is undone before
    rows = query.shape[1] if query.ndim == 3 else 1
    bias = np.zeros((1, 1, t, s), dtypes.parse(_dtype(query)))
    for mask in (given.get("attn_mask"), given.get("key_padding_mask")):
        if mask is None:
            continue
        array = _numpy(mask)
        if array.dtype == np.bool_:  # True is hidden, against all other functions here
            array = np.where(array, -np.inf, 0.0).astype(bias.dtype)
        if mask is given.get("key_padding_mask"):
            array = np.atleast_2d(array)[:, None, None]
        elif array.ndim == 3:
            array = array.reshape(rows, heads, t, s)
        bias = bias + _four_axes(array)
    return AttentionCall("torch.nn.MultiheadAttention", bias, heads, _dtype(query))


_READERS: dict[str, Callable[[Any, Any], AttentionCall | None]] = {
    "softmax": _softmax,
    "scaled_dot_product_attention": _sdpa,
    "multi_head_attention_forward": _mha,
}


def _four_axes(array: np.ndarray) -> np.ndarray:
    return array.reshape((1,) * (4 - array.ndim) + array.shape)


def _numpy(tensor: Tensor) -> np.ndarray:
    """Return an array of the tensor's own dtype."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(dtypes.parse("bf16")).copy()
    return tensor.numpy().copy()


def _dtype(tensor: Tensor) -> str:
    return dtypes.short_name(str(tensor.dtype).removeprefix("torch."))
