"""Running an iterator on one background thread, so that decoding overlaps what is done with its items."""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

__all__ = ["read_ahead"]

T = TypeVar("T")


class _End:
    """Marks the end of the items, with the exception that ended them if there was one."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


def read_ahead(items: Iterable[T], depth: int = 1) -> Iterator[T]:
    """Yield ``items``, produced up to ``depth`` (and one in the making) ahead of their use.

    An exception of the producer is raised to the consumer, after the items before it.  When the consumer
    stops early (an error, Ctrl-C, ``close()``), the producer ends after the item that it is making, and its
    generator is closed on its own thread.
    """
    ready: queue.Queue[T | _End] = queue.Queue(maxsize=depth)
    stopped = threading.Event()

    def produce() -> None:
        error: BaseException | None = None
        iterator = iter(items)
        try:
            for item in iterator:
                if stopped.is_set():
                    break
                ready.put(item)
                if stopped.is_set():
                    break
        except BaseException as caught:  # handed over and raised again by the consumer
            error = caught
        try:
            close = getattr(iterator, "close", None)
            if close is not None:
                close()
        except BaseException as caught:
            error = error or caught
        ready.put(_End(error))

    thread = threading.Thread(target=produce, name="pope-read-ahead", daemon=True)
    thread.start()
    ended = False
    try:
        while True:
            item = ready.get()
            if isinstance(item, _End):
                ended = True
                if item.error is not None:
                    raise item.error
                return
            yield item
    finally:
        stopped.set()
        # When the interpreter shuts down, the thread is gone and would be waited for in vain.
        while not ended and not sys.is_finalizing():
            # Room in the queue lets the producer see that it is no longer wanted.
            ended = isinstance(ready.get(), _End)
        if not sys.is_finalizing():
            thread.join()
