"""What is read of a Bitswap message, and what is not."""

from __future__ import annotations

import pytest

from prime_dht.blobs.cid import Cid
from prime_dht.errors import RemoteProtocolError
from prime_dht.pb.bitswap_pb2 import Message
from prime_dht.wire.bitswap import (
    MAX_CID_BYTES,
    MAX_WANTLIST_BYTES,
    MAX_WANTS_READ,
    Want,
    Wantlist,
    decode_wantlist,
)


def body(*wants: Message.Wantlist.Entry, full: bool = False) -> bytes:
    return Message(wantlist=Message.Wantlist(entries=wants, full=full)).SerializeToString()


def test_each_want_says_what_it_is_about() -> None:
    entry = Message.Wantlist.Entry
    wants = (
        entry(block=b"a"),
        entry(block=b"b", cancel=True),
        entry(block=b"c", wantType=Message.Wantlist.Have),
        entry(block=b"d", sendDontHave=True),
    )
    told = (
        Want(b"a", is_cancelled=False, presence_only=False, tell_absence=False),
        Want(b"b", is_cancelled=True, presence_only=False, tell_absence=False),
        Want(b"c", is_cancelled=False, presence_only=True, tell_absence=False),
        Want(b"d", is_cancelled=False, presence_only=False, tell_absence=True),
    )
    assert decode_wantlist(body(*wants)) == Wantlist(told, is_full=False)
    assert decode_wantlist(body(full=True)) == Wantlist((), is_full=True)


def test_a_want_of_what_is_too_long_for_a_cid_is_left_out() -> None:
    longest, longer = bytes(MAX_CID_BYTES), bytes(MAX_CID_BYTES + 1)
    wants = (Message.Wantlist.Entry(block=cid) for cid in (longer, longest))
    assert [want.cid for want in decode_wantlist(body(*wants)).wants] == [longest]


def test_of_a_message_as_many_wants_are_read_as_can_name_a_block() -> None:
    entry = Message.Wantlist.Entry
    assert len(body(entry(block=bytes(Cid.of_raw(b"")))) * MAX_WANTS_READ) > MAX_WANTLIST_BYTES
    empty = body(*[entry()] * (MAX_WANTLIST_BYTES // 3))
    assert len(empty) <= MAX_WANTLIST_BYTES
    assert len(decode_wantlist(empty).wants) == MAX_WANTS_READ


def test_what_is_no_protobuf_is_refused() -> None:
    with pytest.raises(RemoteProtocolError):
        decode_wantlist(b"\xff")
