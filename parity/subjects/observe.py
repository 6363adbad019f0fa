"""Watching what a decoder layer computes between its modules, call by call.

Scores, probabilities and rotated queries never leave an attention module, so no hook sees them.
Seen from torch, though, both Hugging Face's and Meta's layer is: matmul(query, keys), times or
divided by a constant, plus the mask, softmax, matmul(probs, values). This mode watches for just
that and records the operands themselves; it computes nothing anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from parity.subjects.torch_arrays import Recorder

# What must have been seen by the end of a layer.
WATCHED = ("q_rope", "k_rope", "attn_scores", "attn_probs", "attn_context", "post_attention")


def heads_inside(x: Tensor) -> Tensor:
    """Swap [B N T H] and [B T N H]."""
    return x.transpose(1, 2)


def split_heads(x: Tensor, size: int) -> Tensor:
    """Cut the last axis into heads of `size` features."""
    return x.unflatten(-1, (-1, size))


def merge_heads(x: Tensor) -> Tensor:
    """Undo `split_heads`."""
    return x.flatten(-2)


class LayerWatch(TorchFunctionMode):
    """Records a layer's inner taps, in the present layer of the present thread.

    Args:
        recorder: gives the recorder of the present stage.
        queries: canonical view of the first matmul's left operand [B N T H], and the way back;
            [B T N H] by default.
    """

    def __init__(
        self,
        recorder: Callable[[], Recorder],
        queries: tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]] | None = None,
    ) -> None:
        super().__init__()
        self._recorder = recorder
        self._queries = queries or (heads_inside, heads_inside)
        self.layer: int | None = None
        self.attended: Tensor | None = None
        self._raw: Tensor | None = None
        self._scaled = False

    def enter_layer(self, index: int) -> None:
        """Begin to watch layer `index`."""
        self.layer, self.attended, self._raw, self._scaled = index, None, None, False

    def leave_layer(self) -> None:
        """Stop watching, and make sure that everything was seen.

        Raises:
            RuntimeError: the layer is no longer written as this mode expects.
        """
        seen = self._recorder().values
        missing = [name for name in WATCHED if self.full(name) not in seen]
        if missing:
            raise RuntimeError(
                f"layer {self.layer}: did not see {', '.join(missing)}. The library's attention is "
                "written in another way than parity.subjects.observe expects; see "
                "constraints.txt for the version it was tested with"
            )
        self.layer = self.attended = self._raw = None

    def full(self, name: str) -> str:
        """Return a tap's full name in the present layer."""
        return f"layers.{self.layer}.{name}"

    def tap(self, name: str, value: Tensor, *views: Callable[[Tensor], Tensor]) -> Tensor:
        """Record under the present layer's name; return what to go on with."""
        return self._recorder()(self.full(name), value, *views)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if self.layer is not None and name in ("matmul", "__matmul__"):
            return self._matmul(func, args, kwargs)
        result = func(*args, **kwargs)
        if self.layer is None:
            return result
        if name in ("mul", "div", "__mul__", "__truediv__") and self._is_raw(args):
            self._raw, self._scaled = None, True
            return self.tap("attn_scores", result)
        # Identity, not equality: the residual sum is the one that takes o_proj's own output.
        if name in ("add", "__add__") and any(arg is self.attended for arg in args):
            self.attended = None
            return self.tap("post_attention", result)
        return result

    def _is_raw(self, args: tuple[Any, ...]) -> bool:
        return self._raw is not None and args[0] is self._raw

    def _matmul(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor:
        if not self._scaled:
            queries = self.tap("q_rope", args[0], *self._queries)
            self._raw = func(queries, *args[1:], **kwargs)
            return self._raw
        probs = self.tap("attn_probs", args[0])
        context = func(probs, *args[1:], **kwargs)
        return self.tap("attn_context", context, heads_inside, heads_inside)
