"""Watching what another library's decoder layer computes, without changing its code.

Module hooks see what goes in and out of modules. Scores, probabilities and rotated queries never
leave the attention module, so no hook sees them. Seen from torch, though, both Hugging Face's and
Meta's attention is: matmul(query, keys), times or divided by a constant, plus the mask, softmax,
matmul(probs, values). `LayerRecorder` watches for just that and records the operands themselves;
nothing is computed anew.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from parity.subjects.threaded import StageExchange
from parity.subjects.torch.arrays import Recorder, View

# What must have been seen between the modules by the end of a layer.
WATCHED = ("q_rope", "k_rope", "attn_scores", "attn_probs", "attn_context", "post_attention")

# To the canonical layout, and back.
Views = tuple[View, View]


def heads_inside(x: Tensor) -> Tensor:
    """Swap [B N T H] and [B T N H]."""
    return x.transpose(1, 2)


HEADS_INSIDE: Views = (heads_inside, heads_inside)


class LayerRecorder(TorchFunctionMode):
    """Records a layer's inner taps among the torch calls made while it is active.

    Args:
        recorder: gives the recorder of the present stage.
        queries: views of the first matmul's left operand, [B N T H] by default.
        keys: views of what the layer writes into its cache first; None where it has no cache of
            its own and its keys are seen elsewhere.
    """

    def __init__(
        self,
        recorder: Callable[[], Recorder],
        queries: Views = HEADS_INSIDE,
        keys: Views | None = None,
    ) -> None:
        super().__init__()
        self.recorder = recorder
        self.layer: int | None = None
        self.attended: Tensor | None = None
        self._queries = queries
        self._keys = keys
        self._raw: Tensor | None = None
        self._scaled = False

    def enter_layer(self, index: int) -> None:
        """Begin to watch layer `index`."""
        self.layer, self.attended, self._raw, self._scaled = index, None, None, False

    def leave_layer(self) -> None:
        """Stop watching, and make sure that everything was seen.

        Raises:
            RuntimeError: the layer is not written as this mode expects.
        """
        seen = self.recorder().values
        missing = [name for name in WATCHED if self.full(name) not in seen]
        if missing:
            raise RuntimeError(
                f"layer {self.layer}: did not see {', '.join(missing)}. The library's attention is "
                "written in another way than parity.subjects.torch.hooks expects; see "
                "constraints.txt for the version it was tested with"
            )
        self.layer = self.attended = self._raw = None

    def full(self, name: str) -> str:
        """Return a tap's full name in the present layer, or as it is outside of layers."""
        return name if self.layer is None else f"layers.{self.layer}.{name}"

    def tap(self, name: str, value: Tensor, *views: View) -> Tensor:
        """Record under the present layer's name; return what to go on with."""
        return self.recorder()(self.full(name), value, *views)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if self.layer is None:
            return func(*args, **kwargs)
        if name in ("matmul", "__matmul__"):
            return self._matmul(func, args, kwargs)
        if name == "__setitem__" and self._keys is not None and not self._has("k_rope"):
            cache, place, keys = args
            return func(cache, place, self.tap("k_rope", keys, *self._keys))
        result = func(*args, **kwargs)
        # Identity, not equality: the result of just that call, wherever else the values occur.
        if name in ("mul", "div", "__mul__", "__truediv__") and _takes(args, self._raw):
            self._raw, self._scaled = None, True
            return self.tap("attn_scores", result)
        if name in ("add", "__add__") and _takes(args, self.attended):
            self.attended = None
            return self.tap("post_attention", result)
        return result

    def _has(self, name: str) -> bool:
        return self.full(name) in self.recorder().values

    def _matmul(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor:
        if not self._scaled:
            queries = self.tap("q_rope", args[0], *self._queries)
            self._raw = func(queries, *args[1:], **kwargs)
            return self._raw
        probs = self.tap("attn_probs", args[0])
        return self.tap("attn_context", func(probs, *args[1:], **kwargs), *HEADS_INSIDE)


def _takes(args: tuple[Any, ...], tensor: Tensor | None) -> bool:
    return tensor is not None and any(arg is tensor for arg in args)


class ThreadState(threading.local):
    """What the calling thread records; hooks belong to a model, runs to a thread."""

    watch: LayerRecorder | None = None
    stages: StageExchange | None = None


def hook_output(present: ThreadState, module: nn.Module, name: str, *views: View) -> None:
    """Record a module's output as tap `name`."""

    def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return output if present.watch is None else present.watch.tap(name, output, *views)

    module.register_forward_hook(hook)


def hook_layer(
    present: ThreadState,
    index: int,
    layer: nn.Module,
    parts: Mapping[str, nn.Module],
    views: Mapping[str, Views],
) -> None:
    """Record all taps of a decoder layer that its modules show.

    Args:
        present: the thread's recording.
        index: the layer's.
        layer: takes the residual stream as its first positional argument and returns it.
        parts: canonical tap name to the module whose output it is.
        views: canonical tap name to the views of its layout, where it is not canonical.
    """

    def on_input(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        if present.watch is None:
            return args
        present.watch.enter_layer(index)
        return (present.watch.tap("input", args[0]), *args[1:])

    def on_attended(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        if present.watch is None:
            return output
        present.watch.attended = present.watch.tap("o_proj", output)
        return present.watch.attended

    def on_mlp_act(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return args if present.watch is None else (present.watch.tap("mlp_act", args[0]),)

    def on_output(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        if present.watch is None:
            return output
        output = present.watch.tap("output", output)
        present.watch.leave_layer()
        return output

    layer.register_forward_pre_hook(on_input)
    for name, module in parts.items():
        if name == "o_proj":
            module.register_forward_hook(on_attended)
            continue
        if name == "down_proj":
            module.register_forward_pre_hook(on_mlp_act)
        hook_output(present, module, name, *views.get(name, ()))
    layer.register_forward_hook(on_output)
