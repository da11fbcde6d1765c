"""Pace: the number of steps in a call, so that a signal is handled soon."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

import torch

AHEAD = 4
"""Maximum number of calls that the host is ahead of an accelerator."""


class Pace:
    """Runs calls of many steps, and estimates the number of `steps` in about `seconds`.

    On an accelerator, events tell when each call ended, without waiting for it; the host sleeps only while it is too
    far ahead.
    """

    def __init__(self, device: torch.device, seconds: float) -> None:
        self.seconds, self.steps, self._device = seconds, 1, device
        self._running: deque[tuple[int, torch.Event, torch.Event]] = deque()

    def run(self, call: Callable[[], Any], steps: int) -> Any:
        """The result of a call that does `steps` steps."""
        if self._device.type == "cpu":
            start = time.perf_counter()
            result = call()
            self._took(steps, time.perf_counter() - start)
            return result
        begin, end = (torch.Event(self._device, enable_timing=True) for _ in range(2))
        begin.record()
        result = call()
        end.record()
        self._running.append((steps, begin, end))
        while self._running and (self._running[0][2].query() or len(self._running) > AHEAD):
            steps, begin, end = self._running[0]
            if end.query():
                self._took(steps, begin.elapsed_time(end) / 1000)
                self._running.popleft()
            else:
                time.sleep(self.seconds / 100)
        return result

    def _took(self, steps: int, seconds: float) -> None:
        self.steps = max(int(min(steps * self.seconds / max(seconds, 1e-9), 2**20)), 1)
