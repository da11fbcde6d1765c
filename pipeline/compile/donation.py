"""Donation: a State's tensors stay where programs read and write them, and the State that was handed over says so."""

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
    """The leaves of the State that a step's programs work on."""

    def __init__(self, program: Program, donate: bool) -> None:
        self.program, self.donate = program, donate
        self.spec: Any = None
        self.leaves: tuple[Tensor, ...] = ()
        self.done: int | None = None
        """`state.step` as a number, where it is known without asking the device."""
        self.seed: Any = None
        self._current: State | None = None
        self.tree: Any = None
        """That of the State taken."""
        self._signature: Any = None

    def take(self, state: State) -> bool:
        """Let the leaves of a State be what programs read and write; whether they lie elsewhere than those before."""
        tree = state.tree  # raises where the State was donated, before anything is written
        if state is self._current:
            return False
        leaves = self.of(state)
        if not self.donate:
            leaves = [t.clone() for t in leaves]
        elif len({t.data_ptr() for t in leaves if t.numel()}) < sum(t.numel() > 0 for t in leaves):
            shared = "two tensors of the State share their storage, so it can't be donated"
            raise StateError(f"{shared}; make the State with state.clone() first")
        places = {t.data_ptr() for t in self.leaves}
        new = [(there, t) for there, t in zip(self.leaves, leaves, strict=False) if t is not there]
        moved = len(new) == len(self.leaves) or any(t.data_ptr() in places for _, t in new)
        self._current, self.seed = state, None
        if moved:
            self.leaves = tuple(leaves)
            self.tree = pytree.tree_unflatten(leaves, self.spec)
            self.done = None
            return True
        # A State made from the last one, as with another lr: what is new in it moves to where the programs look.
        for there, t in new:
            there.copy_(t)
        if tree["step"] is not self.tree["step"]:
            self.done = None
        return False

    @contextmanager
    def kept(self, copied: bool) -> Iterator[None]:
        """Within it, steps are done; where one fails, the State is what it was before them. One step that fails leaves
        it so; of several, that takes a copy."""
        before = [t.clone() for t in self.leaves] if copied and self.donate else []
        try:
            yield
        except StageError:
            for there, t in zip(self.leaves, before, strict=False):
                there.copy_(t)
            self.failed()
            raise

    def failed(self) -> None:
        """A step changed nothing: without donation, the State that was taken is still its owner's."""
        if not self.donate:
            self._current, self.leaves = None, ()

    def give(self, steps: int) -> State:
        """The State after so many steps; the one taken is spent."""
        assert self._current is not None
        if self.done is not None:
            self.done += steps
        state = State(self.tree)
        if self.donate:
            self._current.lease.donated = True
            self._current = state
        else:
            self._current, self.leaves = None, ()
        return state

    def position(self, state: State, batches: int) -> tuple[int, int]:
        """Epoch and batch at which a State is in its own data."""
        if state is not self._current or self.done is None:
            self.done = int(state.step)
        return divmod(self.done, batches)

    def key(self) -> Any:
        """The seed of the order, as a number."""
        if self.seed is None:
            self.seed = self.program.seed(self.tree)
        return self.seed

    def of(self, state: State) -> list[Tensor]:
        """The tensors of a State, which must be like the first one seen."""
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
