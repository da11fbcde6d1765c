"""Prefetch: a thread reads the next batches while a step runs."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")
READY = 3
"""Batches to keep ready."""


def prefetch(items: Iterable[T]) -> Iterator[T]:
    """The same items in order, a few of them read ahead on a thread, which ends with the iterator.

    An error of `items` is raised in its place.

    >>> list(prefetch(range(5)))
    [0, 1, 2, 3, 4]
    """
    iterator, end = iter(items), object()
    pool = ThreadPoolExecutor(1, "prefetch")
    try:
        waiting = deque[Any](pool.submit(next, iterator, end) for _ in range(READY))
        while (item := waiting.popleft().result()) is not end:
            waiting.append(pool.submit(next, iterator, end))
            yield item
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
