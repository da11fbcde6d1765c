"""Ahead: batches that a thread keeps ready while the step before them runs."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from queue import Empty, Full, Queue
from typing import TypeVar

T = TypeVar("T")
READY = 3
"""Batches that are kept ready."""
_LOOK = 0.05
"""Seconds after which a thread that waits looks whether it is still wanted."""


def ahead(items: Iterable[T], ready: int = READY) -> Iterator[T]:
    """The same items in the same order, read on another thread, a few before they are asked for.

    What goes wrong there is raised here, in its place. The thread ends with the iterator.

    >>> list(ahead(range(5)))
    [0, 1, 2, 3, 4]
    """
    queue: Queue[tuple[bool, T | BaseException]] = Queue(ready)
    ended, over = threading.Event(), threading.Event()

    def put(entry: tuple[bool, T | BaseException]) -> bool:
        while not ended.is_set():
            try:
                queue.put(entry, timeout=_LOOK)
            except Full:
                continue
            return True
        return False

    def fill() -> None:
        try:
            for item in items:
                if not put((True, item)):
                    return
        except BaseException as e:  # whatever it is, the consumer is to see it
            put((False, e))
        finally:
            over.set()

    threading.Thread(target=fill, name="batches ahead", daemon=True).start()
    try:
        while True:
            try:
                good, item = queue.get(timeout=_LOOK)
            except Empty:
                if over.is_set() and queue.empty():
                    return
                continue
            if not good:
                assert isinstance(item, BaseException)
                raise item
            yield item  # type: ignore[misc]  # an item, as it says
    finally:
        ended.set()
