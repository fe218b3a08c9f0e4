"""What a node answers: peers, entries and pings. Plain records and providers are in ``test_server_records.py``."""

from __future__ import annotations

import pytest
import trio

from prime_dht.config import DhtConfig
from prime_dht.entries.codec import decode_entry_set, encode_entry_set, inline
from prime_dht.entries.entry import Entry, EntryHeader
from prime_dht.entries.signing import sign_entry
from prime_dht.errors import RemoteProtocolError, ValidationError
from prime_dht.ids import EMPTY_KEY, US_PER_S, Key, PeerId, TimestampUs, kad_key
from prime_dht.kad.replicas import digest
from prime_dht.node.server import ENTRIES_PER_TURN, MAX_ENTRIES_PER_RECORD, MAX_REPLY_VALUE_BYTES
from prime_dht.testing.serving import ASKER, LOCAL, NOW_US, Serving
from prime_dht.testing.storage_samples import WRITERS
from prime_dht.wire.frames import MAX_FRAME_BYTES
from prime_dht.wire.kad import (
    Connection,
    FindNode,
    GetValue,
    Ping,
    PutValue,
    Record,
    Reply,
    SlotQuery,
    StatusCode,
    encode_reply,
    encode_request,
)

KEY = Key(b"/prime/model")
ADDRESS = bytes.fromhex("047f000001060fa1")


def entry(
    value: bytes = b"value", *, key: Key = KEY, writer: int = 0, subkey: bytes = b"", created_at_us: int = NOW_US
) -> Entry:
    header = EntryHeader(
        network_id="prime",
        key=key,
        subkey=subkey,
        created_at_us=TimestampUs(created_at_us),
        expires_at_us=TimestampUs(NOW_US + 3600 * US_PER_S),
        retain_until_us=TimestampUs(NOW_US + 3600 * US_PER_S),
        content=inline(value),
    )
    return sign_entry(header, WRITERS[writer], value)


def record(*entries: Entry, key: Key = KEY) -> Record:
    return Record(key, encode_entry_set(entries))


def values_in(reply: Reply) -> list[bytes | None]:
    assert reply.record is not None
    found = decode_entry_set(reply.record.value, max_entries=1000)
    return [each.value for each in found if isinstance(each, Entry)]


def nearest(peers: list[PeerId], key: bytes) -> list[PeerId]:
    return sorted(peers, key=lambda peer: kad_key(peer) ^ kad_key(key))


# FIND_NODE


async def test_find_node_names_the_k_closest_nearest_first() -> None:
    serving = Serving(DhtConfig(k_bucket_size=5, alpha=3))
    peers = serving.meet(30)
    reply = await serving.handle(FindNode(b"target"))
    assert [each.peer for each in reply.closer] == nearest(peers, b"target")[:5]
    assert all(each.addresses for each in reply.closer)


async def test_find_node_never_names_the_asker_and_names_k_others_instead() -> None:
    serving = Serving(DhtConfig(k_bucket_size=5, alpha=3))
    peers = serving.meet(30)
    asker, *others = nearest(peers, b"target")
    reply = await serving.handle(FindNode(b"target"), asker=asker)
    assert [each.peer for each in reply.closer] == others[:5]
    assert asker not in [each.peer for each in (await serving.handle(FindNode(asker), asker=asker)).closer]


async def test_find_node_for_the_node_itself_names_it_first_with_its_listen_addresses() -> None:
    serving = Serving()
    peers = serving.meet(3)
    reply = await serving.handle(FindNode(LOCAL))
    first, *others = reply.closer
    assert (first.peer, first.addresses) == (LOCAL, serving.network.own_addresses())
    assert {each.peer for each in others} == set(peers)


async def test_find_node_adds_the_exact_target_beyond_the_k_closest_if_its_address_is_known() -> None:
    serving = Serving(DhtConfig(k_bucket_size=2, alpha=1, replication_factor=1))
    serving.meet(30)
    stranger = PeerId(b"\x00\x04away")
    assert stranger not in [each.peer for each in (await serving.handle(FindNode(stranger))).closer]
    serving.network.learn_addresses(stranger, [ADDRESS], source="kad")
    reply = await serving.handle(FindNode(stranger))
    assert reply.closer[0].peer == stranger
    assert reply.closer[0].addresses == (ADDRESS,)
    assert len(reply.closer) == 3


async def test_find_node_names_a_target_once_that_is_among_the_closest() -> None:
    serving = Serving()
    (peer,) = serving.meet(1)
    reply = await serving.handle(FindNode(peer))
    assert [(each.peer, each.connection) for each in reply.closer] == [(peer, Connection.NOT_CONNECTED)]


async def test_ping_is_answered() -> None:
    assert await Serving().handle(Ping()) == Reply(replicates=True)


async def test_a_client_does_not_claim_to_replicate() -> None:
    assert await Serving(is_server=False).handle(Ping()) == Reply()


# PUT_VALUE of entries


async def test_a_put_entry_is_stored_and_echoed_and_a_get_returns_it() -> None:
    serving = Serving()
    serving.meet(5)
    put = record(entry(b"v"))
    reply = await serving.handle(PutValue((put,)))
    assert [(status.op_id, status.code) for status in reply.statuses] == [(entry(b"v").op_id, StatusCode.STORED)]
    assert reply.record is not None
    assert (reply.record.key, reply.record.value) == (put.key, put.value)
    got = await serving.handle(GetValue(KEY))
    assert values_in(got) == [b"v"]
    assert got.record is not None
    assert got.record.time_received == "2023-11-14T22:13:20.000001000Z"  # RFC 3339 with nanoseconds, by our own clock
    assert len(got.closer) == 5


async def test_an_echo_carries_no_peers_and_nothing_of_what_came_beside_the_record() -> None:
    serving = Serving()
    serving.meet(5)
    stuffed = Record(KEY, record(entry()).value, "yesterday", ASKER, 7)
    reply = await serving.handle(PutValue((stuffed,)))
    assert reply.closer == ()
    assert reply.providers == ()
    assert reply.record == Record(KEY, stuffed.value, "2023-11-14T22:13:20.000001000Z")


async def test_the_extensions_leave_the_echo_out_and_bring_closer_peers() -> None:
    serving = Serving(DhtConfig(replication_factor=2))
    peers = serving.meet(30)
    reply = await serving.handle(PutValue((record(entry()),), want_closer=True, no_echo=True))
    assert reply.record is None
    assert [each.peer for each in reply.closer] == nearest(peers, KEY)[:2]
    assert [status.code for status in reply.statuses] == [StatusCode.STORED]


async def test_who_knows_the_same_replicas_is_told_of_no_closer_peers() -> None:
    serving = Serving(DhtConfig(replication_factor=3))
    peers = serving.meet(30)
    same = [serving.neighbourhood.contact(peer) for peer in nearest([*peers, LOCAL], KEY)[:3]]
    other = [serving.neighbourhood.contact(peer) for peer in nearest([*peers, LOCAL], KEY)[1:4]]

    async def told(replicas: bytes) -> int:
        put = PutValue((record(entry()),), want_closer=True, no_echo=True, replicas=replicas)
        reply = await serving.handle(put)
        assert [status.code for status in reply.statuses] == [StatusCode.STORED]
        return len(reply.closer)

    assert [await told(replicas) for replicas in (digest(same), digest(other), b"", b"no digest")] == [0, 3, 3, 3]


async def test_every_entry_gets_its_own_status_in_order() -> None:
    serving = Serving()
    old, new = entry(b"old"), entry(b"new", created_at_us=NOW_US + 1)
    await serving.handle(PutValue((record(new),)))
    assert serving.server.stored == 1
    later = entry(b"later", writer=1, created_at_us=NOW_US + 3600 * US_PER_S - 1)
    large = entry(b"x" * 1000, writer=2)
    other_network = sign_entry(
        EntryHeader(
            network_id="other",
            key=KEY,
            created_at_us=TimestampUs(NOW_US),
            expires_at_us=TimestampUs(NOW_US + 1),
            retain_until_us=TimestampUs(NOW_US + 1),
            content=inline(b""),
        ),
        WRITERS[0],
        b"",
    )
    reply = await serving.handle(PutValue((record(old, new, later, other_network, large),)))
    assert [status.code for status in reply.statuses] == [
        StatusCode.SUPERSEDED,
        StatusCode.STORED,
        StatusCode.DEFERRED,
        StatusCode.REFUSED,
        StatusCode.STORED,
    ]
    assert "network" in reply.statuses[3].reason
    assert serving.server.stored == 2


@pytest.mark.parametrize(
    "bad",
    [
        Record(KEY, b"\xff\xff"),  # no entry set
        Record(KEY, b"\x0a\x02\x0a\x00"),  # an entry without an envelope
        record(entry(key=Key(b"/prime/other"))),  # an entry of another key
        Record(Key(b"/prime"), b""),  # no key of the form /<namespace>/<rest>
        Record(Key(b"prime/model"), b""),
    ],
)
async def test_what_no_honest_peer_puts_is_a_breach_of_protocol_and_nothing_is_stored(bad: Record) -> None:
    serving = Serving()
    with pytest.raises(RemoteProtocolError):
        await serving.handle(PutValue((bad,)))
    assert (await serving.storage.stats()).entries == 0


async def test_a_key_that_is_empty_behind_its_namespace_is_refused_and_no_breach_of_protocol() -> None:
    """An application comes to ask for it by mistake, and its node would be backed off."""
    serving = Serving()
    for request in (
        GetValue(EMPTY_KEY),
        GetValue(Key(b""), SlotQuery(), (KEY, EMPTY_KEY)),
        PutValue((Record(EMPTY_KEY, b""),)),
    ):
        with pytest.raises(ValidationError, match="empty behind /prime/"):
            await serving.handle(request)


async def test_a_forged_signature_is_the_relayers_fault() -> None:
    genuine, other = entry(b"v"), entry(b"w")
    signature, others_signature = genuine.envelope[-64:], other.envelope[-64:]
    forged = Record(KEY, record(genuine).value.replace(signature, others_signature))
    assert forged != record(genuine)
    with pytest.raises(RemoteProtocolError, match="signature"):
        await Serving().handle(PutValue((forged,)))


async def test_a_batch_is_stored_and_answered_by_statuses_alone() -> None:
    serving = Serving()
    keys = [Key(b"/prime/%d" % number) for number in range(3)]
    reply = await serving.handle(PutValue(tuple(record(entry(key=key), key=key) for key in keys), want_closer=True))
    assert [status.code for status in reply.statuses] == [StatusCode.STORED] * 3
    assert reply.record is None
    assert reply.closer == ()
    with pytest.raises(RemoteProtocolError, match="batched"):
        await serving.handle(PutValue((record(entry()), Record(Key(b"/pk/x"), b""))))


async def test_a_request_has_no_more_entries_than_there_can_be_statuses_over_all_its_records() -> None:
    half = Record(KEY, b"\x0a\x00" * (MAX_ENTRIES_PER_RECORD // 2))
    one = Record(KEY, b"\x0a\x00")
    with pytest.raises(RemoteProtocolError, match="at most"):
        await Serving().handle(PutValue((half, half, one)))


async def test_others_get_a_turn_while_many_entries_are_judged() -> None:
    turns = 0
    judged = trio.Event()

    async def others() -> None:
        nonlocal turns
        while not judged.is_set():
            turns += 1
            await trio.lowlevel.checkpoint()

    serving = Serving()
    many = [entry(subkey=b"%d" % number) for number in range(4 * ENTRIES_PER_TURN)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(others)
        await serving.handle(PutValue((record(*many),)))
        judged.set()
    assert turns >= 3


async def test_a_record_whose_echo_and_statuses_might_not_fit_into_a_frame_is_not_echoed() -> None:
    serving = Serving()
    many = [entry(b"x" * 60_000, subkey=b"%d" % number) for number in range(40)]
    request = PutValue((record(*many),))
    assert MAX_FRAME_BYTES // 2 < len(encode_request(request)) < MAX_FRAME_BYTES
    reply = await serving.handle(request)
    assert [status.code for status in reply.statuses] == [StatusCode.STORED] * 40
    assert reply.record is None


# GET_VALUE of entries


async def test_a_get_that_finds_nothing_names_closer_peers() -> None:
    serving = Serving()
    peers = serving.meet(3)
    reply = await serving.handle(GetValue(KEY))
    assert reply.record is None
    assert {each.peer for each in reply.closer} == set(peers)
    assert not reply.held


async def test_a_reader_that_says_what_it_wants_and_finds_it_is_named_nobody_closer() -> None:
    serving = Serving()
    serving.meet(3)
    await serving.handle(PutValue((record(entry(b"a"), entry(b"b", subkey=b"s")),)))
    found = await serving.handle(GetValue(KEY, SlotQuery(subkeys=(b"s",))))
    assert values_in(found) == [b"b"]
    assert found.closer == ()
    assert len((await serving.handle(GetValue(KEY, SlotQuery(subkeys=(b"t",))))).closer) == 3


async def test_a_lone_server_says_that_it_holds_what_it_has_not() -> None:
    serving = Serving()
    assert not (await serving.handle(GetValue(KEY))).held  # it may not have met the others yet
    serving.neighbourhood.looked_up_itself(None)
    reply = await serving.handle(GetValue(KEY))
    assert reply.record is None
    assert reply.held


async def test_large_answers_come_in_pages() -> None:
    serving = Serving()
    await serving.handle(PutValue((record(*(entry(b"x" * 60_000, subkey=b"%02d" % n) for n in range(30))),)))
    first = await serving.handle(GetValue(KEY, SlotQuery(max_bytes=1 << 30)))
    assert len(encode_reply(GetValue(KEY), first)) < MAX_REPLY_VALUE_BYTES + (64 << 10)
    assert first.next_cursor
    second = await serving.handle(GetValue(KEY, SlotQuery(cursor=first.next_cursor)))
    assert not second.next_cursor
    assert len(values_in(first)) + len(values_in(second)) == 30
    small = await serving.handle(GetValue(KEY, SlotQuery(max_bytes=1)))
    assert len(values_in(small)) == 1


async def test_a_batch_answers_for_its_first_keys_as_far_as_one_reply_goes_and_for_one_at_least() -> None:
    serving = Serving()
    keys = [Key(b"/prime/%02d" % number) for number in range(30)]
    for key in keys:
        await serving.handle(PutValue((record(entry(b"x" * 60_000, key=key), key=key),)))
    reply = await serving.handle(GetValue(Key(b""), None, (Key(b"/prime/none"), *keys)))
    assert reply.batch[0].record is None
    assert [each.record.key for each in reply.batch[1:] if each.record is not None] == keys[: len(reply.batch) - 1]
    assert 10 < len(reply.batch) < 30


async def test_a_batch_whose_first_record_takes_more_than_a_reply_is_meant_to_have_is_answered_for_that_one() -> None:
    serving = Serving()
    probe = entry(b"x" * 32_000, subkey=b"00")
    size = 32_000 + MAX_REPLY_VALUE_BYTES // 32 - probe.size_bytes
    full = record(*(entry(b"x" * size, subkey=b"%02d" % number) for number in range(32)))
    assert len(full.value) > MAX_REPLY_VALUE_BYTES  # by what encoding adds to 32 entries of 32 KiB
    await serving.handle(PutValue((full,)))
    assert len((await serving.handle(GetValue(Key(b""), None, (KEY, KEY)))).batch) == 1


async def test_a_batch_says_of_which_keys_there_is_more() -> None:
    serving = Serving()
    other = Key(b"/prime/other")
    pages = [entry(b"x" * 60_000, subkey=b"%02d" % number) for number in range(20)]
    await serving.handle(PutValue((record(*pages),)))
    await serving.handle(PutValue((record(entry(key=other), key=other),)))
    small = SlotQuery(max_bytes=100_000)
    of_other, of_key = (await serving.handle(GetValue(Key(b""), small, (other, KEY)))).batch
    assert not of_other.next_cursor
    assert of_key.next_cursor == (await serving.handle(GetValue(KEY, small))).next_cursor != b""


async def test_a_batch_is_for_entries_alone() -> None:
    with pytest.raises(RemoteProtocolError, match="batched"):
        await Serving().handle(GetValue(Key(b""), None, (KEY, Key(b"/pk/x"))))
