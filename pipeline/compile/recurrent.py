"""Recurrent layers as one operation each: on a CPU, torch decomposes them into thousands.

Their backward recomputes the forward. On a GPU they are one operation already.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pipeline.errors import CaptureError

_LAYERS = {name: getattr(torch._VF, name) for name in ("lstm", "gru", "rnn_tanh", "rnn_relu")}


class kept_whole(TorchFunctionMode):
    """A context in which a layer without dropout between its levels is one operation."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        # The form for packed sequences has weights in place of this flag.
        if _LAYERS.get(name) is func and isinstance(args[3], bool) and args[0].device.type == "cpu":
            x, hx, weights, biases, layers, dropout, train, bidirectional, batch_first = args
            first = list(hx) if name == "lstm" else [hx]
            if not (dropout and train):
                flags = [biases, layers, bidirectional, batch_first]
                apply: Any = _Layer.apply
                return apply(name, [int(f) for f in flags], len(first), x, *first, *weights)
        return func(*args, **(kwargs or {}))


def _run(name: str, flags: Sequence[int], states: int, tensors: Sequence[Tensor]) -> list[Tensor]:
    biases, layers, bidirectional, batch_first = flags
    x, first, weights = tensors[0], list(tensors[1 : 1 + states]), list(tensors[1 + states :])
    hx = first if name == "lstm" else first[0]
    return list(_LAYERS[name](x, hx, weights, bool(biases), layers, 0.0, True, bool(bidirectional), bool(batch_first)))


def _forward(name: str, flags: Sequence[int], states: int, tensors: Sequence[Tensor]) -> list[Tensor]:
    """The outputs of a layer, and its last states."""
    with torch.no_grad():
        return [t.clone(memory_format=torch.contiguous_format) for t in _run(name, flags, states, tensors)]


def _forward_fake(name: str, flags: Sequence[int], states: int, tensors: Sequence[Tensor]) -> list[Tensor]:
    x, first = tensors[0], tensors[1 : 1 + states]
    width = first[0].shape[-1] * (2 if flags[2] else 1)  # of both directions
    return [x.new_empty(*x.shape[:-1], width), *[t.new_empty(t.shape) for t in first]]


def _backward(
    name: str, flags: Sequence[int], states: int, tensors: Sequence[Tensor], grads: Sequence[Tensor]
) -> list[Tensor]:
    """The gradients with respect to all tensors of a layer."""
    # The caller may have excluded autograd.
    included = torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.AutogradFunctionality, False)
    with included, torch.enable_grad():
        leaves = [t.detach().requires_grad_() for t in tensors]
        gradients = torch.autograd.grad(_run(name, flags, states, leaves), leaves, list(grads))
    return [t.clone(memory_format=torch.contiguous_format) for t in gradients]


def _backward_fake(
    name: str, flags: Sequence[int], states: int, tensors: Sequence[Tensor], grads: Sequence[Tensor]
) -> list[Tensor]:
    return [t.new_empty(t.shape) for t in tensors]


# torch.func refuses the autograd of torch.library.custom_op.
_LIBRARY = torch.library.Library("pipeline", "FRAGMENT")  # type: ignore[no-untyped-call]  # torch's
for _name, _real, _fake, _more in (
    ("recurrent", _forward, _forward_fake, ""),
    ("recurrent_backward", _backward, _backward_fake, ", Tensor[] grads"),
):
    _types = f"str name, int[] flags, int states, Tensor[] tensors{_more}"
    _LIBRARY.define(f"{_name}({_types}) -> Tensor[]")  # type: ignore[no-untyped-call]  # torch's
    _LIBRARY.impl(_name, _real, "CPU")  # type: ignore[no-untyped-call]  # torch's
    torch.library.register_fake(f"pipeline::{_name}", _fake, lib=_LIBRARY)


def _one_by_one(function: Any, info: Any, in_dims: tuple[Any, ...], args: tuple[Any, ...]) -> tuple[Any, Any]:
    """Map by a loop: each sample has its own weights, or gradients of them."""

    def sample(i: int) -> Any:
        pairs = zip(args, in_dims, strict=True)
        return function.apply(*(x.select(d, i) if isinstance(d, int) else x for x, d in pairs))

    stacked = tuple(torch.stack(some) for some in zip(*map(sample, range(info.batch_size)), strict=True))
    return stacked, (0,) * len(stacked)


class _Layer(torch.autograd.Function):
    """The operation with its gradients, for torch.func."""

    @staticmethod
    def forward(name: str, flags: list[int], states: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.ops.pipeline.recurrent(name, flags, states, tensors))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.name, ctx.flags, ctx.states, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        return _one_by_one(_Layer, info, in_dims, args)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        tensors = (*ctx.saved_tensors, *[g.contiguous() for g in grads])
        apply: Any = _Gradients.apply
        return (None, None, None, *apply(ctx.name, ctx.flags, ctx.states, len(grads), *tensors))


class _Gradients(torch.autograd.Function):
    """The operation of the gradients, which refuses gradients of its own instead of returning zeros."""

    @staticmethod
    def forward(name: str, flags: list[int], states: int, grads: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.ops.pipeline.recurrent_backward(name, flags, states, tensors[:-grads], tensors[-grads:]))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        return _one_by_one(_Gradients, info, in_dims, args)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        what = "a gradient of a recurrent layer's gradient"
        raise CaptureError(f"{what} can't be captured as a graph; use fallback='eager'")
