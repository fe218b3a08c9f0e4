"""A node as a process that does what its owner says: ``python -m tests.chaos.node <settings>``.

It is :func:`prime_dht.open_node` with a data directory, as ``prime-dht run`` is. Orders come on standard input, a JSON
object a line, ``{"id": 7, "do": "put", ...}``; any number of them are carried out at a time. Each is answered on
standard output, ``{"id": 7, ...}``, or with ``"error"`` and why it failed. The first line says that the node is ready.
The node ends when its input does. Its log goes to standard error.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypedDict

import trio
from libp2p.abc import IRawConnection, ISecureConn
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.transport.exceptions import SecurityUpgradeFailure

from prime_dht import NodeConfig, PrimeDHT, open_node
from prime_dht.background import background_nursery
from prime_dht.cli.arrivals import log_arrivals
from prime_dht.cli.logs import log_to_stderr
from prime_dht.config import DhtConfig, Mode
from prime_dht.errors import PrimeDHTError
from prime_dht.events import SyncFinished
from prime_dht.ids import Key, PeerId, peer_from_text, peer_text
from prime_dht.net.hardening.parts import parts_of
from prime_dht.node import maintenance, strays
from prime_dht.storage.base import EntryQuery

from .tun import open_tun

REFRESH_S = 20.0
"""Also how long it takes at most until the halves of a network that is whole again look for each other."""

HAND_ON_EVERY_S = 5.0
"""In a run of minutes a node does this chore as often as in an hour otherwise."""

CONFIG = DhtConfig(mode=Mode.SERVER, refresh_interval=REFRESH_S, rpc_timeout_s=5.0, cache_ttl_s=0.0)
READ_BYTES = 1 << 16

Answer = dict[str, object]


class Order(TypedDict, total=False):
    """What the owner says; ``id`` and ``do`` always."""

    id: int
    do: str
    key: str
    value: str
    publisher: str
    peers: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a process is started with.

    Attributes:
        listen: its multiaddr.
        peers: those to join through.
        address: its own in its network namespace, and
        switch: the socket at which the switch takes over its device; empty on loopback.
    """

    data_dir: str
    listen: str
    peers: tuple[str, ...]
    address: str
    switch: str

    def to_json(self) -> str:
        """As :meth:`of_json` reads it."""
        return json.dumps(asdict(self))

    @classmethod
    def of_json(cls, text: str) -> Settings:
        """Read what :meth:`to_json` wrote."""
        fields: dict[str, Any] = json.loads(text)
        return cls(**{**fields, "peers": tuple(fields["peers"])})


class Gate:
    """On loopback, what stands for a cut: connections with those on the other side are closed, and none come about."""

    def __init__(self, swarm: Swarm) -> None:
        self._swarm = swarm
        self._closed_to: frozenset[PeerId] = frozenset()
        stock = swarm.upgrader.upgrade_security

        async def upgrade_security(raw: IRawConnection, is_initiator: bool, peer_id: ID | None = None) -> ISecureConn:
            secured = await stock(raw, is_initiator, peer_id)
            if secured.get_remote_peer().to_bytes() in self._closed_to:
                await secured.close()
                raise SecurityUpgradeFailure("there is a cut between")
            return secured

        swarm.upgrader.upgrade_security = upgrade_security  # type: ignore[method-assign, assignment]

    async def close_to(self, peers: frozenset[PeerId]) -> None:
        """From here on let none of these through, and all others."""
        self._closed_to = peers
        for peer in peers:
            await self._swarm.close_peer(ID(peer))


class Owned:
    """A running node, and what it can be told to do."""

    def __init__(self, dht: PrimeDHT) -> None:
        self._dht = dht
        self._gate = Gate(parts_of(dht._host)[1])
        self._rounds_begun = 0

    async def count_rounds(self) -> None:
        """Count the rounds that this node begins."""
        with self._dht.subscribe() as events:
            async for event in events:
                self._rounds_begun += isinstance(event, SyncFinished) and event.begun_here

    async def carry_out(self, order: Order) -> Answer:
        """Do it.

        Raises:
            PrimeDHTError: it failed.
        """
        match order["do"]:
            case "put":
                receipt = await self._dht.put(order["key"], order["value"].encode())
                return {
                    "op": receipt.op_id.hex(),
                    "created_at_us": receipt.created_at_us,
                    "stored": len(receipt.stored_by),
                    "wanted": receipt.wanted,
                    "acknowledged": receipt.acknowledged,
                }
            case "get":
                found = await self._dht.get(order["key"], publisher=order["publisher"], latest=True)
                if found is None:
                    return {"op": None}
                return {"op": found.op_id.hex(), "created_at_us": found.created_at_us}
            case "round":
                syncing = self._dht._syncing
                async with trio.open_nursery() as nursery:
                    await syncing._begin_one(syncing._scheduled(), nursery)
                return {}
            case "rounds":
                return {"rounds": self._rounds_begun}
            case "known":
                return {"peers": [peer_text(status.peer) for status in self._dht.peers() if status.replicates]}
            case "stored":
                return {"entries": [entry async for entry in self._stored()]}
            case "close-to":
                await self._gate.close_to(frozenset(map(peer_from_text, order["peers"])))
                return {}
            case unknown:
                raise AssertionError(f"nobody can {unknown}")

    async def _stored(self) -> AsyncIterator[tuple[str, str, str, int, str]]:
        """Of each entry: (key, publisher, subkey in hexadecimal, created_at_us, op id in hexadecimal)."""
        storage = self._dht._replica._storage
        last: Key | None = None
        while keys := await storage.keys(after=last):
            for last in keys:
                cursor = b""
                while True:
                    page = await storage.get_entries(
                        EntryQuery(key=last, include_expired=True, cursor=cursor), now_us=0
                    )
                    for entry in page.entries:
                        slot, version = entry.slot, entry.version
                        publisher = peer_text(slot.publisher)
                        yield last.decode(), publisher, slot.subkey.hex(), version.created_at_us, version.op_id.hex()
                    if not (cursor := page.next_cursor):
                        break


async def orders() -> AsyncGenerator[Order, None]:
    """What comes on standard input, until it ends."""
    unread = b""
    async with trio.lowlevel.FdStream(os.dup(0)) as stream:
        async for piece in stream:
            *lines, unread = (unread + piece).split(b"\n")
            for line in lines:
                yield json.loads(line)


async def serve(settings: Settings) -> None:
    """Run the node until standard input ends."""
    config = NodeConfig(listen=(settings.listen,), peers=settings.peers, data_dir=Path(settings.data_dir), dht=CONFIG)
    speaking = trio.Lock()
    async with (
        trio.lowlevel.FdStream(os.dup(1)) as out,
        open_node(config) as dht,
        background_nursery() as nursery,
        aclosing(orders()) as coming,
    ):

        async def say(answer: Answer) -> None:
            async with speaking:
                await out.send_all(json.dumps(answer).encode() + b"\n")

        async def carry_out(order: Order) -> None:
            try:
                answer = await owned.carry_out(order)
            except PrimeDHTError as error:
                answer = {"error": str(error)}
            await say({"id": order["id"], **answer})

        owned = Owned(dht)
        nursery.start_soon(owned.count_rounds)
        with dht.subscribe() as events:
            nursery.start_soon(log_arrivals, events, lambda: len(dht.peers()))
            await say({"addresses": dht.addresses()})
            async for order in coming:
                nursery.start_soon(carry_out, order)


def main(text: str) -> None:
    """Run as the settings say."""
    settings = Settings.of_json(text)
    log_to_stderr(logging.DEBUG, verbose=1)
    maintenance.HAND_ON_EVERY_S = strays.FIRST_WAIT_S = strays.MAX_WAIT_S = HAND_ON_EVERY_S
    if settings.switch:
        device = open_tun(settings.address)
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(settings.switch)
            socket.send_fds(connection, [settings.address.encode()], [device])
        os.close(device)
    trio.run(serve, settings)


if __name__ == "__main__":
    main(sys.argv[1])
