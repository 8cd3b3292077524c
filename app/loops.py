"""Loops that several parts share: repeated work, growing pauses, and a watch on the parent process.

Only the standard library is imported: the decoding process of an import starts in 0.1 s, and the driver takes 0.3 s.
"""

import asyncio
import os
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import NoReturn, TypeVar

Resource = TypeVar("Resource")


async def repeat(
    work: Callable[[Resource], Awaitable[object]],
    opened: Callable[[], AbstractAsyncContextManager[Resource]],
    *,
    period_seconds: float,
    survives: type[Exception] | tuple[type[Exception], ...],
    failed: Callable[[Exception], None],
) -> NoReturn:
    """Opens what the work needs and does the work, repeatedly with a pause between, until it is cancelled.

    After an error that it survives, `failed` is called with it; a period later, what the work needs is opened anew.
    """
    while True:
        try:
            async with opened() as resource:
                while True:
                    await work(resource)
                    await asyncio.sleep(period_seconds)
        except survives as error:
            raise_if_cancelled(error)
            failed(error)
            await asyncio.sleep(period_seconds)


def raise_if_cancelled(error: Exception) -> None:
    """Raises CancelledError if the error has taken its place: a rollback that follows it may find a lost connection."""
    task = asyncio.current_task()
    if task and task.cancelling():
        raise asyncio.CancelledError from error


def backoff_seconds(pauses: int, *, first: float, longest: float) -> float:
    """Returns the length of the next pause: `first` after none, then twice as long each time, at most `longest`."""
    return min(first * 2.0 ** min(pauses, 30), longest)


def when_parent_ends(end: Callable[[], None]) -> None:
    """Calls `end`, in a thread, at most half a second after the parent of this process is gone."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        end()

    threading.Thread(target=watch, daemon=True).start()
