"""Publishers, slots and versions: who sees what of a key."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.keys import KeyPair
from trio.testing import MockClock, wait_all_tasks_blocked

from prime_dht.config import DhtConfig
from prime_dht.entries.access import group_key, own_key
from prime_dht.entries.capability import grant
from prime_dht.entries.codec import encode_entry_set, inline
from prime_dht.entries.entry import Entry, EntryHeader, Slot
from prime_dht.entries.limits import Limits
from prime_dht.entries.signing import sign_entry
from prime_dht.errors import QueryError, ValidationError
from prime_dht.ids import US_PER_S, Key, PeerId, TimestampUs
from prime_dht.net.identity import peer_id_of
from prime_dht.node.core import Node
from prime_dht.storage.base import OwnSlot
from prime_dht.storage.memory import MemoryBackend
from prime_dht.storage.paging import encode_cursor
from prime_dht.testing.swarm import EPOCH_US, open_swarm
from prime_dht.wire.kad import GetValue, PeerRecord, Record, Reply, Request


async def values(reader: Node, key: str, **choice: object) -> list[bytes]:
    page = await reader.get_all(key, **choice)  # type: ignore[arg-type]
    return [found.value for found in page]


async def test_publishers_do_not_overwrite_each_other(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=20) as swarm:
        for number, trainer in enumerate(swarm.nodes[:10]):
            await trainer.put("gradient:7", b"%d" % number)
        page = await swarm.nodes[15].get_all("gradient:7")
        assert {found.publisher: found.value for found in page} == {
            trainer.peer_id: b"%d" % number for number, trainer in enumerate(swarm.nodes[:10])
        }


async def test_a_reader_gets_the_newest_or_chooses_whom_to_read(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=20) as swarm:
        first, second, third, reader = swarm.nodes[:4]
        for number, publisher in enumerate((first, second, third)):
            await publisher.put("k", b"%d" % number)
            await trio.sleep(1)

        async def read(**choice: object) -> bytes | None:
            found = await reader.get("k", **choice)  # type: ignore[arg-type]
            return None if found is None else found.value

        assert await read() == b"2"
        assert await read(publisher=first.peer_id) == b"0"
        assert await read(trusted=[first.peer_id, second.peer_id]) == b"1"
        assert await read(trusted=[]) is None
        assert await read(publisher=reader.peer_id) is None
        assert await read(subkey=b"other") is None
        with pytest.raises(ValidationError):
            await read(publisher=first.peer_id, trusted=[first.peer_id])
        many = [PeerId(b"\x12\x20" + number.to_bytes(32, "big")) for number in range(257)]
        assert await read(trusted=[*many[:255], first.peer_id]) == b"0"
        with pytest.raises(ValidationError, match="one request can name 256 publishers, not 257"):
            await read(trusted=many)
        with pytest.raises(ValidationError, match="256 subkeys"):
            await reader.get_all("k", subkeys=many)


async def test_subkeys_are_slots_of_their_own(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=5) as swarm:
        writer, reader = swarm.nodes[:2]
        for subkey in (b"", b"a", b"b"):
            await writer.put("k", b"of " + subkey, subkey=subkey)
        found = await reader.get("k", subkey=b"a")
        assert found is not None
        assert found.value == b"of a"
        assert await values(reader, "k") == [b"of ", b"of a", b"of b"]
        assert await values(reader, "k", subkeys=[b"b"]) == [b"of b"]
        assert await values(reader, "k", subkeys=[]) == []
        assert await values(reader, "k", publishers=[]) == []


async def test_a_page_ends_at_the_limit_and_its_cursor_leads_on(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=5) as swarm:
        writer, reader = swarm.nodes[:2]
        await writer.put_many([])
        for number in range(10):
            await writer.put("k", b"%d" % number, subkey=b"%02d" % number)
        cursor, pages = None, []
        while True:
            page = await reader.get_all("k", limit=4, cursor=cursor)
            pages.append([found.value for found in page])
            cursor = page.next_cursor
            if cursor is None:
                break
        assert pages == [[b"0", b"1", b"2", b"3"], [b"4", b"5", b"6", b"7"], [b"8", b"9"]]
        with pytest.raises(ValidationError):
            await reader.get_all("k", limit=0)
        with pytest.raises(ValidationError):
            await reader.get_all("k", cursor=b"no cursor")


async def test_pages_of_replicas_that_hold_different_entries_merge_into_each_entry_once(
    autojump_clock: MockClock,
) -> None:
    """Forty values of 60 KB fill several replies; each replica is kept from a third of the puts."""
    async with open_swarm(seed=1, size=4, config=DhtConfig(read_quorum=3)) as swarm:
        reader = await swarm.join_client()
        writer = swarm.closest_to("k", 4)[-1]
        replicas = swarm.closest_to("k", 3)
        for number in range(40):
            away = replicas[number // 14]
            swarm.world.silence(away.peer_id)
            await writer.put("k", bytes([number]) * 60_000, subkey=b"%02d" % number)
            swarm.world.unsilence(away.peer_id)
            await writer.add_peer(swarm.address_of(away))
        cursor, found, pages = None, [], 0
        while pages == 0 or cursor is not None:
            page = await reader.get_all("k", cursor=cursor)
            found += [one.value[0] for one in page]
            cursor, pages = page.next_cursor, pages + 1
        assert found == list(range(40))
        assert pages > 1


async def test_a_live_entry_behind_a_megabyte_of_newer_ones_that_expired_is_found(autojump_clock: MockClock) -> None:
    """The newest live entry need not be on the first page of a replica's answer."""
    async with open_swarm(seed=1, size=3) as swarm:
        reader = await swarm.join_client()
        pairs = sorted((create_new_key_pair(b"%032d" % number) for number in range(300)), key=peer_id_of)
        entries = [signed(pair, EPOCH_US + 1 + number, EPOCH_US + 2000) for number, pair in enumerate(pairs[:-1])]
        live = signed(pairs[-1], EPOCH_US, EPOCH_US + 86_400 * US_PER_S)  # in the order of publishers it is the last
        for replica in swarm.nodes[:3]:
            await swarm.machine_of(replica).disc.put_entries([*entries, live], now_us=EPOCH_US)
        await trio.sleep(1)
        found = await reader.get("k")
        assert found is not None
        assert found.op_id == live.op_id


def signed(pair: KeyPair, created_at_us: int, end_us: int, *, subkey: bytes = b"") -> Entry:
    """An entry that takes up 4 KB, by somebody."""
    header = EntryHeader(
        network_id="prime",
        key=Key(b"/prime/k"),
        subkey=subkey,
        created_at_us=TimestampUs(created_at_us),
        expires_at_us=TimestampUs(end_us),
        retain_until_us=TimestampUs(EPOCH_US + 86_400 * US_PER_S),
        content=inline(b"value"),
        metadata={"name": "n" * 3900},
    )
    return sign_entry(header, pair.private_key, b"value")


async def test_a_replica_whose_pages_never_end_is_not_believed(autojump_clock: MockClock) -> None:
    """Whoever followed its cursors would go round for ever."""
    pair = create_new_key_pair(bytes(32))
    liar = peer_id_of(pair)
    end_us = EPOCH_US + 86_400 * US_PER_S
    entries = [signed(pair, EPOCH_US, end_us, subkey=b"%02d" % number) for number in range(20)]

    async def answer(_peer: PeerId, request: Request) -> Reply:
        record = Record(Key(b"/prime/k"), encode_entry_set(entries)) if isinstance(request, GetValue) else None
        cursor = encode_cursor(liar, b"19") if record else b""
        return Reply(record=record, closer=(PeerRecord(liar),), next_cursor=cursor, replicates=True)

    async with open_swarm(seed=1) as swarm, trio.open_nursery() as nursery:
        network = swarm.world.network(liar, answer)
        await nursery.start(network.run)
        network.mount(as_server=True)
        reader = await swarm.start(swarm.machine(listens=False))
        await reader.add_peer(swarm.address_of(liar))
        page = await reader.get_all("k")
        assert page.next_cursor is not None
        with pytest.raises(QueryError):
            await reader.get_all("k", cursor=page.next_cursor)
        with pytest.raises(QueryError):
            await reader.get("k")
        nursery.cancel_scope.cancel()


async def test_delete_empties_the_own_slot_alone(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=20) as swarm:
        one, other, reader = swarm.nodes[:3]
        await other.put("k", b"theirs")
        await trio.sleep(1)
        await one.put("k", b"mine")
        receipt = await one.delete("k")
        assert set(receipt.stored_by) == {server.peer_id for server in swarm.closest_to("k", 3)}
        found = await reader.get("k")
        assert found is not None
        assert found.value == b"theirs"
        assert await reader.get("k", publisher=one.peer_id) is None
        assert await values(reader, "k") == [b"theirs"]
        await one.put("k", b"again")
        assert await values(reader, "k", publishers=[one.peer_id]) == [b"again"]


async def test_a_tombstone_at_one_replica_wins_over_the_value_at_another_and_repairs_it(
    autojump_clock: MockClock,
) -> None:
    async with open_swarm(seed=1, size=3) as swarm:
        replicas = swarm.closest_to("k", 3)
        writer = await swarm.join_client()
        await writer.put("k", b"value")
        for replica in replicas[1:]:
            swarm.world.silence(replica.peer_id)
        receipt = await writer.delete("k")
        assert receipt.stored_by == (replicas[0].peer_id,)
        assert not receipt.acknowledged
        swarm.world.silence(replicas[0].peer_id)
        for replica in replicas[1:]:
            swarm.world.unsilence(replica.peer_id)
        reader = await swarm.join_client(via=replicas[1])
        assert await reader.get("k") is not None, "the two that missed the tombstone still have the value"

        swarm.world.unsilence(replicas[0].peer_id)
        await trio.sleep(120)
        await reader.add_peer(swarm.address_of(replicas[0]))
        assert await reader.get("k", quorum=3) is None
        await trio.sleep(1)
        swarm.world.silence(replicas[0].peer_id)
        assert await reader.get("k", latest=True) is None, "the read repaired the others"


async def test_a_deleted_value_cannot_rise_again_from_a_replica_that_slept_through_it(
    autojump_clock: MockClock,
) -> None:
    async with open_swarm(seed=1, size=4) as swarm:
        writer = swarm.closest_to("k", 4)[-1]
        await writer.put("k", b"value", ttl=86_400)
        sleeper = await swarm.stop(swarm.closest_to("k", 1)[0])
        await writer.delete("k")
        await trio.sleep(7200)
        node = await swarm.start(sleeper, via=[writer])
        await node.bootstrap()
        assert await writer.get("k", quorum=3, latest=True) is None
        await trio.sleep(1)
        assert await node.get("k", latest=True) is None


async def test_created_at_grows_strictly_though_the_clock_is_set_back(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=3) as swarm:
        writer, reader = swarm.nodes[:2]
        receipts = [await writer.put("k", b"1")]
        swarm.machine_of(writer).clock.set_by_us = -3600 * 1_000_000
        receipts += [await writer.put("k", b"2"), await writer.put("k", b"3")]
        created = [receipt.created_at_us for receipt in receipts]
        assert created == [created[0], created[0] + 1, created[0] + 2]
        found = await reader.get("k")
        assert found is not None
        assert found.value == b"3"


async def test_created_at_grows_strictly_across_a_restart_with_the_clock_set_back(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=3) as swarm:
        writer, reader = swarm.nodes[:2]
        before = await writer.put("k", b"before")
        machine = await swarm.stop(writer)
        machine.clock.set_by_us = -3600 * 1_000_000
        writer = await swarm.start(machine, via=[reader])
        await writer.bootstrap()
        after = await writer.put("k", b"after")
        assert after.created_at_us == before.created_at_us + 1
        assert not after.superseded
        found = await reader.get("k", latest=True)
        assert found is not None
        assert found.value == b"after"


class SlowDisc(MemoryBackend):
    """To remember own slots takes it a second, in which it takes more of them."""

    def __init__(self) -> None:
        super().__init__()
        self.writing = self.most_at_once = 0

    async def put_own_slots(self, slots: Sequence[OwnSlot]) -> None:
        self.writing += 1
        self.most_at_once = max(self.most_at_once, self.writing)
        try:
            await trio.sleep(1)
            await super().put_own_slots(slots)
        finally:
            self.writing -= 1


async def test_writes_of_different_slots_do_not_wait_for_each_other(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=3) as swarm:
        disc = SlowDisc()
        writer = await swarm.start(swarm.machine(disc=disc), via=[swarm.nodes[0]])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(writer.put, "a", b"1")
            nursery.start_soon(writer.put, "b", b"1")
            nursery.start_soon(writer.put_many, {"c": b"1", "d": b"1"})
        assert disc.most_at_once == 3


async def test_writes_of_one_slot_follow_each_other(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=3) as swarm:
        disc = SlowDisc()
        writer = await swarm.start(swarm.machine(disc=disc), via=[swarm.nodes[0]])
        created_at_us: list[int] = []

        async def put() -> None:
            created_at_us.append((await writer.put("b", b"1")).created_at_us)

        async def put_many() -> None:
            receipts = await writer.put_many({"c": b"1", "b": b"1", "a": b"1"})
            created_at_us.append(receipts[1].created_at_us)

        async with trio.open_nursery() as nursery:
            for write in (put, put_many, put, put_many):
                nursery.start_soon(write)
            await wait_all_tasks_blocked()
            with trio.move_on_after(0.5):  # one that gives up while it waits lets nobody in early
                await writer.put("b", b"never")
        assert disc.most_at_once == 1
        assert len(set(created_at_us)) == 4
        found = await swarm.nodes[0].get("b")
        assert found is not None
        assert found.created_at_us == max(created_at_us)


async def test_what_is_written_of_a_slot_is_signed_in_the_order_in_which_it_came(autojump_clock: MockClock) -> None:
    """Though what came first waits because of another slot that is written with it, and what came next need not."""
    async with open_swarm(seed=1, size=3) as swarm:
        writer = await swarm.start(swarm.machine(disc=SlowDisc()), via=[swarm.nodes[0]])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(writer.put, "a", b"1")
            await wait_all_tasks_blocked()
            nursery.start_soon(writer.put_many, {"a": b"2", "b": b"2"})
            await wait_all_tasks_blocked()
            nursery.start_soon(writer.put, "b", b"3")
        found = await writer.get("b", latest=True)
        assert found is not None
        assert found.value == b"3"


async def test_an_own_slot_is_remembered_before_the_entry_is_sent(autojump_clock: MockClock) -> None:
    """A put that nobody took may have reached somebody all the same: the next one must come after it."""
    async with open_swarm(seed=1, size=2) as swarm:
        client = await swarm.join_client()
        for node in swarm.nodes[:2]:
            swarm.world.silence(node.peer_id)
        with pytest.raises(QueryError):
            await client.put("k", b"lost")
        own = await swarm.machine_of(client).disc.own_slot(Slot(Key(b"/prime/k"), client.peer_id, b""))
        assert own is not None
        assert own.created_at_us >= EPOCH_US


async def test_a_put_by_a_writer_that_forgot_its_slot_and_whose_clock_is_behind_says_superseded(
    autojump_clock: MockClock,
) -> None:
    async with open_swarm(seed=1, size=3) as swarm:
        writer, reader = swarm.nodes[:2]
        await writer.put("k", b"newer")
        machine = await swarm.stop(writer)
        machine.disc = swarm.machine().disc
        machine.clock.set_by_us = -60 * 1_000_000
        writer = await swarm.start(machine, via=[reader])
        await writer.bootstrap()
        receipt = await writer.put("k", b"older")
        assert receipt.superseded
        assert receipt.warning == "a newer entry stands in this slot"
        (many,) = await writer.put_many({"k": b"older still"})
        assert many.superseded
        found = await reader.get("k", quorum=3, latest=True)
        assert found is not None
        assert found.value == b"newer"


async def test_values_keys_and_subkeys_over_their_limits_are_refused_before_anything_is_sent(
    autojump_clock: MockClock,
) -> None:
    async with open_swarm(seed=1, size=2) as swarm:
        node = swarm.nodes[0]
        before = swarm.world.requests.copy()
        with pytest.raises(ValidationError, match="the limit is 65,536"):
            await node.put_many({"k": bytes((64 << 10) + 1)})
        with pytest.raises(ValidationError, match=r"1,024|1024"):
            await node.put("k" * 1024, b"")
        with pytest.raises(ValidationError, match=r"1,024|1024"):
            await node.get("k" * 1024)
        with pytest.raises(ValidationError, match="256"):
            await node.put("k", b"", subkey=bytes(257))
        with pytest.raises(ValidationError):
            await node.put("", b"")
        with pytest.raises(ValidationError):
            await node.put("/prime/own/somebody/k", b"")
        with pytest.raises(ValidationError):
            await node.put_many([("good", b""), ("too large", bytes((64 << 10) + 1))])
        assert swarm.world.requests == before
        assert await node.get("good") is None
        assert (await node.put("k", bytes(64 << 10))).acknowledged


@pytest.mark.parametrize("wrong", ["text", 5, None, [1]])
async def test_a_value_that_is_not_bytes_is_refused(wrong: object, autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=1) as swarm:
        with pytest.raises(ValidationError, match="a value is bytes"):
            await swarm.nodes[0].put("k", wrong)  # type: ignore[arg-type]
        with pytest.raises(ValidationError, match="a value is bytes"):
            await swarm.nodes[0].put_many({"k": wrong})  # type: ignore[arg-type]


@pytest.mark.parametrize("ttl", [0, -1, float("nan"), float("inf"), 31 * 86_400])
async def test_a_ttl_that_no_entry_can_have_is_refused(ttl: float, autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=1) as swarm:
        with pytest.raises(ValidationError):
            await swarm.nodes[0].put("k", b"", ttl=ttl)
        with pytest.raises(ValidationError):
            await swarm.nodes[0].put("k", b"", expires_at=ttl)


async def test_an_own_key_takes_its_owners_entries_alone(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=3) as swarm:
        owner, other = swarm.nodes[:2]
        key = own_key(owner.peer_id, b"profile")
        assert (await owner.put(key, b"mine")).acknowledged
        with pytest.raises(ValidationError):
            await other.put(key, b"not mine")


async def test_a_swarms_nodes_refuse_what_their_own_limits_forbid_and_the_receipt_says_why(
    autojump_clock: MockClock,
) -> None:
    strict = DhtConfig(limits=Limits(max_inline_bytes=10))
    async with open_swarm(seed=1) as swarm:
        await swarm.start(config=strict)
        lax = await swarm.join_client(via=swarm.nodes[0])
        with pytest.raises(QueryError, match="over limit"):
            await lax.put("k", b"more than ten bytes")


async def test_only_members_write_and_delete_under_a_groups_keys(autojump_clock: MockClock) -> None:
    async with open_swarm(seed=1, size=5) as swarm:
        member, stranger = swarm.nodes[1], swarm.nodes[2]
        root = create_new_key_pair(seed=b"r" * 32)
        key = group_key(root.public_key, b"round:1")
        expires_at_us = TimestampUs(swarm.machine_of(member).clock.now_us() + 3600 * US_PER_S)
        capability = grant(root.private_key, member=member.peer_id, expires_at_us=expires_at_us, network_id="prime")
        receipt = await member.put(key, b"mine", ttl=600, capability=capability)
        assert receipt.acknowledged
        with pytest.raises(ValidationError, match="names another member"):
            await stranger.put(key, b"not mine", ttl=600, capability=capability)
        assert (await member.delete(key, capability=capability)).acknowledged
        assert await stranger.get(key, latest=True) is None
