"""What must be true when the faults are over and the swarm has had time to settle.

By then everybody is there who will be, and can reach everybody. A *server* here is one that runs; the *replicas* of a
key are the ``r`` servers closest to it, as somebody knows them who sees all. What must be true:

1. **Nobody leaks.** A node that is at rest has as many tasks as one that has just started.
2. **Stores keep what they took**, until it retires (:mod:`prime_dht.testing.simulation.disc`).
3. **Nothing is lost**: every acknowledged entry is kept by a disc, if a replica lived
   (:mod:`prime_dht.testing.simulation.ledger`).
4. **Tables are healed**: each node knows the ``k`` servers closest to it, as far as its buckets have room for them, and
   its table names nobody who is not there.
5. **Replicas are equal**: in each slot the same entry stands at all replicas, and it is the newest that any server has.
6. **Readers see just that.**
7. **The swarm serves.** A put is stored by the replicas, all of them, and read by everybody.
8. **Nodes know what they have.** Their partition is what it would be if it were made anew, their stores' counters say
   what is there, no call is under way for ever, and every sector of their arcs is held.
9. **What is kept alive lives**, and what is provided is found, for as long as the node runs that said so.
10. **Blobs are where their entries are.** If a server has all of a blob to which the newest entry of a slot refers, all
   replicas have, and readers get it.

Two clocks differ by up to twice the plan's largest skew. What expires or retires within so long of now is left out,
and what is dated further ahead.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Set
from random import Random

import trio

from prime_dht.entries.entry import BlobRef, Entry, Slot
from prime_dht.errors import BlobError, PrimeDHTError
from prime_dht.ids import US_PER_S, Key, kad_key, wire_key
from prime_dht.kad.keyspace import common_prefix_length
from prime_dht.node.results import Found
from prime_dht.partition.arcs import ArcSet
from prime_dht.partition.combined import Combined
from prime_dht.partition.partition import Partition
from prime_dht.testing.simulation.execution import Execution
from prime_dht.testing.simulation.member import Member
from prime_dht.testing.simulation.plan import MAX_SKEW_S
from prime_dht.testing.swarm import EPOCH_US

MARGIN_US = int(2 * MAX_SKEW_S * US_PER_S)
READERS_PER_SLOT = 2
WRITERS_AT_THE_END = 3
REST_WITHIN_S = 300
"""Chores come and go; within so long every node is seen at rest at least once."""


class Checks:
    """See the module.

    Args:
        tasks_at_rest: how many tasks a server, and a client, had that had just started (:func:`tasks_at_rest`).
    """

    def __init__(self, execution: Execution, *, tasks_at_rest: Mapping[bool, int]) -> None:
        self._execution = execution
        self._complain = execution.complain
        self._tasks_at_rest = tasks_at_rest
        self._members = [member for member in execution.members if member.node is not None]
        self._servers = [member for member in self._members if member.is_server]
        self._rng = Random(f"{execution.plan.seed}/checks")  # noqa: S311 - a simulation, nothing secret

    async def all(self) -> None:
        """Check everything, in the order of the module's list; complain of what is not so."""
        await self._check_rest()
        for member in self._servers:
            for entry in member.disc.forgotten():
                self._complain(f"{member} took {_op(entry)} and has it no more")
        self._execution.ledger.check_nothing_lost(self._execution.discs())
        for member in self._members:
            self._check_table(member)
            await self._check_inside(member)
        complete = await self._complete_blobs()
        for slot in self._execution.ledger.slots:
            self._check_equal(slot)
            self._check_blob(slot, complete)
            await self._check_slot(slot, complete)
        await self._check_promises()
        for number, writer in enumerate(self._rng.sample(self._servers, WRITERS_AT_THE_END)):
            await self._check_service(writer, f"the end, {number}")

    async def _check_rest(self) -> None:
        restless = dict.fromkeys(self._members, math.inf)
        for _ in range(REST_WITHIN_S):
            await trio.sleep(1.0)
            least = {member: min(tasks, _tasks_of(member)) for member, tasks in restless.items()}
            restless = {member: tasks for member, tasks in least.items() if tasks > self._at_rest(member)}
            if not restless:
                return
        for member, tasks in restless.items():
            self._complain(f"{member} has {tasks} tasks at rest; when it started it had {self._at_rest(member)}")

    def _at_rest(self, member: Member) -> int:
        return self._tasks_at_rest[member.is_server]

    def _check_table(self, member: Member) -> None:
        assert member.node is not None
        own = kad_key(member.peer)
        k = self._execution.plan.config.k_bucket_size
        table = member.node.peers()
        known = {status.peer for status in table}
        sizes = Counter(status.bucket for status in table)
        others = sorted((one for one in self._servers if one is not member), key=lambda one: kad_key(one.peer) ^ own)
        for server in others[:k]:
            if server.peer not in known and sizes[common_prefix_length(own, kad_key(server.peer))] < k:
                self._complain(f"{member} does not know {server}, one of the k closest to it, and has room for it")
        if gone := sorted(known - {server.peer for server in others}):
            self._complain(f"{member} has {self._execution.named(gone)} in its table, and nobody is there")

    async def _check_inside(self, member: Member) -> None:
        """What a node knows of itself."""
        assert member.node is not None
        for wrong in member.disc.miscounted():
            self._complain(f"{member} counts {wrong}")
        replica = member.node._replica
        left_over = {
            "calls": len(replica._calls),
            "unsettled ops": len(replica._unsettled),
            "ops named": sum(1 for count in replica._named.values() if count),
        }
        for what, count in left_over.items():
            if count:
                self._complain(f"{member} has {count} {what} at rest")
        partition = replica.partition
        if partition is None:
            self._complain(f"{member} has no partition")
            return
        anew = Partition(partition.parameters, now_us=partition.layout.since_us)
        ops = await member.disc.scan_ops(limit=1_000_000)
        anew.insert_batch(ops.op_ids, ops.locations, ops.created_at_us)
        every = ArcSet.full(sector_bits=partition.parameters.sector_bits)
        if _tops(anew, every) != _tops(partition, every):
            self._complain(f"{member} has {len(ops.op_ids)} ops, and its partition says otherwise")
        if member.is_server:
            holding = (await member.node.health()).holding
            if holding is not None and holding.held < holding.sectors:
                self._complain(f"{member} holds {holding.held} of {holding.sectors} sectors")

    async def _complete_blobs(self) -> dict[bytes, set[Member]]:
        """Of each blob, the servers that have all of it."""
        complete: dict[bytes, set[Member]] = {}
        for member in self._servers:
            assert member.node is not None
            for blob in await member.node.blobs.kept():
                if blob.is_complete:
                    complete.setdefault(bytes(blob.cid), set()).add(member)
        return complete

    def _check_blob(self, slot: Slot, complete: Mapping[bytes, Set[Member]]) -> None:
        """Whether all replicas have the blob that stands in a slot, if anybody has."""
        newest = self._newest(slot)
        if newest is None or newest.header.expires_at_us <= _now_us() + MARGIN_US:
            return
        content = newest.header.content
        if isinstance(content, BlobRef) and (having := complete.get(content.cid, set())):
            for replica in self._replicas(slot.key):
                if replica not in having:
                    names = " ".join(sorted(map(str, having)))
                    self._complain(f"{replica} lacks the blob of {_op(newest)}, and is a replica; {names} have it")

    async def _check_promises(self) -> None:
        for member, node, slot, value in self._execution.kept:
            if member.node is node:
                reader = self._rng.choice(self._members)
                assert reader.node is not None
                try:
                    found = await reader.node.get(slot.key, publisher=slot.publisher, latest=True)
                except PrimeDHTError as error:
                    self._complain(f"{reader} cannot read what {member} keeps: {error}")
                    continue
                if found is None or found.value != value:
                    self._complain(f"{reader} does not find {value!r}, which {member} keeps alive")
        for member, node, multihash in self._execution.provided:
            if member.node is node:
                reader = self._rng.choice(self._members)
                assert reader.node is not None
                providers = await reader.node.find_providers(multihash)
                if member.peer not in {provider.peer for provider in providers}:
                    self._complain(f"{reader} does not find {member} as provider of {multihash.hex()[-8:]}")

    async def _check_slot(self, slot: Slot, complete: Mapping[bytes, Set[Member]]) -> None:
        for reader in self._rng.sample(self._members, READERS_PER_SLOT):
            newest = self._newest(slot)
            assert reader.node is not None
            where = f"key {slot.key.decode()} of {self._execution.named((slot.publisher,))}"
            try:
                found = await reader.node.get(slot.key, subkey=slot.subkey, publisher=slot.publisher, latest=True)
            except BlobError as error:
                content = None if newest is None else newest.header.content
                if isinstance(content, BlobRef) and complete.get(content.cid):
                    self._complain(f"{reader} cannot fetch {where}, and it is there: {error}")
                continue
            except PrimeDHTError as error:
                self._complain(f"{reader} cannot read {where}: {error}")
                continue
            if found is None:
                if newest is not None and newest.is_live(_now_us() + MARGIN_US):
                    self._complain(f"{reader} finds nothing under {where}, and there is something")
                continue
            self._execution.ledger.found(reader, found)
            if newest is not None and found.op_id != newest.op_id:
                self._complain(f"{reader} finds {_op(found)} under {where}, and not the newest, {_op(newest)}")

    def _newest(self, slot: Slot) -> Entry | None:
        """The newest that any server has in a slot; ``None`` if there is nothing, or if it retires too soon to tell."""
        found = (server.disc.standing(slot) for server in self._servers)
        standing = [entry for entry in found if entry is not None and not _is_dated_ahead(entry)]
        newest = max(standing, key=lambda entry: entry.version, default=None)
        return newest if newest is not None and newest.header.retain_until_us > _now_us() + MARGIN_US else None

    def _check_equal(self, slot: Slot) -> None:
        """Whether all replicas have in a slot what the newest is anywhere."""
        newest = self._newest(slot)
        if newest is None:
            return
        for replica in self._replicas(slot.key):
            standing = replica.disc.standing(slot)
            if standing is not None and _is_dated_ahead(standing):
                continue
            if standing is None or standing.op_id != newest.op_id:
                has = "nothing" if standing is None else _op(standing)
                self._complain(f"{replica} has {has} where {_op(newest)} stands, and is a replica")

    async def _check_service(self, writer: Member, key: str) -> None:
        assert writer.node is not None
        replicas = self._replicas(wire_key(key))
        try:
            receipt = await writer.node.put(key, b"at the end")
            if set(receipt.stored_by) != {replica.peer for replica in replicas}:
                stored_by = self._execution.named(receipt.stored_by)
                self._complain(f"{writer} stored {key!r} on {stored_by}, not {' '.join(map(str, replicas))}")
            for reader in self._members:
                assert reader.node is not None
                found = await reader.node.get(key, latest=True)
                if found is None or found.op_id != receipt.op_id:
                    self._complain(f"{reader} does not find {key!r}")
        except PrimeDHTError as error:
            self._complain(f"the swarm does not serve {key!r}: {error}")

    def _replicas(self, key: Key) -> list[Member]:
        target = kad_key(key)
        nearest_first = sorted(self._servers, key=lambda server: kad_key(server.peer) ^ target)
        return nearest_first[: self._execution.plan.config.replication_factor]


def tasks_at_rest(execution: Execution) -> dict[bool, int]:
    """The fewest tasks that a server has now, under ``True``, and a client, under ``False``."""
    return {
        is_server: min(_tasks_of(member) for member in execution.members if member.is_server is is_server)
        for is_server in (True, False)
    }


def _tasks_of(member: Member) -> int:
    assert member.node is not None
    nursery = member.node._nursery
    return 0 if nursery is None else _tasks_in(nursery)


def _tasks_in(nursery: trio.Nursery) -> int:
    tasks = nursery.child_tasks
    return len(tasks) + sum(_tasks_in(child) for task in tasks for child in task.child_nurseries)


def _tops(partition: Partition, arcs: ArcSet) -> list[Combined]:
    """What a partition says of its disc, its rings and its tail, sector by sector."""
    cells = partition.cells
    starts = (*cells.layout.ring_starts, cells.layout.tail_start)
    tops = [*cells.disc_sectors(arcs), *(cell for start in starts for cell in cells.slice_cells(start, arcs))]
    return [top for _, top in tops]


def _now_us() -> int:
    return EPOCH_US + int(trio.current_time() * US_PER_S)


def _is_dated_ahead(entry: Entry) -> bool:
    """Whether its writer signed it while its clock was wrong: it has it still, and nobody else takes it."""
    return entry.header.created_at_us > _now_us() + MARGIN_US


def _op(entry: Entry | Found) -> str:
    return entry.op_id.hex()[:8]
