"""Several processes that share one run, as ``accelerate launch`` and ``torchrun`` start them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from pope_fast._extras import require
from pope_fast.errors import PopeError

__all__ = ["Workers", "default_device", "find_workers"]


class Workers(NamedTuple):
    """Number of this process, and how many share the run."""

    rank: int
    world: int

    def first_then_all(self, first: Callable[[], Any], others: Callable[[], Any]) -> None:
        """Run one function in the first process, then another in the others; all fail if the first does."""
        if self.world == 1:
            first()
            return
        with _messages() as broadcast:
            failure: str | None = None
            if self.rank == 0:
                try:
                    first()
                except BaseException as error:
                    failure = str(error) or type(error).__name__
                    raise
                finally:
                    broadcast(failure)
                return
            failure = broadcast(None)
        if failure is not None:
            raise PopeError(failure)
        others()


@contextmanager
def _messages() -> Iterator[Callable[[str | None], str | None]]:
    """Give a function that sends a string from the first process to all, and returns it in each."""
    require("torch", "scoring with several processes")
    import torch.distributed as dist

    own = not dist.is_initialized()
    if own:
        dist.init_process_group("gloo")
    # A group of the caller may be of GPUs, and have their short timeouts.
    group: Any = None if own else dist.new_group(backend="gloo")

    def broadcast(message: str | None) -> str | None:
        box: list[Any] = [message]
        dist.broadcast_object_list(box, src=0, group=group)
        result: str | None = box[0]
        return result

    try:
        yield broadcast
    finally:
        if own:
            dist.destroy_process_group()
        else:
            dist.destroy_process_group(group)


def find_workers() -> Workers:
    """Return this process's place among those that a launcher started; (0, 1) without one.

    Raises
    ------
    PopeError
        If the environment says both that there are several processes and nothing about which this is.
    """
    world = os.environ.get("WORLD_SIZE", "1")
    rank = os.environ.get("RANK", "0" if world == "1" else "")
    try:
        found = Workers(int(rank), int(world))
    except ValueError:
        raise PopeError(f"RANK={rank!r} and WORLD_SIZE={world!r} in the environment are no numbers") from None
    if not 0 <= found.rank < found.world:
        raise PopeError(f"RANK={rank} is not below WORLD_SIZE={world} in the environment")
    return found


def default_device() -> str:
    """Return this process's GPU, or the processor."""
    torch = require("torch", "scoring with a model")
    if not torch.cuda.is_available():
        return "cpu"
    local = int(os.environ.get("LOCAL_RANK", "0"))
    return f"cuda:{local % torch.cuda.device_count()}"
