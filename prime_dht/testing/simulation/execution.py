"""Carrying out a plan: nodes start, die and lie, and their owners put, get and delete, as it says.

The nodes are :class:`prime_dht.node.core.Node` with all their decisions and handlers. A step whose member is down, or
whose writer has nothing to do with it, is passed over. Every operation has the node's own deadline, so operations need
none here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import assert_never

import trio

from prime_dht.blobs.cid import Cid
from prime_dht.config import Mode
from prime_dht.entries.entry import Slot
from prime_dht.errors import PrimeDHTError
from prime_dht.ids import US_PER_S, PeerId, wire_key
from prime_dht.node.core import Node
from prime_dht.node.results import PutReceipt
from prime_dht.storage.blocks import BlockStore
from prime_dht.testing.simulation.disc import Backup, Disc
from prime_dht.testing.simulation.history import Log
from prime_dht.testing.simulation.ledger import Ledger
from prime_dht.testing.simulation.lies import lie_of
from prime_dht.testing.simulation.member import Member, key_of
from prime_dht.testing.simulation.plan import (
    ANCHORS,
    BackUp,
    Crash,
    Cut,
    CutOneWay,
    Delete,
    Disconnect,
    DiscTrouble,
    Fault,
    Get,
    Heal,
    Join,
    Keep,
    Leave,
    Lie,
    Lose,
    MendBothWays,
    Move,
    Operation,
    Plan,
    Provide,
    Put,
    PutBlob,
    PutMany,
    Restart,
    Restore,
    SetClock,
    Slow,
    Step,
    Weather,
    WrongClock,
)
from prime_dht.testing.swarm import BLOCKS_BYTES, Swarm

START_S = 60.0
"""For the first members to meet."""


class Execution:
    """See the module.

    Attributes:
        members: everybody who was ever there, by number.
        kept: what nodes promised to keep alive for as long as they run: (member, node, slot, value).
        provided: what they announce until then: (member, node, multihash).
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
        self.kept: list[tuple[Member, Node, Slot, bytes]] = []
        self.provided: list[tuple[Member, Node, bytes]] = []
        self._by_peer: dict[PeerId, Member] = {}
        self._keeps = 0
        self._backups: dict[Member, Backup] = {}
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
                if isinstance(step, Operation):
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
        if node is None or member.is_clock_wrong:
            return
        with member.operation():
            try:
                match operation:
                    case Put(_, key, ttl_s):
                        await self._put(member, node, key, ttl_s)
                    case PutBlob(_, key, ttl_s, size_bytes):
                        await self._put(member, node, key, ttl_s, size_bytes)
                    case PutMany(_, keys, ttl_s):
                        await self._put_many(member, node, keys, ttl_s)
                    case Keep(_, ttl_s):
                        await self._keep(member, node, ttl_s)
                    case Provide():
                        await self._provide(member, node)
                    case Delete(_, key):
                        await self._put(member, node, key, None)
                    case Get(_, key, writer, latest):
                        await self._get(member, node, key, None if writer is None else self.members[writer], latest)
                    case _:
                        assert_never(operation)
            except PrimeDHTError as error:
                where = f" key {operation.key}" if isinstance(operation, Put | PutBlob | Delete | Get) else ""
                self.log.note(f"{member} {type(operation).__name__.lower()}s{where}: {error}")

    async def _put(
        self, member: Member, node: Node, number: int, ttl_s: float | None, size_bytes: int | None = None
    ) -> None:
        """Put a new value, of so many bytes if that is said, or with no ttl, delete."""
        key = key_of(number)
        slot = member.slot(key)
        doubts = {other.peer: other.doubts for other in self.members}
        turn = member.writes(slot)
        if ttl_s is None:
            what = f"deletes key {number}"
            receipt = await node.delete(key, subkey=slot.subkey)
        else:
            value = self.ledger.value_for(slot) if size_bytes is None else self.ledger.blob_for(slot, size_bytes)
            named = value.decode() if size_bytes is None else f"{size_bytes} bytes"
            what = f"puts {named} under key {number} for {ttl_s:.0f} s"
            receipt = await node.put(key, value, subkey=slot.subkey, ttl=ttl_s)
        self._check_receipt(member, slot, receipt, what, doubts, turn)

    async def _put_many(self, member: Member, node: Node, numbers: Sequence[int], ttl_s: float) -> None:
        if member.lives:
            return  # it cannot say which slots
        slots = [Slot(key_of(number), member.peer, b"") for number in numbers]
        items = [(slot.key, self.ledger.value_for(slot)) for slot in slots]
        doubts = {other.peer: other.doubts for other in self.members}
        turns = [member.writes(slot) for slot in slots]
        receipts = await node.put_many(items, ttl=ttl_s)
        for slot, receipt, turn, (_, value) in zip(slots, receipts, turns, items, strict=True):
            self._check_receipt(member, slot, receipt, f"puts {value.decode()} with others", doubts, turn)

    async def _keep(self, member: Member, node: Node, ttl_s: float) -> None:
        self._keeps += 1
        slot = Slot(wire_key(f"kept {self._keeps}"), member.peer, b"")
        value = self.ledger.value_for(slot)
        receipt = await node.put(slot.key, value, subkey=slot.subkey, ttl=ttl_s, keep=True)
        self.log.note(f"{member} keeps {value.decode()} for {ttl_s:.0f} s each: {receipt.op_id.hex()[:8]}")
        self.kept.append((member, node, slot, value))

    async def _provide(self, member: Member, node: Node) -> None:
        multihash = Cid.of_raw(b"content %d" % len(self.provided)).multihash
        self.log.note(f"{member} provides {multihash.hex()[-8:]}")
        self.provided.append((member, node, multihash))
        await node.provide(multihash)

    def _check_receipt(
        self, member: Member, slot: Slot, receipt: PutReceipt, what: str, doubts: Mapping[PeerId, int], turn: int
    ) -> None:
        """Hold a receipt against the ledger.

        Args:
            doubts: about everybody's disc when the put began.
            turn: the number of this write of the slot.
        """
        fate = "acknowledged" if receipt.acknowledged else "not acknowledged"
        op = receipt.op_id.hex()[:8]
        self.log.note(f"{member} {what}: {op} is on {self.named(receipt.stored_by) or 'nobody'}, {fate}")
        stored_by = (self._by_peer[peer] for peer in receipt.stored_by)
        counting = [one for one in stored_by if one.is_trusted_server and one.doubts == doubts.get(one.peer)]
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
        what = "nothing" if found is None else f"{len(found.value)} bytes, {found.op_id.hex()[:8]}"
        self.log.note(f"{member} gets key {number} of {writer} and finds {what}")

    # Faults

    async def _do(self, fault: Fault) -> None:
        if isinstance(fault, Weather):
            self._do_weather(fault)
            return
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
                self.swarm.world.unsilence(member.peer)
                member.disc.is_off = False
                await self._start(member)
            case BackUp(number):
                member = self.members[number]
                self.log.note(f"{member} is backed up")
                self._backups[member] = member.disc.backup()
            case Restore(number, is_without_blocks):
                await self._restore(self.members[number], is_without_blocks=is_without_blocks)
            case DiscTrouble(number, trouble):
                member = self.members[number]
                if member.node is not None:
                    self.log.note(f"the disc of {member} {'is well' if trouble is None else trouble.value}")
                    member.disc.trouble = trouble
            case WrongClock(number, by_s, is_wrong):
                member = self.members[number]
                self.log.note(f"{member} has its clock {'wrong' if is_wrong else 'right again, but'} by {by_s:+,.0f} s")
                member.machine.clock.set_by_us = int(by_s * US_PER_S)
                member.is_clock_wrong = is_wrong
                member.doubts += 1
                member.lives += is_wrong  # by a clock far ahead a node forgets what it wrote
                member.disc.told_the_time(is_right=not is_wrong)
                self.ledger.disc_lost(self.discs())
            case SetClock(number, by_s) if not self.members[number].is_clock_wrong:
                member = self.members[number]
                self.log.note(f"{member} has its clock off by {by_s:+.0f} s")
                member.machine.clock.set_by_us = int(by_s * US_PER_S)
            case SetClock():
                pass
            case Lie(number, falsehood):
                member = self.members[number]
                self.log.note(f"{member} {'tells the truth' if falsehood is None else falsehood.value}")
                self.swarm.world.lie(member.peer, None if falsehood is None else lie_of(falsehood, self._rng))
            case _:
                assert_never(fault)

    def _do_weather(self, weather: Weather) -> None:
        """What befalls the network."""
        world = self.swarm.world
        match weather:
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
            case CutOneWay(number, is_mute):
                member = self.members[number]
                self.log.note(f"{member} {'is heard by nobody' if is_mute else 'hears nobody'}")
                world.cut_one_way(member.peer, is_mute=is_mute, is_deaf=not is_mute)
            case MendBothWays(number):
                member = self.members[number]
                self.log.note(f"{member} is heard and hears")
                world.cut_one_way(member.peer)
            case Move(number):
                member = self.members[number]
                if member.node is not None:
                    self.log.note(f"{member} has another address")
                    world.move(member.peer)
            case _:
                assert_never(weather)

    async def _restore(self, member: Member, *, is_without_blocks: bool) -> None:
        backup = self._backups.get(member)
        if member.node is None or backup is None:
            return
        self.log.note(f"{member} is restored from a copy{' without blocks' if is_without_blocks else ''}")
        member.disc.is_off = True
        await self._stop(member)
        self._replace_disc(member)
        if is_without_blocks:
            self._replace_blocks(member)
        await member.disc.restore(backup)
        self.ledger.disc_lost(self.discs())
        await self._start(member)

    def _replace_disc(self, member: Member) -> None:
        member.lives += 1
        member.doubts += 1
        member.machine.disc = member.disc = self._new_disc(member.number, member.lives)
        if member.is_clock_wrong:
            member.disc.told_the_time(is_right=False)

    def _replace_blocks(self, member: Member) -> None:
        member.machine.blocks = BlockStore.in_memory(max_bytes=BLOCKS_BYTES)

    async def _crash(self, member: Member, *, is_store_lost: bool, is_silent: bool) -> None:
        store, machine = "loses its store" if is_store_lost else "keeps its store", "silent" if is_silent else "down"
        self.log.note(f"{member} crashes, is {machine}, {store}")
        if is_silent:
            self.swarm.world.silence(member.peer)
        member.disc.is_off = True
        await self._stop(member)
        member.disc.trouble = None
        if is_store_lost:
            self._replace_disc(member)
            self._replace_blocks(member)
            self.ledger.disc_lost(self.discs())

    async def _leave(self, member: Member) -> None:
        self.log.note(f"{member} leaves")
        await self._stop(member)
        member.has_left = True
        self.ledger.disc_lost(self.discs())

    # Members

    def _new_member(self, *, is_server: bool, is_liar: bool) -> Member:
        number = len(self.members)
        disc = self._new_disc(number, 0)
        machine = self.swarm.machine(disc=disc, listens=is_server)
        member = Member(number=number, machine=machine, disc=disc, is_server=is_server, is_liar=is_liar)
        self.members.append(member)
        self._by_peer[member.peer] = member
        return member

    def _new_disc(self, number: int, life: int) -> Disc:
        return Disc(lambda sentence: self.complain(f"m{number}: {sentence}"), seed=f"{self.plan.seed}/{number}/{life}")

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
