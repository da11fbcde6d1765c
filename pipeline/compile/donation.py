"""Donation: programs read and write a State's tensors in place, and the State passed in is spent."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from pipeline.errors import StageError, StateError
from pipeline.programs.evaluate import check_state
from pipeline.programs.program import Program
from pipeline.state import State


class Held:
    """The State that programs read and write."""

    def __init__(self, program: Program, donate: bool) -> None:
        self.program, self.donate = program, donate
        self.spec: Any = None
        self.leaves: tuple[Tensor, ...] = ()
        self.tree: Any = None
        self._current: State | None = None
        self._signature: Any = None
        self._step: int | None = None
        """`state.step`, if it is known without waiting for the device."""
        self._seed: Any = None

    def take(self, state: State) -> bool:
        """Hold a State; True if its leaves have other storage than the previous ones."""
        tree = state.tree  # raises if the State is spent
        if state is self._current:
            return False
        leaves = self.tensors(state)
        if not self.donate:
            leaves = [t.clone() for t in leaves]
        elif len({t.data_ptr() for t in leaves if t.numel()}) < sum(t.numel() > 0 for t in leaves):
            shared = "two tensors of the State share their storage, so it can't be donated"
            raise StateError(f"{shared}; make the State with state.clone() first")
        pointers = {t.data_ptr() for t in self.leaves}
        new = [(held, t) for held, t in zip(self.leaves, leaves, strict=False) if t is not held]
        moved = len(new) == len(self.leaves) or any(t.data_ptr() in pointers for _, t in new)
        self._current, self._seed = state, None
        if moved:
            self.leaves = tuple(leaves)
            self.tree = pytree.tree_unflatten(leaves, self.spec)
            self._step = None
            return True
        # A State derived from the held one, as with another lr: copy its new leaves into the held ones.
        for held, t in new:
            held.copy_(t)
        if tree["step"] is not self.tree["step"]:
            self._step = None
        return False

    def holds(self, state: State) -> bool:
        return state is self._current

    @contextmanager
    def restored(self, copy: bool) -> Iterator[None]:
        """Restore the State if a step fails. A failed step changes nothing; undoing the steps before it takes a
        `copy`."""
        before = [t.clone() for t in self.leaves] if copy and self.donate else []
        try:
            yield
        except StageError:
            for held, t in zip(self.leaves, before, strict=False):
                held.copy_(t)
            self.failed()
            raise

    def failed(self) -> None:
        """After a failed step: without donation, the caller keeps the State."""
        if not self.donate:
            self._current, self.leaves = None, ()

    def give(self, steps: int) -> State:
        """The State after `steps` more steps; the one before is spent."""
        assert self._current is not None
        if self._step is not None:
            self._step += steps
        state = State(self.tree)
        if self.donate:
            self._current.lease.donated = True
            self._current = state
        else:
            self._current, self.leaves = None, ()
        return state

    def position(self, state: State, batches: int) -> tuple[int, int]:
        """A State's epoch, and its batch in it, on the pipeline's own data."""
        if state is not self._current:  # an uncompiled step's
            return divmod(int(state.step), batches)
        if self._step is None:
            self._step = int(state.step)
        return divmod(self._step, batches)

    def shuffled_by(self) -> Any:
        """The seed of the order, as a number."""
        if self._seed is None:
            self._seed = self.program.seed(self.tree)
        return self._seed

    def tensors(self, state: State) -> list[Tensor]:
        """The tensors of a State, with the shapes of the first State."""
        leaves, spec = pytree.tree_flatten(state.tree)
        if any(not t.is_contiguous() and t.clone().stride() != t.stride() for t in leaves):
            raise StateError("a tensor of the State has gaps in its storage; make the State with state.clone() first")
        signature = tuple((t.shape, t.stride(), t.dtype, t.device) for t in leaves)
        if self.spec is None:
            check_state(self.program, state)
            self.spec, self._signature = spec, signature
        elif spec != self.spec or signature != self._signature:
            check_state(self.program, state)
            raise StateError(
                "the State has other shapes, dtypes or devices than the one this step was compiled for; compile anew"
            )
        return leaves
