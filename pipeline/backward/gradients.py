"""Gradients: those of a loss, by transforming the function that computes it.

The pipeline hands the objective over: a function from the parameters to (loss, everything else it computed).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias
from weakref import WeakSet

import torch
from attrs import field, frozen
from torch import Tensor
from torch.func import grad_and_value

from pipeline.direction import Better
from pipeline.errors import ConfigError, PipeError, StageError, WiringError, place_of
from pipeline.stage import Stage, first_line
from pipeline.tree import Tree, tree_map

Objective: TypeAlias = Callable[[Tree], tuple[Tensor, Tree]]
Route: TypeAlias = Literal["auto", "functional", "tape"]

_BY_TAPE: WeakSet[Gradients] = WeakSet()
"""Backwards with route="auto" whose code torch.func refused."""


@frozen(eq=False, repr=False)
class Gradients(Stage):
    """A backward stage, and the metric of its loss: sums of loss * weight and of weight."""

    of: str = field(kw_only=True)
    wrt: tuple[str, ...] = field(kw_only=True)
    """The models whose parameters it is with respect to; a pipeline fills in those that nobody named."""
    grads: str = field(kw_only=True)
    route: Route = field(kw_only=True)
    accumulate: int = field(kw_only=True, default=1)
    per_example: bool = field(kw_only=True, default=False)
    better: Better = field(kw_only=True, default="low")

    def rename(self, **names: str) -> Stage:
        raise WiringError(
            f"stage {self.name!r} is renamed where it is made: backward.gradients(of=..., wrt=..., writes=...)"
        )

    @property
    def values_read(self) -> tuple[str, ...]:
        return (self.of, *self.wrt)

    @property
    def values_written(self) -> tuple[str, ...]:
        return (self.grads,)

    def differentiate(
        self, objective: Objective, params: dict[str, Tensor], hyper: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], Tree]:
        """The gradients, and what the objective computed besides, without gradients. As in torch, a parameter that the
        loss does not depend on has none."""
        if self.taken == "tape":
            return self._by_tape(objective, params)
        if self.per_example:  # mapped over samples, where the tape is no way out; per_example.py says what fails
            return _functional(objective, params)
        try:
            return _functional(objective, params)
        except torch.OutOfMemoryError:
            raise
        except Exception as e:
            # Under a transformation of the user's own, such as vmap, the tape is no way out.
            if self.route == "functional" or torch._C._functorch.peek_interpreter_stack() is not None:
                if re.search(r"torch\.func|functorch|doesn't have storage", str(e)):
                    raise StageError(self.name, f'by route="functional": {e}; route="tape" takes such code') from e
                raise
        made = self._by_tape(objective, params)  # what is no matter of the route is raised here
        _BY_TAPE.add(self)
        return made

    @property
    def taken(self) -> Route:
        """The route that it takes, as far as is known before it was tried."""
        return "tape" if self in _BY_TAPE else self.route

    def _by_tape(self, objective: Objective, params: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tree]:
        with torch.enable_grad():
            leaves = tree_map(lambda p: p.detach().requires_grad_(), params)
            loss, aux = objective(leaves)
            try:
                made = torch.autograd.grad(loss, [*leaves.values()], allow_unused=True) if loss.requires_grad else ()
            except (PipeError, torch.OutOfMemoryError):
                raise
            except Exception as e:  # of what runs in the backward alone
                raise StageError(self.name, f"failed: {first_line(e)}{place_of(e)}") from e
        detached = tree_map(lambda x: x.detach() if isinstance(x, Tensor) else x, aux)
        return {k: g for k, g in zip(params, made, strict=False) if g is not None}, detached


def _functional(objective: Objective, params: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tree]:
    reached: set[str] = set()

    def watched(params: dict[str, Tensor]) -> tuple[Tensor, Tree]:
        for k, p in params.items():  # torch.func gives zeros to a parameter that no gradient reaches
            p.register_hook(lambda _, k=k: reached.add(k))  # type: ignore[no-untyped-call]  # torch has no type for it
        return objective(params)

    grads, (_, aux) = grad_and_value(watched, has_aux=True)(params)
    return {k: g for k, g in grads.items() if k in reached}, aux


def gradients(
    *,
    of: str = "loss",
    wrt: str | tuple[str, ...] = (),
    writes: str = "grads",
    route: Route = "auto",
    accumulate: int = 1,
    per_example: bool = False,
    name: str = "backward.gradients",
) -> Gradients:
    """The gradients of the loss `of` with respect to `wrt`, through all stages since the backward before it.

    - `wrt`: the models, by their params=; without it, all that the loss depends on, losses with parameters among them.
      An update after it changes them all; those of several have the model's name before their own, "head.weight", in
      update.groups() too. A parameter that the loss does not reach in a step has no gradient in it, as in torch: the
      update leaves it, and what it remembers of it, as they are.
    - `route`: "functional" (torch.func: composes with vmap and with itself), "tape" (torch.autograd.grad: takes code
      that torch.func refuses, such as an autograd.Function with ctx in its forward, hooks on a module's backward, and
      autograd.grad inside a forward) or "auto": functional, and from where that is refused on, the tape;
      `print(pipe)` says so.
    - `accumulate`: the batch is taken in this many parts, one after the other, with the memory of one; the result is
      the mean over the whole batch, also where the parts are unequal.
    - `per_example`: a gradient for each sample, of the loss on that sample alone: {name: (B, ...)}, as
      `update.clip_per_example()` takes them. Sample i draws by a key of its own, random.key(seed, i). What the stages
      wrote is joined to that of the whole batch: what begins with a dimension of samples one after the other, the loss
      and other 0-d floats as the mean weighted by `<name>.weight`; anything else is that of the last sample. Each shape
      of a batch takes a graph of its own: torch has no symbolic sizes for what is mapped.
    """
    if route not in ("auto", "functional", "tape"):
        raise WiringError(f"backward route {route!r} is unknown; use 'auto', 'functional' or 'tape'")
    if accumulate < 1:
        raise ConfigError(f"accumulate={accumulate} is not a positive whole number")
    each = f"{name} takes gradients for each sample"
    if per_example and accumulate > 1:
        raise ConfigError(f"{each}, or in accumulate={accumulate} parts: leave one of the two out")
    if per_example and route == "tape":
        raise WiringError(f"{each} by torch.func alone: leave out route='tape'")

    def sums(loss: Tensor, weight: Any = None) -> Tree:
        # Where nothing counts a loss of torch is 0 / 0.
        return {"sum": torch.where(weight > 0, loss.to(torch.float64) * weight, 0.0), "weight": weight}

    return Gradients(
        name,
        sums,
        init=lambda: {k: torch.zeros((), dtype=torch.float64) for k in ("sum", "weight")},
        finish=lambda sums: {of: sums["sum"] / sums["weight"]},
        names={"loss": of, "weight": f"{of}.weight"},
        of=of,
        wrt=(wrt,) if isinstance(wrt, str) else tuple(wrt),
        grads=writes,
        route=route,
        accumulate=accumulate,
        per_example=per_example,
    )
