"""Gradients of a loss, by torch.func or by the autograd tape.

The pipeline passes the objective: a function from parameters to (loss, all other values it computed).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

import torch
from attrs import field, frozen
from torch import Tensor
from torch.func import grad_and_value
from torch.utils import _pytree as pytree

from pipeline.direction import Better
from pipeline.element import counts
from pipeline.errors import ConfigError, PipeError, StageError, WiringError, first_line, place_of
from pipeline.random import computed, transformed
from pipeline.stage import Stage
from pipeline.tree import Tree, tree_map

Objective: TypeAlias = Callable[[Tree], tuple[Tensor, Tree]]
Route: TypeAlias = Literal["auto", "functional", "tape"]


@frozen(eq=False, repr=False)
class Gradients(Stage):
    """A backward stage, and the metric of its loss: the sums of loss * weight and of weight."""

    of: str = field(kw_only=True)
    wrt: tuple[str, ...] = field(kw_only=True)
    """Models to differentiate with respect to; without any, a pipeline fills them in."""
    grads: str = field(kw_only=True)
    route: Route = field(kw_only=True)
    accumulate: int = field(kw_only=True, default=1)
    per_example: bool = field(kw_only=True, default=False)
    better: Better = field(kw_only=True, default="low")
    refused: set[str] = field(init=False, factory=set)
    """Under route="auto": "functional" once torch.func refused code, "alone" once a plain step shared its tape."""

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
        self, objective: Objective, params: dict[str, Tensor], hyper: Mapping[str, Tensor], alone: bool
    ) -> tuple[dict[str, Tensor], Tree]:
        """(gradients, the objective's other values, detached). As in torch, parameters that the loss does not depend on
        have no gradient. `alone`: nothing that the objective reads has a gradient of its own."""
        # torch.func takes longer, and a second to import.
        plain = alone and self.taken == "auto" and "alone" not in self.refused
        if plain and not self.per_example and computed():
            if (found := self._by_tape(objective, params, alone=True)) is not None:
                return found
            self.refused.add("alone")
        if self.taken == "tape":
            return self._taped(objective, params)
        try:
            return _functional(objective, params)
        except torch.OutOfMemoryError:
            raise
        except Exception as e:
            if self.per_example:  # vmap needs torch.func; per_example.py explains the error
                raise
            # Under a user's transformation, such as vmap, the tape fails too.
            if self.route == "functional" or transformed():
                if re.search(r"torch\.func|functorch|doesn't have storage", str(e)):
                    raise StageError(self.name, f'by route="functional": {e}; route="tape" takes such code') from e
                raise
        result = self._taped(objective, params)  # errors with another cause are raised here
        self.refused.add("functional")
        return result

    @property
    def taken(self) -> Route:
        """The route in use; "auto" until code was refused."""
        return "tape" if "functional" in self.refused else self.route

    def _taped(self, objective: Objective, params: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tree]:
        found = self._by_tape(objective, params)
        assert found is not None
        return found

    def _by_tape(
        self, objective: Objective, params: dict[str, Tensor], alone: bool = False
    ) -> tuple[dict[str, Tensor], Tree] | None:
        """As `differentiate`; None if it has to be `alone`, but the objective depends on other tensors on a tape,
        such as one in a stage's closure."""
        outside = torch.is_grad_enabled()
        with torch.enable_grad():
            leaves = tree_map(lambda p: p.detach().requires_grad_(), params)
            loss, aux = objective(leaves)
            if alone and outside and {*map(id, leaves_of((loss, aux)))} - {*map(id, leaves.values())}:
                return None
            try:
                grads = torch.autograd.grad(loss, [*leaves.values()], allow_unused=True) if loss.requires_grad else ()
            except (PipeError, torch.OutOfMemoryError):
                raise
            except Exception as e:  # an error of code that runs only in the backward
                raise StageError(self.name, f"failed: {first_line(e)}{place_of(e)}") from e
        detached = tree_map(lambda x: x.detach() if isinstance(x, Tensor) else x, aux)
        return {k: g for k, g in zip(params, grads, strict=False) if g is not None}, detached


def leaves_of(tree: Any) -> list[Tensor]:
    """Leaf tensors that require gradients, below values: those in it, and those that its tensors were computed from."""
    found = [x for x in pytree.tree_leaves(tree) if isinstance(x, Tensor) and x.requires_grad]
    leaves, waiting, seen = [x for x in found if x.is_leaf], list[Any](x.grad_fn for x in found), set[Any]()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            leaves += [node.variable] if type(node).__name__ == "AccumulateGrad" else []
            waiting += [n for n, _ in node.next_functions]
    return leaves


def _functional(objective: Objective, params: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tree]:
    reached: set[str] = set()

    def watched(params: dict[str, Tensor]) -> tuple[Tensor, Tree]:
        for k, p in params.items():  # torch.func gives zeros if no gradient reaches a parameter
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
    """Gradients of the loss `of` with respect to `wrt`, through all stages since the previous backward.

    - `wrt`: models, by their params=; by default all that the loss depends on, including losses with parameters. A
      following update changes them all. With several models, parameter names start with the model's: "head.weight",
      also in update.groups(). As in torch, a parameter that the loss does not reach has no gradient in that step, and
      the update leaves it and its memory unchanged.
    - `route`: "functional" (torch.func, which composes with vmap and with itself), "tape" (torch.autograd.grad, which
      accepts code that torch.func refuses: an autograd.Function with ctx in its forward, backward hooks on modules,
      autograd.grad inside a forward) or "auto": the tape in plain steps; functional in graphs and transformations, and
      the tape once that is refused, as `print(pipe)` then shows.
    - `accumulate`: split the batch into this many chunks, one after the other, with the memory of one. The result is
      the mean over the whole batch, also for unequal chunks.
    - `per_example`: a gradient for each sample, {name: (B, ...)}, as `update.clip_per_example()` takes them. Sample i
      draws by its own key, random.key(seed, i). Values with a sample dimension are concatenated, the loss and other 0-d
      floats averaged with weights `<name>.weight`, and others taken from the last sample. Each batch shape compiles a
      graph of its own: torch has no symbolic sizes under vmap.
    """
    if route not in ("auto", "functional", "tape"):
        raise WiringError(f"backward route {route!r} is unknown; use 'auto', 'functional' or 'tape'")
    counts("", accumulate=accumulate)
    each = f"{name} takes gradients for each sample"
    if per_example and accumulate > 1:
        raise ConfigError(f"{each}, or in accumulate={accumulate} parts: leave one of the two out")
    if per_example and route == "tape":
        raise WiringError(f"{each} by torch.func alone: leave out route='tape'")

    def sums(loss: Tensor, weight: Any = None) -> Tree:
        # A loss of torch with weight 0 is 0 / 0.
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
