"""Pace: how many steps one call takes, so that it is short enough for a signal to be heard soon after it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

import torch

AHEAD = 4
"""Calls that an accelerator may be behind the host."""


class Pace:
    """Runs calls of many steps, and says how many steps take about `seconds`.

    On a CPU a call is over when it returns. An accelerator is asked when each call was over, and not waited for: the
    host only sleeps while it is too far ahead, when the device has enough to do.
    """

    def __init__(self, device: torch.device, seconds: float) -> None:
        self.seconds, self.steps, self._device = seconds, 1, device
        self._running: deque[tuple[int, torch.Event, torch.Event]] = deque()

    def run(self, call: Callable[[], Any], steps: int) -> Any:
        """The result of a call of so many steps."""
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
