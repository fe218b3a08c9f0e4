"""The Kademlia messages: what is written is read back, and what a hostile peer writes is bounded."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prime_dht.errors import RemoteProtocolError
from prime_dht.ids import Key, OpId, PeerId
from prime_dht.pb import kad_pb2 as pb
from prime_dht.wire.frames import MAX_FRAME_BYTES
from prime_dht.wire.kad import (
    ADDRESS_BYTES_SENT,
    MAX_ADDRESS_BYTES,
    MAX_ADDRESSES_PER_PEER,
    MAX_BATCH,
    MAX_CURSOR_BYTES,
    MAX_KEY_BYTES,
    MAX_MULTIHASH_BYTES,
    MAX_PEERS_READ,
    MAX_STATUSES,
    AddProvider,
    BatchReply,
    Connection,
    EntryStatus,
    FindNode,
    GetProviders,
    GetValue,
    PeerRecord,
    Ping,
    PutValue,
    Record,
    Reply,
    Request,
    SlotQuery,
    StatusCode,
    decode_reply,
    decode_request,
    encode_reply,
    encode_request,
)

RUST_FRAME_BYTES = 16 << 10
KEY = Key(b"/x/k")


def peer(number: int) -> PeerId:
    """An Ed25519 peer id, of which only the last bytes differ."""
    return PeerId(bytes.fromhex("002408011220") + number.to_bytes(32, "big"))


keys = st.binary(min_size=1, max_size=40).map(Key)
texts = st.text(max_size=10)
peers = st.integers(0, 2**256 - 1).map(peer)
addresses = st.lists(st.binary(min_size=1, max_size=12), max_size=3).map(tuple)
peer_records = st.lists(st.builds(PeerRecord, peers, addresses, st.sampled_from(Connection)), max_size=5).map(tuple)
records = st.builds(Record, keys, st.binary(max_size=20), texts, st.binary(max_size=5), st.integers(0, 2**32 - 1))
queries = st.builds(
    SlotQuery,
    st.lists(st.binary(max_size=5), max_size=3).map(tuple),
    st.lists(peers, max_size=2).map(tuple),
    st.booleans(),
    st.binary(max_size=20),
    st.integers(0, 2**32 - 1),
)
multihashes = st.binary(min_size=1, max_size=MAX_MULTIHASH_BYTES)
requests: st.SearchStrategy[Request] = st.one_of(
    st.builds(FindNode, keys),
    st.builds(GetValue, keys, st.none() | queries),
    st.builds(
        GetValue,
        st.just(Key(b"")),
        st.none() | queries,
        st.lists(keys, min_size=1, max_size=4).map(lambda all_: (*all_,)),
    ),
    st.builds(
        PutValue,
        st.lists(records, min_size=1, max_size=4).map(tuple),
        st.booleans(),
        st.booleans(),
        st.binary(max_size=8),
    ),
    st.builds(AddProvider, multihashes, peer_records),
    st.builds(GetProviders, multihashes),
    st.just(Ping()),
)
statuses = st.builds(EntryStatus, st.binary(min_size=32, max_size=32).map(OpId), st.sampled_from(StatusCode), texts)
replies = st.builds(
    Reply,
    record=st.none() | records,
    closer=peer_records,
    providers=peer_records,
    held=st.booleans(),
    next_cursor=st.binary(max_size=20),
    statuses=st.lists(statuses, max_size=3).map(tuple),
    replicates=st.booleans(),
    batch=st.lists(
        st.builds(BatchReply, st.none() | records, st.booleans(), st.binary(max_size=20), st.booleans()), max_size=3
    ).map(tuple),
    not_held=st.booleans(),
)


@settings(derandomize=True, deadline=None)
@given(requests)
def test_a_request_is_read_back(request: Request) -> None:
    assert decode_request(encode_request(request)) == request


@settings(derandomize=True, deadline=None)
@given(requests, replies)
def test_a_reply_is_read_back(request: Request, reply: Reply) -> None:
    assert decode_reply(request, encode_reply(request, reply)) == reply


@settings(derandomize=True, deadline=None, max_examples=300)
@given(st.binary(max_size=100) | st.builds(bytes.__add__, st.sampled_from([b"\x08\x01", b"\x12\x01k"]), st.binary()))
def test_arbitrary_bytes_give_a_message_or_a_remote_protocol_error(data: bytes) -> None:
    readers: list[Callable[[bytes], object]] = [decode_request, lambda body: decode_reply(Ping(), body)]
    for read in readers:
        try:
            read(data)
        except RemoteProtocolError:
            continue


@settings(derandomize=True, deadline=None)
@given(requests, st.data())
def test_a_request_with_a_byte_changed_gives_a_request_or_a_remote_protocol_error(
    request: Request, data: st.DataObject
) -> None:
    body = bytearray(encode_request(request))
    body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        decode_request(bytes(body))
    except RemoteProtocolError:
        return


@pytest.mark.parametrize(
    "body",
    [
        b"\xff",  # no protobuf
        b"\x08\x06",  # no such type
        b"\x08\x04",  # FIND_NODE without a key
        b"\x08\x01",  # GET_VALUE without a key
        b"",  # PUT_VALUE without a record
        b"\x12\x04/x/k",  # likewise
        b"\x12\x04/x/k" + b"\x1a\x06\x0a\x04/x/l",  # the record's key is another
        b"\x12\x04/x/k" + b"\x1a\x03\x12\x01v",  # the record has no key
        b"\x1a\x06\x0a\x04/x/k",  # the message has no key
        b"\x12\x04/x/k" + b"\x1a\x09\x0a\x04/x/k\x2a\x01\xff",  # timeReceived is not UTF-8
        b"\x08\x02",  # ADD_PROVIDER without a key
        b"\x08\x03\x12" + bytes((MAX_MULTIHASH_BYTES + 1,)) + bytes(MAX_MULTIHASH_BYTES + 1),
    ],
)
def test_a_request_that_lacks_what_its_type_needs_is_refused(body: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_request(body)


def test_a_multihash_may_have_80_bytes() -> None:
    assert decode_request(encode_request(GetProviders(bytes(80)))) == GetProviders(bytes(80))


@pytest.mark.parametrize("kind", [pb.Message.FIND_NODE, pb.Message.GET_VALUE, pb.Message.PUT_VALUE])
def test_a_key_of_more_than_64_kib_is_refused(kind: pb.Message.MessageType.ValueType) -> None:
    key = bytes(MAX_KEY_BYTES + 1)
    with pytest.raises(RemoteProtocolError, match="key"):
        decode_request(pb.Message(type=kind, key=key, record=pb.Record(key=key)).SerializeToString())


@pytest.mark.parametrize("kind", [pb.Message.GET_VALUE, pb.Message.PUT_VALUE])
def test_a_batch_has_up_to_256_items_each_with_a_key_and_nothing_beside_it(
    kind: pb.Message.MessageType.ValueType,
) -> None:
    item = pb.BatchItem(key=KEY, record=pb.Record(key=KEY))
    decode_request(pb.Message(type=kind, batch=[item] * MAX_BATCH).SerializeToString())
    for bad in (
        pb.Message(type=kind, batch=[item] * (MAX_BATCH + 1)),
        pb.Message(type=kind, batch=[item], key=KEY),
        pb.Message(type=kind, batch=[item, pb.BatchItem(record=pb.Record(value=b"v"))]),
    ):
        with pytest.raises(RemoteProtocolError):
            decode_request(bad.SerializeToString())


@pytest.mark.parametrize(
    "query",
    [
        pb.Query(subkeys=[b"s"] * (MAX_BATCH + 1)),
        pb.Query(publishers=[peer(1)] * (MAX_BATCH + 1)),
        pb.Query(cursor=bytes(MAX_CURSOR_BYTES + 1)),
    ],
)
def test_a_query_that_is_too_long_is_refused(query: pb.Query) -> None:
    with pytest.raises(RemoteProtocolError, match="query"):
        decode_request(pb.Message(type=pb.Message.GET_VALUE, key=KEY, query=query).SerializeToString())


def test_a_query_may_be_as_long_as_a_batch_and_its_cursor_as_one_that_is_told() -> None:
    longest = SlotQuery((b"s",) * MAX_BATCH, (peer(1),) * MAX_BATCH, cursor=bytes(MAX_CURSOR_BYTES))
    assert decode_request(encode_request(GetValue(KEY, longest))) == GetValue(KEY, longest)
    told = Reply(next_cursor=bytes(MAX_CURSOR_BYTES))
    assert decode_reply(GetValue(KEY), encode_reply(GetValue(KEY), told)) == told


def test_unknown_fields_and_the_noise_of_others_are_skipped() -> None:
    message = pb.Message(type=pb.Message.FIND_NODE, key=KEY, clusterLevelRaw=-1)
    py_libp2p_sender_record = b"\x5a\x03abc"  # field 11
    a_later_extension = b"\xc2\x3e\x01x"  # field 1000
    body = message.SerializeToString() + py_libp2p_sender_record + a_later_extension
    assert decode_request(body) == FindNode(KEY)
    assert decode_reply(FindNode(KEY), body) == Reply()


def test_a_reply_may_leave_its_key_out_but_not_have_that_of_another_request() -> None:
    asked = GetProviders(b"\x00\x01a")
    assert decode_reply(asked, pb.Message(type=pb.Message.GET_PROVIDERS).SerializeToString()) == Reply()
    with pytest.raises(RemoteProtocolError, match="another"):
        decode_reply(asked, encode_reply(GetProviders(b"\x00\x01b"), Reply()))


def test_a_reply_of_another_type_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="another"):
        decode_reply(GetValue(KEY), encode_reply(FindNode(KEY), Reply()))


def test_a_reply_with_more_statuses_than_entries_can_be_put_is_refused() -> None:
    status = pb.EntryStatus(code=pb.EntryStatus.STORED)
    body = pb.Message(statuses=[status] * MAX_STATUSES).SerializeToString()
    request = PutValue((Record(KEY, b""), Record(KEY, b"")))
    assert len(decode_reply(request, body).statuses) == MAX_STATUSES
    with pytest.raises(RemoteProtocolError, match="statuses"):
        decode_reply(request, body + b"\x82\x07\x00")


@pytest.mark.parametrize("in_batch", [False, True])
def test_a_reply_with_a_cursor_that_could_not_be_sent_back_is_refused(in_batch: bool) -> None:
    message = pb.Message(type=pb.Message.GET_VALUE)
    (message.batch.add() if in_batch else message).next_cursor = bytes(MAX_CURSOR_BYTES + 1)
    with pytest.raises(RemoteProtocolError, match="cursor"):
        decode_reply(GetValue(KEY), message.SerializeToString())


def test_a_status_and_a_connection_of_a_later_version_are_read_as_unknown() -> None:
    body = pb.Message(type=pb.Message.PING).SerializeToString()
    body += b"\x82\x07\x02\x10\x63"  # a status with code 99
    body += b"\x42\x07\x0a\x03\x00\x01\xaa\x18\x63"  # a closer peer with connection 99
    reply = decode_reply(Ping(), body)
    assert reply.statuses[0].code is StatusCode.UNSPECIFIED
    assert reply.closer[0].connection is Connection.NOT_CONNECTED


def test_of_2000_addresses_in_one_provider_record_16_are_read() -> None:
    provider = pb.Message.Peer(id=peer(1), addrs=[number.to_bytes(8, "big") for number in range(2000)])
    message = pb.Message(type=pb.Message.ADD_PROVIDER, key=b"\x00\x01a", providerPeers=[provider])
    request = decode_request(message.SerializeToString())
    assert isinstance(request, AddProvider)
    assert request.providers[0].addresses == tuple(number.to_bytes(8, "big") for number in range(16))


def test_of_a_flood_of_peers_64_are_looked_at_and_those_without_a_peer_id_dropped() -> None:
    flood = [pb.Message.Peer(id=peer(number)) for number in range(1000)]
    flood[1].id = b"not a multihash"
    reply = decode_reply(Ping(), pb.Message(type=pb.Message.PING, closerPeers=flood).SerializeToString())
    assert [record.peer for record in reply.closer] == [peer(number) for number in range(MAX_PEERS_READ) if number != 1]


def test_an_address_that_is_empty_or_too_long_is_dropped_and_the_peer_kept() -> None:
    given_ = pb.Message.Peer(id=peer(1), addrs=[b"", b"a" * MAX_ADDRESS_BYTES, b"a" * (MAX_ADDRESS_BYTES + 1), b"b"])
    reply = decode_reply(Ping(), pb.Message(type=pb.Message.PING, closerPeers=[given_]).SerializeToString())
    assert reply.closer == (PeerRecord(peer(1), (b"a" * MAX_ADDRESS_BYTES, b"b")),)


@pytest.mark.parametrize("size", [1, 8, 40, 127, 128, MAX_ADDRESS_BYTES])
def test_a_reply_with_20_peers_of_2000_addresses_each_is_below_16_kib_and_names_them_all(size: int) -> None:
    closer = tuple(PeerRecord(peer(number), (bytes(size),) * 2000, Connection.CONNECTED) for number in range(21))
    body = encode_reply(FindNode(KEY), Reply(closer=closer))
    assert len(body) < RUST_FRAME_BYTES
    named = decode_reply(FindNode(KEY), body).closer
    assert [record.peer for record in named] == [record.peer for record in closer]
    for record in named:
        assert 1 <= len(record.addresses) <= MAX_ADDRESSES_PER_PEER
        assert sum(map(len, record.addresses)) <= ADDRESS_BYTES_SENT


def test_providers_with_the_longest_addresses_do_not_crowd_out_those_behind_them() -> None:
    hostile = tuple(PeerRecord(peer(number), (bytes(MAX_ADDRESS_BYTES),) * 16) for number in range(5))
    honest = PeerRecord(peer(100), (b"\x04\x7f\x00\x00\x01\x06\x0f\xa1",))
    request = GetProviders(b"\x00\x01a")
    body = encode_reply(request, Reply(providers=(*hostile, honest), closer=(honest,) * 20))
    assert honest in decode_reply(request, body).providers
    assert len(body) < RUST_FRAME_BYTES


def test_a_hundred_providers_leave_room_for_the_closer_peers() -> None:
    address = b"\x04\x7f\x00\x00\x01\x06\x0f\xa1"
    many = tuple(PeerRecord(peer(number), (address,) * 8) for number in range(100))
    request = GetProviders(b"\x00\x01a")
    reply = decode_reply(request, encode_reply(request, Reply(providers=many, closer=many[:20])))
    assert len(reply.providers) > 40
    assert reply.closer == many[:20]


@settings(derandomize=True, deadline=None)
@given(st.lists(st.builds(PeerRecord, peers, st.lists(st.binary(max_size=300), max_size=30).map(tuple)), max_size=100))
def test_no_reply_of_peers_exceeds_16_kib(flood: list[PeerRecord]) -> None:
    request = GetProviders(bytes(MAX_MULTIHASH_BYTES))
    body = encode_reply(request, Reply(providers=tuple(flood), closer=tuple(flood), replicates=True))
    assert len(body) < RUST_FRAME_BYTES


def test_a_frame_full_of_empty_messages_is_refused_or_cut_without_a_python_object_for_each() -> None:
    with pytest.raises(RemoteProtocolError):
        decode_request(b"\x08\x01" + b"\xc2\x07\x00" * (MAX_FRAME_BYTES // 64))
    with pytest.raises(RemoteProtocolError, match="at most 8192 fields"):
        decode_reply(Ping(), b"\x08\x05" + b"\x42\x00" * (MAX_FRAME_BYTES // 64))
    reply = decode_reply(Ping(), b"\x08\x05" + b"\x42\x00" * 8000)
    assert reply.closer == ()
