"""What each connection and stream costs in py-libp2p's swarm beside its bytes, made small.

Pure savings, for hosts that have or make connections by the hundred; what happens stays the same. The shares are of the
CPU time of 48 nodes of one process that join at once:

- *Notifications* (15 %). ``Swarm._notify`` opens a nursery and starts a task for each notifee, four times for a stream
  that is opened and closed. Here notifees are called one after the other; the fault of one still stops neither the
  others nor the connection.
- *Connection tasks* (4 %, and rising with their number). ``add_conn`` starts two tasks for the life of each connection
  through the swarm's service manager, which first looks through all the tasks it has for the one that called, and keeps
  six objects about each. Here they are started in the swarm's own nursery, which ends with the manager. A fault in one
  of them ends its connection or its stream, and not the host as it does in the manager.
- *A task that waits for streams*, for each connection: with its nursery and its queue, a quarter of what an idle
  connection takes in memory. :class:`~prime_dht.net.yamux.connection.FastYamux` tells of its streams instead. Nor has
  it a nursery of its own, for what it seldom starts, nor events, which are alike once they are set.
- *Cycles.* A connection and its muxer refer to each other, so one that is over stays in memory until garbage is
  collected, which in a process of many nodes may be minutes later. Here they let go of each other at the end.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial

from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.network.swarm import Swarm

from prime_dht.net.hardening.containment import contained
from prime_dht.net.yamux import FastYamux

logger = logging.getLogger(__name__)


class _LightSwarm:
    def __init__(self, swarm: Swarm) -> None:
        self._swarm = swarm
        self._run = swarm.run

    async def run(self) -> None:
        """As the swarm's own, whose manager exists only from here on."""
        self._swarm.manager.run_task = self._run_task  # type: ignore[method-assign,assignment]
        await self._run()

    async def notify(self, event: str, *args: object) -> None:
        for notifee in tuple(self._swarm.notifees):
            with contained(lambda faults: logger.error("a notifee failed at %s", event, exc_info=faults)):
                await getattr(notifee, event)(self._swarm, *args)

    def _run_task(self, task: Callable[..., Awaitable[None]], *args: object) -> None:
        match getattr(task, "__self__", None):
            case FastYamux() as muxed:
                self._start(muxed.run, self._start)
            case SwarmConn(muxed_conn=FastYamux() as muxed) as connection:
                for hook in ("on_close", "remove_stream"):  # which refer back to it, and which only other muxers call
                    delattr(muxed, hook)
                connection.event_started.set()
                connection.event_started = muxed.event_started  # one that many share
                muxed.tell(
                    partial(self._start, connection._handle_muxed_stream), partial(self._start, connection.close)
                )
            case _:
                self._start(task, *args)

    def _start(self, task: Callable[..., Awaitable[None]], *args: object) -> None:
        nursery = self._swarm.background_nursery
        if nursery is not None:  # else the swarm has stopped, and nothing is started any more
            nursery.start_soon(_contain, task, *args)


async def _contain(task: Callable[..., Awaitable[None]], *args: object) -> None:
    with contained(_note_end):
        await task(*args)


def _note_end(faults: ExceptionGroup[Exception]) -> None:
    logger.debug("a connection ended", exc_info=faults)


def lighten(swarm: Swarm) -> None:
    """Make a swarm that is not running yet light."""
    light = _LightSwarm(swarm)
    swarm._notify = light.notify  # type: ignore[method-assign,assignment]
    swarm.run = light.run  # type: ignore[method-assign]
