"""A nursery for tasks that serve a block."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


@asynccontextmanager
async def background_nursery() -> AsyncIterator[trio.Nursery]:
    """A nursery that ends with the block: whatever still runs in it then is cancelled.

    An exception of the block, Ctrl-C among them, leaves it as itself, not in a group, so that callers can catch what
    they would expect; a task that fails cancels the block and raises a group, as always.
    """
    raised: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            try:
                yield nursery
            except trio.Cancelled:  # belongs to whichever scope was cancelled, this nursery's own among them
                raise
            except BaseException as error:
                raised = error
                raise
            finally:
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        if raised is None or group.split(lambda error: error is raised)[1] is not None:
            raise
    if raised is not None:
        raise raised
