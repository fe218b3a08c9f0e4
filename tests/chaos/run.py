"""One run: start the nodes, let writers write while the plan is carried out, let all settle, and judge."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any, assert_never

import trio

from prime_dht.background import background_nursery
from prime_dht.entries.entry import Slot, Version
from prime_dht.ids import OpId, PeerId, TimestampUs, kad_key, peer_from_text, peer_text, wire_key
from prime_dht.testing.simulation.plan import ANCHORS, Crash, Cut, Heal, Restart

from .network import Network, open_network
from .node import CONFIG, Settings
from .plan import Fault, Plan
from .process import Down, Failed, Process
from .verdict import Astray, Behind, Lost, Stored, astray, behind, closest, lost

ROUNDS = 5
WRITERS = 8
PAUSE_S = 0.1
"""The longest that a writer pauses between two puts."""

READERS = 2
"""Nodes, drawn at random, that read what is in a slot."""

AT_ONCE = 8
"""Orders under way while all is checked: the machine is to answer in time, not to be tried."""

STARTS_AT_ONCE = os.cpu_count() or 1
MET_WITHIN_S = 240.0
HANDED_ON_WITHIN_S = 120.0
LOOK_EVERY_S = 1.0
R = CONFIG.replication_factor


class Run:
    """See the module.

    Args:
        folder: for data directories and logs.
        tell: called with a line for each thing that happens.

    Attributes:
        complaints: what was not true, a sentence each.
    """

    def __init__(self, plan: Plan, folder: Path, tell: Callable[[str], None]) -> None:
        self.complaints: list[str] = []
        self._plan = plan
        self._folder = folder
        self._tell = tell
        self._nodes = [Process(number, folder) for number in range(plan.nodes)]
        self._named = {node.peer: str(node) for node in self._nodes}
        self._rng = Random(f"{plan.seed}/readers")
        self._counts: Counter[str] = Counter()
        self._acknowledged: dict[Slot, Version] = {}
        self._writing = True
        self._rounds_taken: dict[str, int] = {}
        self._packets: dict[str, int] = {}

    async def all(self, *, loopback: bool) -> None:
        """Do it.

        Args:
            loopback: not even to try namespaces.
        """
        try:
            async with (
                open_network(self._folder, self._plan.seed, self._nodes, loopback=loopback) as network,
                background_nursery() as nursery,
            ):
                self._tell(network.says)
                await self._course(_Swarm(network, self._nodes, nursery))
                self._packets = await network.figures()
        except* (Down, Failed) as errors:
            self.complaints += [f"the run broke off: {error}" for error in _leaves(errors)]
        for node in self._nodes:
            self.complaints += node.complaints

    async def _course(self, swarm: _Swarm) -> None:
        await swarm.start_all()
        self._tell(f"{len(self._nodes)} nodes run")
        await self._until_neighbours_met()
        await self._faults(swarm)
        await self._until_neighbours_met()
        await self._rounds()
        await self._until_nothing_is_astray()
        await self._read()

    def figures(self) -> dict[str, int]:
        """What a person may want to know in the end, in order."""
        names = ("puts", "failed puts", "acknowledged puts", "puts acknowledged by all replicas", "gets")
        return {
            **{name: self._counts[name] for name in names},
            "slots read": len(self._acknowledged),
            "kills": sum(node.kills for node in self._nodes),
            "cuts": sum(isinstance(fault, Cut) for _, fault in self._plan.steps),
            **self._rounds_taken,
            **{f"packets {fate}": count for fate, count in self._packets.items()},
        }

    # Faults

    async def _faults(self, swarm: _Swarm) -> None:
        began_s = trio.current_time()
        async with trio.open_nursery() as nursery:
            for writer in range(WRITERS):
                nursery.start_soon(self._write, writer)
            for at_s, fault in self._plan.steps:
                await trio.sleep_until(began_s + at_s)
                nursery.start_soon(self._do, fault, swarm)
            await trio.sleep_until(began_s + self._plan.ends_s)
            self._writing = False
        self._tell("no more is written")

    async def _do(self, fault: Fault, swarm: _Swarm) -> None:
        match fault:
            case Crash(number):
                self._tell(f"{self._nodes[number]} is killed")
                await self._nodes[number].kill()
            case Restart(number):
                self._tell(f"{self._nodes[number]} starts again")
                await swarm.start(self._nodes[number])
            case Cut(half):
                names = " ".join(str(self._nodes[number]) for number in sorted(half))
                self._tell(f"the network is cut: {names} | the others")
                await swarm.network.cut(half)
            case Heal():
                self._tell("the network is one again")
                await swarm.network.cut(())
            case _:
                assert_never(fault)

    async def _write(self, writer: int) -> None:
        for number, (at, key, pause) in enumerate(self._plan.writes(writer)):
            if not self._writing:
                return
            await trio.sleep(PAUSE_S * pause)
            node = self._nodes[at]
            if not node.runs:
                continue
            self._counts["puts"] += 1
            try:
                receipt = await node.tell("put", key=_key(key), value=f"{writer}/{number}")
            except Down:
                continue
            except Failed:
                self._counts["failed puts"] += 1
                continue
            self._counts["acknowledged puts"] += receipt["acknowledged"]
            if receipt["stored"] == receipt["wanted"]:
                self._counts["puts acknowledged by all replicas"] += 1
                slot, version = Slot(wire_key(_key(key)), node.peer, b""), _version(receipt)
                self._acknowledged[slot] = max(version, self._acknowledged.get(slot, version))

    # The end

    async def _until_neighbours_met(self) -> None:
        """Wait until of any two neighbours one has the other in its table, so that a round between them can begin.

        The other may find room for it later: who was probed in vain is left alone for a minute.
        """
        unmet: list[str] = []
        with trio.move_on_after(MET_WITHIN_S):
            while True:
                unmet = await self._unmet()
                if not unmet:
                    break
                await trio.sleep(LOOK_EVERY_S)
        self.complaints += unmet
        self._tell("all neighbours have met")

    async def _unmet(self) -> list[str]:
        """Which nodes do not know each other, though one is among the ``k`` nearest to the other."""
        known = {
            node.peer: {peer_from_text(text) for text in (await node.tell("known"))["peers"]} for node in self._nodes
        }
        unmet: list[str] = []
        for peer in known:
            for other in closest(kad_key(peer), known, CONFIG.k_bucket_size + 1)[1:]:
                if other not in known[peer] and peer not in known[other]:
                    unmet.append(f"{self._named[peer]} and {self._named[other]} do not know each other")
        return unmet

    async def _rounds(self) -> None:
        """Have each node begin one round, again and again, until all replica sets agree."""
        before = await self._rounds_begun()
        for rounds in range(ROUNDS + 1):
            found = list(behind(await self._stores(), r=R))
            self._tell(f"after {rounds} rounds: in {len(found)} places a replica is behind")
            if not found or rounds == ROUNDS:
                break
            places = trio.CapacityLimiter(AT_ONCE)
            async with trio.open_nursery() as nursery:
                for node in self._nodes:
                    nursery.start_soon(self._begin_round, node, places)
        self.complaints += map(self._of_behind, found)
        self._rounds_taken = {
            "rounds until replica sets agreed": rounds,
            "rounds begun meanwhile, by all nodes": await self._rounds_begun() - before,
        }

    async def _until_nothing_is_astray(self) -> None:
        """Wait until nobody has anything newer than the replicas; then see whether anything is lost."""
        stores = await self._stores()
        found = list(astray(stores, r=R))
        self._tell(f"{len(found)} entries are astray")
        with trio.move_on_after(HANDED_ON_WITHIN_S):
            while found:
                await trio.sleep(LOOK_EVERY_S)
                stores = await self._stores()
                found = list(astray(stores, r=R))
        self.complaints += map(self._of_astray, found)
        self.complaints += map(self._of_lost, lost(self._acknowledged, stores))

    async def _stores(self) -> dict[PeerId, Stored]:
        return {node.peer: await self._stored(node) for node in self._nodes}

    async def _begin_round(self, node: Process, places: trio.CapacityLimiter) -> None:
        async with places:
            await node.tell("round")

    async def _rounds_begun(self) -> int:
        return sum([(await node.tell("rounds"))["rounds"] for node in self._nodes])

    async def _read(self) -> None:
        """Read each slot to which something was acknowledged in full."""
        places = trio.CapacityLimiter(AT_ONCE)
        self._tell(f"{len(self._acknowledged)} slots are read by {READERS} nodes each")

        async def read(reader: Process, slot: Slot, least: Version) -> None:
            async with places:
                await self._read_one(reader, slot, least)

        async with trio.open_nursery() as nursery:
            for slot, version in self._acknowledged.items():
                for reader in self._rng.sample(self._nodes, READERS):
                    nursery.start_soon(read, reader, slot, version)

    async def _read_one(self, reader: Process, slot: Slot, least: Version) -> None:
        self._counts["gets"] += 1
        where = f"key {slot.key.decode()} of {self._named[slot.publisher]}"
        try:
            found = await reader.tell("get", key=slot.key.decode(), publisher=peer_text(slot.publisher))
        except (Down, Failed) as error:
            self.complaints.append(f"{reader} cannot read {where}: {error}")
            return
        if found["op"] is None:
            self.complaints.append(f"{reader} finds nothing under {where}; {_short(least)} was acknowledged in full")
        elif _version(found) < least:
            older, newer = _short(_version(found)), _short(least)
            self.complaints.append(f"{reader} finds {older} under {where}; {newer} was acknowledged in full")

    # Within

    async def _stored(self, node: Process) -> Stored:
        entries = (await node.tell("stored"))["entries"]
        return {
            Slot(wire_key(key), peer_from_text(publisher), bytes.fromhex(subkey)): _version_of(created_at_us, op)
            for key, publisher, subkey, created_at_us, op in entries
        }

    def _of_behind(self, one: Behind) -> str:
        has = "nothing" if one.has is None else _short(one.has)
        holders = " ".join(self._named[holder] for holder in one.held_by)
        return (
            f"{self._where(one.slot)}: {self._named[one.replica]}, replica {one.place} of {R}, has {has} "
            f"and not {_short(one.newest)}, which is on {holders}"
        )

    def _of_astray(self, one: Astray) -> str:
        has = "nothing" if one.replicas_have is None else _short(one.replicas_have)
        holders = " ".join(self._named[holder] for holder in one.held_by)
        return f"{self._where(one.slot)}: {_short(one.newest)} is on {holders}; the replicas have {has}"

    def _of_lost(self, gone: Lost) -> str:
        has = "nothing" if gone.newest is None else _short(gone.newest)
        return f"{self._where(gone.slot)}: {_short(gone.acknowledged)} was acknowledged in full; there is {has}"

    def _where(self, slot: Slot) -> str:
        return f"key {slot.key.decode()} of {self._named[slot.publisher]}"


class _Swarm:
    """Starts nodes on a network."""

    def __init__(self, network: Network, nodes: Sequence[Process], nursery: trio.Nursery) -> None:
        self.network = network
        self._nodes = nodes
        self._nursery = nursery
        self._places = trio.CapacityLimiter(STARTS_AT_ONCE)

    async def start_all(self) -> None:
        """Start all of them, the anchors first, few at a time: each takes the better part of a second of CPU time."""
        for group in (self._nodes[:ANCHORS], self._nodes[ANCHORS:]):
            async with trio.open_nursery() as nursery:
                for node in group:
                    nursery.start_soon(self.start, node)

    async def start(self, node: Process) -> None:
        """Start one of them."""
        network = self.network
        anchors = (one for one in self._nodes[:ANCHORS] if one is not node)
        settings = Settings(
            data_dir=str(node.data_dir),
            listen=network.multiaddr(node.number),
            peers=tuple(f"{network.multiaddr(one.number)}/p2p/{peer_text(one.peer)}" for one in anchors),
            address=network.address(node.number),
            switch=network.switch,
        )
        await node.start(self._nursery, settings, prefix=network.prefix, places=self._places)
        await network.joined(node.number)


def _leaves(group: BaseExceptionGroup[Exception]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


def _key(number: int) -> str:
    return f"chaos {number}"


def _version(told: Mapping[str, Any]) -> Version:
    return _version_of(told["created_at_us"], told["op"])


def _version_of(created_at_us: int, op: str) -> Version:
    return Version(TimestampUs(created_at_us), OpId(bytes.fromhex(op)))


def _short(version: Version) -> str:
    return version.op_id.hex()[:8]
