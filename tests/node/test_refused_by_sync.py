"""What a node makes of entries that come in a round and that it does not store: who is blamed, what is remembered."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import pytest
import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from trio.testing import MockClock

from prime_dht.background import background_nursery
from prime_dht.config import DhtConfig, Mode
from prime_dht.entries.access import own_key
from prime_dht.entries.codec import decode_entry, encode_header
from prime_dht.entries.entry import Entry, EntryHeader, Tombstone
from prime_dht.entries.envelope import ENTRY, seal
from prime_dht.entries.limits import Limits
from prime_dht.ids import US_PER_S, Key, PeerId, TimestampUs, wire_key
from prime_dht.net.identity import peer_id_of
from prime_dht.net.network import Conversation
from prime_dht.node.core import Node
from prime_dht.node.replica import LOOK_EVERY_S
from prime_dht.partition.arcs import ArcSet
from prime_dht.partition.location import sector_of
from prime_dht.storage.base import EntryQuery
from prime_dht.storage.capacity import location_of
from prime_dht.sync.messages import Acceptance, Turn, Verdict
from prime_dht.testing.hostile_rounds import NETWORK, Rogue, drained
from prime_dht.testing.swarm import Swarm, open_swarm
from prime_dht.wire.kad import Reply, Request

DAY_US = 86_400_000_000
WRITER = create_new_key_pair(b"publisher".ljust(32))
STRANGER = create_new_key_pair(b"stranger".ljust(32))
CIRCLE = ArcSet.full(sector_bits=9)
DONE = Verdict(only_leader=0, only_follower=0, left=ArcSet.empty(sector_bits=9))

Change = Callable[[EntryHeader], EntryHeader]


async def serves_nothing_else(_peer: PeerId, _request: Request) -> Reply:
    return Reply()


@dataclass(slots=True, kw_only=True)
class Scene:
    """A node, to which somebody sends what it likes."""

    swarm: Swarm
    node: Node
    nursery: trio.Nursery

    @property
    def now_us(self) -> int:
        return self.swarm.machine_of(self.node).clock.now_us()

    @property
    def offences(self) -> int:
        return self.node._network.counters().offences

    @property
    def remembered(self) -> int:
        return len(self.node._syncing._held.declined)

    def sealed(self, number: int = 0, change: Change = lambda header: header) -> Entry:
        """An entry of a writer who obeys no rule."""
        header = EntryHeader(
            network_id=NETWORK.network_id,
            key=Key(b"/prime/%d" % number),
            created_at_us=TimestampUs(self.now_us - DAY_US),
            expires_at_us=TimestampUs(self.now_us + DAY_US),
            retain_until_us=TimestampUs(self.now_us + DAY_US),
            content=Tombstone(),
        )
        changed = change(header)
        return decode_entry(seal(WRITER.private_key, ENTRY, changed.network_id, encode_header(changed)), None)

    async def is_sent(self, entries: Sequence[Entry]) -> None:
        """Somebody with whom the node begins a round leads it and sends entries."""
        network = self.swarm.world.network(peer_id_of(STRANGER), serves_nothing_else)
        await self.nursery.start(network.run)
        network.mount(as_server=True)
        self.node._network.learn_addresses(network.local, network.own_addresses(), source="manual")
        rogue = Rogue(now_us=self.now_us)

        async def take_part(conversation: Conversation) -> None:
            await rogue.hear(conversation)
            acceptance = Acceptance(arc=CIRCLE, held=CIRCLE)
            await rogue.say(conversation, Turn(acceptance=acceptance, entries=tuple(entries), verdict=DONE))
            await drained(conversation)

        network.serve_sync(take_part)
        await self.node.sync(network.local)


@asynccontextmanager
async def scene(config: DhtConfig | None = None) -> AsyncIterator[Scene]:
    async with open_swarm(seed=1, size=1, config=config or DhtConfig()) as swarm, background_nursery() as nursery:
        yield Scene(swarm=swarm, node=swarm.nodes[0], nursery=nursery)


def too_long_a_key(header: EntryHeader) -> EntryHeader:
    return replace(header, key=Key(header.key + b"/" + bytes(2000)))


def created_later(header: EntryHeader, *, by_us: int) -> EntryHeader:
    return replace(header, created_at_us=TimestampUs(header.created_at_us + by_us))


@pytest.mark.parametrize(
    "change",
    [
        lambda header: replace(header, key=Key(b"/elsewhere/key")),
        lambda header: replace(header, key=own_key(peer_id_of(STRANGER), b"key")),
    ],
    ids=["under no key", "under another's key"],
)
async def test_who_sends_what_no_replica_stores_is_charged(autojump_clock: MockClock, change: Change) -> None:
    async with scene() as made:
        await made.is_sent([made.sealed(change=change)])
        assert (made.offences, made.remembered) == (1, 0)


async def test_who_sends_what_its_publisher_did_not_sign_is_charged_whatever_else_is_wrong_with_it(
    autojump_clock: MockClock,
) -> None:
    async with scene() as made:
        entry = made.sealed(change=too_long_a_key)
        await made.is_sent([decode_entry(entry.envelope[:-64] + bytes(64), None)])
        assert (made.offences, made.remembered) == (1, 0)


@pytest.mark.parametrize(
    "change",
    [too_long_a_key, lambda header: replace(header, network_id="another")],
    ids=["over a limit", "of a network whose store it was"],
)
async def test_what_another_node_may_store_is_declined_and_remembered_until_it_retires(
    autojump_clock: MockClock, change: Change
) -> None:
    async with scene() as made:
        await made.is_sent([made.sealed(number, change) for number in range(3)])
        assert (made.offences, made.remembered) == (0, 3)
        made.node._syncing._held.retire(made.now_us + 2 * DAY_US)
        assert made.remembered == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda header: replace(header, retain_until_us=TimestampUs(header.retain_until_us + 40 * DAY_US)),
        lambda header: created_later(too_long_a_key(header), by_us=DAY_US + 700_000_000),
        lambda header: created_later(too_long_a_key(header), by_us=-1000 * DAY_US),
        lambda header: replace(
            header,
            created_at_us=TimestampUs(header.created_at_us - 5 * DAY_US),
            expires_at_us=TimestampUs(header.created_at_us - DAY_US),
            retain_until_us=TimestampUs(header.created_at_us - DAY_US),
        ),
    ],
    ids=["lives too long", "dated ahead", "dated far back", "retired"],
)
async def test_what_no_replica_can_have_for_long_is_declined_and_not_remembered(
    autojump_clock: MockClock, change: Change
) -> None:
    async with scene() as made:
        await made.is_sent([made.sealed(change=change)])
        assert (made.offences, made.remembered) == (0, 0)
        assert made.node._syncing._held.held == CIRCLE


@pytest.mark.parametrize(
    ("ahead_s", "held"),
    [(DAY_US // US_PER_S, 512), (1800, 511)],
    ids=["by a day: nobody takes it now", "by half an hour: the clock of who takes it may be right"],
)
async def test_what_is_dated_too_far_ahead_for_all_leaves_no_sector_open(
    autojump_clock: MockClock, ahead_s: int, held: int
) -> None:
    async with open_swarm(seed=1, size=1) as swarm:
        (one,) = swarm.nodes
        clock = swarm.machine_of(one).clock
        clock.set_by_us = ahead_s * US_PER_S
        await one.put("written by a fast clock", b"value")
        clock.set_by_us = 0
        await trio.sleep(2 * LOOK_EVERY_S)
        other = await swarm.join()
        await trio.sleep(60)
        assert (await one.sync(other.peer_id)).outcome.equal == CIRCLE
        health = await other.health()
        assert health.holding is not None
        assert (health.entries, health.holding.held) == (0, held)


async def test_what_a_fast_clock_dated_ahead_is_not_sent_in_each_round_and_keeps_nothing_else_back(
    autojump_clock: MockClock,
) -> None:
    async with open_swarm(seed=1, size=1) as swarm:
        (one,) = swarm.nodes
        clock = swarm.machine_of(one).clock
        clock.set_by_us = 300 * DAY_US
        for number in range(100):
            await one.put(f"checkpoint {number}", bytes(60_000))
        clock.set_by_us = 0
        await trio.sleep(2 * LOOK_EVERY_S)
        other = await swarm.join()
        for begins, partner in ((one, other), (other, one)):
            report = await begins.sync(partner.peer_id)
            assert report.outcome.equal == CIRCLE
            assert report.traffic.bytes_sent + report.traffic.bytes_received < 10_000
        assert other._syncing._held.held == CIRCLE


async def test_a_node_whose_clock_was_just_set_back_still_sends_what_is_dated_right(
    autojump_clock: MockClock,
) -> None:
    async with open_swarm(seed=1, size=1) as swarm:
        (one,) = swarm.nodes
        for number in range(5):
            await one.put(f"key {number}", b"value")
        other = await swarm.start()
        swarm.machine_of(one).clock.set_by_us = -DAY_US
        await other.add_peer(swarm.address_of(one))
        assert (await other.sync(one.peer_id)).outcome.stored == 5


async def test_two_replicas_of_a_full_key_with_different_slots_have_all_else_in_common_and_hold_it(
    autojump_clock: MockClock,
) -> None:
    limits = Limits(max_slots_per_key=100)
    async with open_swarm(seed=1, size=1, config=DhtConfig(limits=limits)) as swarm:
        (one,) = swarm.nodes
        other = await swarm.start()
        for number in range(100):
            await one.put("popular", bytes(60_000), subkey=b"one's %d" % number, ttl=86_400)
            await other.put("popular", bytes(60_000), subkey=b"other's %d" % number, ttl=86_400)
        await one.put_many({f"key {number}": b"value" for number in range(100)}, ttl=86_400)
        await other.add_peer(swarm.address_of(one))
        await trio.sleep(60)
        disc = swarm.machine_of(other).disc
        for number in range(100):
            page = await disc.get_entries(EntryQuery(key=wire_key(f"key {number}")), now_us=0)
            assert len(page.entries) == 1
        sector = sector_of(location_of(wire_key("popular")), sector_bits=9)
        assert CIRCLE - other._syncing._held.held == ArcSet.of_sectors([sector], sector_bits=9)
        again = await other.sync(one.peer_id)
        assert str(again.outcome) == "partial(1)"
        assert again.traffic.bytes_received < 10_000


async def test_a_client_too_gets_what_it_had_no_room_for_once_there_is_some(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=1) as swarm:
        (one,) = swarm.nodes
        for number in range(10):
            await one.put("popular", b"value", subkey=b"%d" % number, ttl=86_400 if number % 2 else 1000)
        client = await swarm.start(
            swarm.machine(listens=False),
            via=[one],
            config=DhtConfig(mode=Mode.CLIENT, limits=Limits(max_slots_per_key=5)),
        )
        await client.bootstrap()
        assert str((await client.sync(one.peer_id)).outcome) == "partial(1)"
        await trio.sleep(7200)
        assert str((await client.sync(one.peer_id)).outcome) == "equal"
        assert len(await client.get_all("popular")) == 5


async def test_what_was_put_off_and_is_stored_after_all_counts_once(autojump_clock: MockClock) -> None:
    limits = Limits(max_publisher_bytes=2000)
    async with scene(DhtConfig(limits=limits)) as made:
        many = [made.sealed(number) for number in range(20)]
        await made.is_sent(many)
        assert 0 < made.remembered < 20
        stored = {entry.op_id for entry in many if entry.op_id not in made.node._syncing._held.declined}
        late = next(entry for entry in many if entry.op_id not in stored)
        await made.node._replica.remove_ops([next(iter(stored))])
        before = made.remembered
        await made.node._replica.put_entries([late], now_us=made.now_us)
        assert made.remembered == before - 1
        with made.node._replica.view(made.node._syncing._held.declined) as view:
            assert view is not None
            assert view.op_count(CIRCLE) == 19
