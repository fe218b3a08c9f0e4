"""Carrying out a plan: nodes start, die and lie, and their owners put, get and delete, as it says.

The nodes are :class:`prime_dht.node.core.Node` with all their decisions and handlers. A step whose member is down, or
whose writer has nothing to do with it, is passed over. Every operation has the node's own deadline, so operations need
none here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from random import Random
from typing import assert_never

import trio

from prime_dht.config import Mode
from prime_dht.errors import PrimeDHTError
from prime_dht.ids import US_PER_S, PeerId
from prime_dht.node.core import Node
from prime_dht.testing.simulation.disc import Disc
from prime_dht.testing.simulation.history import Log
from prime_dht.testing.simulation.ledger import Ledger
from prime_dht.testing.simulation.lies import lie_of
from prime_dht.testing.simulation.member import Member, key_of
from prime_dht.testing.simulation.plan import (
    ANCHORS,
    Crash,
    Cut,
    Delete,
    Disconnect,
    Fault,
    Get,
    Heal,
    Join,
    Leave,
    Lie,
    Lose,
    Operation,
    Plan,
    Put,
    Restart,
    SetClock,
    Slow,
    Step,
)
from prime_dht.testing.swarm import Swarm

START_S = 60.0
"""For the first members to meet."""


class Execution:
    """See the module.

    Attributes:
        members: everybody who was ever there, by number.
        swarm: their nodes.
        ledger: what writers were told.
        log: what happened.
    """

    def __init__(self, plan: Plan, swarm: Swarm, ledger: Ledger, log: Log, complain: Callable[[str], None]) -> None:
        self.plan = plan
        self.swarm = swarm
        self.ledger = ledger
        self.log = log
        self.complain = complain
        self.members: list[Member] = []
        self._by_peer: dict[PeerId, Member] = {}
        self._rng = Random(f"{plan.seed}/lies")  # noqa: S311 - a simulation, nothing secret
        swarm.world.witness = log.message

    async def start(self) -> None:
        """Start the members that are there from the beginning."""
        plan = self.plan
        for number in range(plan.servers + plan.clients):
            member = self._new_member(is_server=number < plan.servers, is_liar=number in plan.liars)
            member.machine.clock.set_by_us = int(plan.skews_s[number] * US_PER_S)
        for member in self.members:
            await self._start(member)
        liars = self.named(self.members[number].peer for number in sorted(plan.liars)) or "none"
        self.log.note(f"{plan.servers} servers, {plan.clients} clients, k {plan.config.k_bucket_size}; liars: {liars}")
        await trio.sleep(START_S)

    async def carry_out(self, steps: Sequence[tuple[float, Step]]) -> None:
        """Do what the plan says at its times, in seconds from now; then have the liars leave."""
        began_s = trio.current_time()
        async with trio.open_nursery() as operations:
            for at_s, step in steps:
                await trio.sleep_until(began_s + at_s)
                if isinstance(step, Put | Delete | Get):
                    operations.start_soon(self.operate, step)
                else:
                    await self._do(step)
        for member in self.members:
            if member.is_liar:
                await self._leave(member)
        self.log.note("the faults are over")

    def named(self, peers: Iterable[PeerId]) -> str:
        """Peers as a person would name them."""
        return " ".join(str(self._by_peer.get(peer, "nobody")) for peer in peers)

    def discs(self) -> list[Disc]:
        """Those that count."""
        return [member.disc for member in self.members if member.is_trusted_server]

    # Operations

    async def operate(self, operation: Operation) -> None:
        """Carry out one operation, and hold what comes of it against the ledger."""
        member = self.members[operation.member]
        node = member.node
        if node is None:
            return
        with member.operation():
            try:
                match operation:
                    case Put(_, key, ttl_s):
                        await self._put(member, node, key, ttl_s)
                    case Delete(_, key):
                        await self._put(member, node, key, None)
                    case Get(_, key, writer, latest):
                        await self._get(member, node, key, None if writer is None else self.members[writer], latest)
                    case _:
                        assert_never(operation)
            except PrimeDHTError as error:
                self.log.note(f"{member} {type(operation).__name__.lower()}s key {operation.key}: {error}")

    async def _put(self, member: Member, node: Node, number: int, ttl_s: float | None) -> None:
        """Put a new value, or with no ttl, delete."""
        key = key_of(number)
        slot = member.slot(key)
        lives = {other.peer: other.lives for other in self.members}
        turn = member.writes(slot)
        if ttl_s is None:
            what = f"deletes key {number}"
            receipt = await node.delete(key, subkey=slot.subkey)
        else:
            value = self.ledger.value_for(slot)
            what = f"puts {value.decode()} under key {number} for {ttl_s:.0f} s"
            receipt = await node.put(key, value, subkey=slot.subkey, ttl=ttl_s)
        fate = "acknowledged" if receipt.acknowledged else "not acknowledged"
        op = receipt.op_id.hex()[:8]
        self.log.note(f"{member} {what}: {op} is on {self.named(receipt.stored_by) or 'nobody'}, {fate}")
        stored_by = (self._by_peer[peer] for peer in receipt.stored_by)
        counting = [one for one in stored_by if one.is_trusted_server and one.lives == lives.get(one.peer)]
        self.ledger.acknowledged(slot, receipt, counting)
        if receipt.superseded and member.is_last_write(slot, turn):
            self.complain(f"{member} is its slot's only writer, and {op} was superseded")

    async def _get(self, member: Member, node: Node, number: int, writer: Member | None, latest: bool) -> None:
        key = key_of(number)
        if writer is None:
            page = await node.get_all(key)
            for one in page:
                self.ledger.found(member, one)
            self.log.note(f"{member} gets key {number} and finds {len(page)} values")
            return
        slot = writer.slot(key)
        found = await node.get(key, subkey=slot.subkey, publisher=slot.publisher, latest=latest)
        if found is not None:
            self.ledger.found(member, found)
        what = "nothing" if found is None else f"{found.value.decode()}, {found.op_id.hex()[:8]}"
        self.log.note(f"{member} gets key {number} of {writer} and finds {what}")

    # Faults

    async def _do(self, fault: Fault) -> None:
        world = self.swarm.world
        match fault:
            case Join(number):
                member = self._new_member(is_server=True, is_liar=False)
                assert member.number == number
                self.log.note(f"{member} joins")
                await self._start(member)
            case Leave(number):
                await self._leave(self.members[number])
            case Crash(number, is_store_lost, is_silent):
                await self._crash(self.members[number], is_store_lost=is_store_lost, is_silent=is_silent)
            case Restart(number):
                member = self.members[number]
                self.log.note(f"{member} restarts")
                world.unsilence(member.peer)
                member.disc.is_off = False
                await self._start(member)
            case Cut(numbers):
                cut_off = [member.peer for member in self.members if member.number in numbers]
                self.log.note(f"{self.named(cut_off)} cut off from the others")
                world.partition((), cut_off)
            case Heal():
                self.log.note("the network is one again")
                world.heal()
            case Lose(share):
                self.log.note(f"{share:.1%} of messages are lost")
                world.lose(share)
            case Disconnect(number):
                member = self.members[number]
                self.log.note(f"{member} loses its connections")
                if member.node is not None:
                    self.swarm.network_of(member.node).disconnect_all()
            case Slow(number, factor):
                member = self.members[number]
                self.log.note(f"{member} is {factor:g} times as slow")
                world.slow(member.peer, factor)
            case SetClock(number, by_s):
                member = self.members[number]
                self.log.note(f"{member} has its clock off by {by_s:+.0f} s")
                member.machine.clock.set_by_us = int(by_s * US_PER_S)
            case Lie(number, falsehood):
                member = self.members[number]
                self.log.note(f"{member} {'tells the truth' if falsehood is None else falsehood.value}")
                world.lie(member.peer, None if falsehood is None else lie_of(falsehood, self._rng))
            case _:
                assert_never(fault)

    async def _crash(self, member: Member, *, is_store_lost: bool, is_silent: bool) -> None:
        store, machine = "loses its store" if is_store_lost else "keeps its store", "silent" if is_silent else "down"
        self.log.note(f"{member} crashes, is {machine}, {store}")
        if is_silent:
            self.swarm.world.silence(member.peer)
        member.disc.is_off = True
        await self._stop(member)
        if is_store_lost:
            member.machine.disc = member.disc = Disc(member.disc.complain)
            member.lives += 1
            self.ledger.disc_lost(self.discs())

    async def _leave(self, member: Member) -> None:
        self.log.note(f"{member} leaves")
        await self._stop(member)
        member.has_left = True
        self.ledger.disc_lost(self.discs())

    # Members

    def _new_member(self, *, is_server: bool, is_liar: bool) -> Member:
        number = len(self.members)
        disc = Disc(lambda sentence: self.complain(f"m{number}: {sentence}"))
        machine = self.swarm.machine(disc=disc, listens=is_server)
        member = Member(number=number, machine=machine, disc=disc, is_server=is_server, is_liar=is_liar)
        self.members.append(member)
        self._by_peer[member.peer] = member
        return member

    async def _start(self, member: Member) -> None:
        config = self.plan.config if member.is_server else replace(self.plan.config, mode=Mode.CLIENT)
        via = [anchor.peer for anchor in self.members[:ANCHORS] if anchor is not member]
        member.node = await self.swarm.start(member.machine, via=via, config=config)

    async def _stop(self, member: Member) -> None:
        """Stop what runs on its machine, and what its owner has under way, in one instant."""
        node, member.node = member.node, None
        if node is not None:
            member.cut_short()
            await self.swarm.stop(node)
