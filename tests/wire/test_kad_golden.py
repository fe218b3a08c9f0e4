"""The bytes of every message, by hand from the tables of the libp2p kad-dht specification and ``protos/kad.proto``.

A field is its tag, ``number << 3 | kind`` (kind 0 a varint, 2 a length and so many bytes), and its value. The tags in
these messages: type 08, key 12, record 1a, closerPeers 42, providerPeers 4a; in a Record key 0a, value 12, timeReceived
2a; in a Peer id 0a, addrs 12, connection 18. prime_dht's own numbers, from 100 on, take two bytes: query a206,
want_closer a806, no_echo b006, replicas ba06, held f006, next_cursor fa06, statuses 8207, replicates 8807, not_held
9007, batch c207.
"""

from __future__ import annotations

import pytest
from libp2p.kad_dht.pb import kademlia_pb2 as libp2p_pb

from prime_dht.ids import Key, OpId, PeerId, kad_key
from prime_dht.wire.kad import (
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

PEER = PeerId(bytes.fromhex("0001aa"))  # an identity multihash of one byte
ADDRESS = bytes.fromhex("047f000001060fa1")  # /ip4/127.0.0.1/tcp/4001
CONNECTED = PeerRecord(PEER, (ADDRESS,), Connection.CONNECTED)
UNKNOWN = PeerRecord(PEER, (ADDRESS,))
KEY = Key(b"/x/k")
MULTIHASH = b"\x00\x01\x07"

# id 0a 03 0001aa, addrs 12 08 <address>, connection 18 01: 5 + 10 + 2 = 17 bytes; without connection 15
CONNECTED_HEX = "0a030001aa" + "1208047f000001060fa1" + "1801"
UNKNOWN_HEX = "0a030001aa" + "1208047f000001060fa1"

REQUESTS: list[tuple[Request, str]] = [
    # type 4, key
    (FindNode(b"ab"), "0804" + "12026162"),
    # type 1, key
    (GetValue(KEY), "0801" + "12042f782f6b"),
    # type 0 is not written; key; record of 6 + 3 bytes: key, value
    (PutValue((Record(KEY, b"v"),)), "12042f782f6b" + "1a09" + "0a042f782f6b" + "120176"),
    # type 2, key, providerPeers of 15 bytes: connection 0 is not written
    (AddProvider(MULTIHASH, (UNKNOWN,)), "0802" + "1203000107" + "4a0f" + UNKNOWN_HEX),
    # type 3, key
    (GetProviders(MULTIHASH), "0803" + "1203000107"),
    # type 5
    (Ping(), "0805"),
]

REPLIES: list[tuple[Request, Reply, str]] = [
    (
        FindNode(b"ab"),
        Reply(closer=(CONNECTED, UNKNOWN)),
        "0804" + "12026162" + "4211" + CONNECTED_HEX + "420f" + UNKNOWN_HEX,
    ),
    (
        GetValue(KEY),
        Reply(record=Record(KEY, b"v", "2023-11-14T22:13:20.000001000Z"), closer=(UNKNOWN,)),
        # record of 6 + 3 + 32 bytes: timeReceived is 30 characters
        "0801"
        + "12042f782f6b"
        + ("1a29" + "0a042f782f6b" + "120176" + "2a1e" + b"2023-11-14T22:13:20.000001000Z".hex())
        + ("420f" + UNKNOWN_HEX),
    ),
    (GetValue(KEY), Reply(), "0801" + "12042f782f6b"),
    (
        PutValue((Record(KEY, b"v"),)),
        Reply(record=Record(KEY, b"v")),
        "12042f782f6b" + "1a09" + "0a042f782f6b" + "120176",
    ),
    (AddProvider(MULTIHASH, (UNKNOWN,)), Reply(), "0802" + "1203000107"),  # on the pipelined protocol only
    (
        GetProviders(MULTIHASH),
        Reply(providers=(UNKNOWN,), closer=(CONNECTED,)),
        "0803" + "1203000107" + "4211" + CONNECTED_HEX + "4a0f" + UNKNOWN_HEX,
    ),
    (Ping(), Reply(), "0805"),
]

EXTENDED_REQUESTS: list[tuple[Request, str]] = [
    # an empty query is written, as a2 06 00: it says that the asker knows queries
    (GetValue(KEY, SlotQuery()), "0801" + "12042f782f6b" + "a20600"),
    (
        # query of 3 + 5 + 2 + 3 + 3 = 16 bytes: subkeys 0a, publishers 12, newest 18, cursor 22, max_bytes 28
        GetValue(KEY, SlotQuery((b"s",), (PEER,), newest=True, cursor=b"c", max_bytes=300)),
        "0801" + "12042f782f6b" + "a20610" + "0a0173" + "12030001aa" + "1801" + "220163" + "28ac02",
    ),
    (
        PutValue((Record(KEY, b"v"),), want_closer=True, no_echo=True, replicas=b"r"),
        "12042f782f6b" + "1a09" + "0a042f782f6b" + "120176" + "a80601" + "b00601" + "ba060172",
    ),
    # batch items: in a GET_VALUE key 12; in a PUT_VALUE record 0a and key 12, and nothing at the top
    (GetValue(Key(b""), None, (KEY, Key(b"/x/l"))), "0801" + "c20706" + "12042f782f6b" + "c20706" + "12042f782f6c"),
    (
        PutValue((Record(KEY, b"v"), Record(Key(b"/x/l"), b"w"))),
        ("c20711" + "0a09" + "0a042f782f6b" + "120176" + "12042f782f6b")
        + ("c20711" + "0a09" + "0a042f782f6c" + "120177" + "12042f782f6c"),
    ),
]

EXTENDED_REPLIES: list[tuple[Request, Reply, str]] = [
    (
        GetValue(KEY),
        Reply(held=True, next_cursor=b"c", replicates=True),
        "0801" + "12042f782f6b" + "f00601" + "fa060163" + "880701",
    ),
    (GetValue(KEY), Reply(not_held=True), "0801" + "12042f782f6b" + "900701"),
    (
        # statuses of 34 + 2 + 6 = 42 bytes: op_id 0a of 32 bytes, code 10, reason 1a
        PutValue((Record(KEY, b"v"),), no_echo=True),
        Reply(statuses=(EntryStatus(OpId(b"\x11" * 32), StatusCode.REFUSED, "full"),)),
        "12042f782f6b" + "82072a" + "0a20" + "11" * 32 + "1003" + "1a0466756c6c",
    ),
    (
        # batch items: record 0a of 9 bytes; held 20; nothing; record, next_cursor 2a and not_held 30
        GetValue(Key(b""), None, (KEY, KEY, KEY, KEY)),
        Reply(
            batch=(
                BatchReply(Record(KEY, b"v")),
                BatchReply(held=True),
                BatchReply(),
                BatchReply(Record(KEY, b"v"), next_cursor=b"c", not_held=True),
            )
        ),
        "0801" + "c2070b" + "0a09" + "0a042f782f6b" + "120176" + "c20702" + "2001" + "c20700"
        "c20710" + "0a09" + "0a042f782f6b" + "120176" + "2a0163" + "3001",
    ),
    # rust-libp2p's additions to a record, publisher 666 (d229) and ttl 777 (c830), are passed on: 6 + 3 + 4 + 4 bytes
    (
        GetValue(KEY),
        Reply(record=Record(KEY, b"v", publisher=b"p", ttl_s=300)),
        "0801" + "12042f782f6b" + "1a11" + "0a042f782f6b" + "120176" + "d2290170" + "c830ac02",
    ),
]


@pytest.mark.parametrize(("request_", "golden"), REQUESTS + EXTENDED_REQUESTS)
def test_a_request_has_these_bytes(request_: Request, golden: str) -> None:
    assert encode_request(request_).hex() == golden
    assert decode_request(bytes.fromhex(golden)) == request_


@pytest.mark.parametrize(("request_", "reply", "golden"), REPLIES + EXTENDED_REPLIES)
def test_a_reply_has_these_bytes(request_: Request, reply: Reply, golden: str) -> None:
    assert encode_reply(request_, reply).hex() == golden
    assert decode_reply(request_, bytes.fromhex(golden)) == reply


@pytest.mark.parametrize(("request_", "golden"), REQUESTS)
def test_py_libp2p_encodes_a_plain_request_in_the_same_bytes(request_: Request, golden: str) -> None:
    message = libp2p_pb.Message.FromString(bytes.fromhex(golden))
    message.DiscardUnknownFields()
    assert message.SerializeToString().hex() == golden


@pytest.mark.parametrize(("request_", "reply", "golden"), REPLIES)
def test_py_libp2p_encodes_a_plain_reply_in_the_same_bytes(request_: Request, reply: Reply, golden: str) -> None:
    message = libp2p_pb.Message.FromString(bytes.fromhex(golden))
    message.DiscardUnknownFields()
    assert message.SerializeToString().hex() == golden


@pytest.mark.parametrize(
    ("point", "digest"),
    [
        (
            "0024080112209e3b433cbd31c2b8a6ebbdca998bd0f4c2141c9c9af5422e976051b1e63af14d",
            "e43d28f0996557c0d5571d75c62a57a59d7ac1d30a51ecedcdb9d5e4afa56100",
        ),
        (
            "1220e536c7f88d731f374dccb568aff6f56e838a19382e488039b1ca8ad2599e82fe",
            "d623250f3f660ab4c3a53d3c97b3f6a0194c548053488d093520206248253bcb",
        ),
    ],
)
def test_a_peer_lies_at_the_sha_256_of_its_id(point: str, digest: str) -> None:
    assert f"{kad_key(bytes.fromhex(point)):064x}" == digest
