"""Messages about blocks: every one comes out of any pieces as it went in, and nothing else comes out."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prime_dht.blobs.cid import Cid
from prime_dht.errors import RemoteProtocolError
from prime_dht.pb import blocks_pb2
from prime_dht.testing.hostile import damaged
from prime_dht.wire.blocks import (
    MAX_ASKED_AT_ONCE,
    MAX_BLOCK_BYTES,
    MAX_MESSAGE_BYTES,
    MAX_UNANSWERED,
    Answer,
    Ask,
    Block,
    Cancel,
    Message,
    MessageDecoder,
    encode_block_header,
    encode_message,
)
from prime_dht.wire.frames import encode_frame, encode_varint

CID = Cid.of_raw(b"block")
NUMBERS = st.lists(st.integers(0, 2**64 - 1), max_size=10).map(tuple)
CIDS = st.builds(lambda data, raw: Cid.of_raw(data) if raw else Cid.of_dag_pb(data), st.binary(), st.booleans())
ASKING = st.one_of(
    st.builds(Ask, st.lists(CIDS, min_size=1, max_size=10).map(tuple), st.booleans()),
    st.builds(Cancel, NUMBERS.filter(bool)),
)
ANSWERING = st.one_of(
    st.builds(Answer, have=NUMBERS.filter(bool), not_have=NUMBERS, busy=NUMBERS),
    st.builds(Block, st.integers(0, 2**64 - 1), st.binary(max_size=300).map(bytearray)),
)


def encoded(message: Message) -> bytes:
    if isinstance(message, Block):
        return encode_block_header(message.number, len(message.data)) + message.data
    return encode_message(message)


@settings(derandomize=True, deadline=None)
@given(
    messages=st.one_of(st.lists(ASKING, max_size=6), st.lists(ANSWERING, max_size=6)),
    cuts=st.lists(st.integers(1, 50), min_size=1, max_size=20),
)
def test_messages_come_out_as_they_went_in_however_the_stream_is_cut(messages: list[Message], cuts: list[int]) -> None:
    decoder = MessageDecoder(takes_blocks=any(isinstance(message, Answer | Block) for message in messages))
    data = b"".join(map(encoded, messages))
    decoded: list[Message] = []
    at = 0
    while at < len(data):
        size = cuts[at % len(cuts)]
        decoded += decoder.feed(memoryview(data)[at : at + size])
        at += size
    assert decoded == messages
    assert decoder.is_between_messages


def test_within_a_message_or_a_block_it_is_not_between_messages() -> None:
    decoder = MessageDecoder(takes_blocks=True)
    header = encode_block_header(0, 2)
    for data, is_between in ((header[:1], False), (header[1:], False), (b"a", False), (b"b", True)):
        decoder.feed(data)
        assert decoder.is_between_messages == is_between


def test_the_largest_of_each_fits() -> None:
    asks, answers = MessageDecoder(takes_blocks=False), MessageDecoder(takes_blocks=True)
    largest = (2**64 - 1,) * MAX_UNANSWERED
    for message in (Ask((CID,) * MAX_ASKED_AT_ONCE, True), Cancel(largest)):
        assert asks.feed(encode_message(message)) == [message]
    assert answers.feed(encode_message(Answer(busy=largest))) == [Answer(busy=largest)]
    block = Block(2**64 - 1, bytearray(MAX_BLOCK_BYTES))
    assert answers.feed(encoded(block)) == [block]


def frame(message: blocks_pb2.Message) -> bytes:
    return encode_frame(message.SerializeToString())


@pytest.mark.parametrize(
    "data",
    [
        encode_varint(MAX_MESSAGE_BYTES + 1),
        b"\x80" * 10,
        b"\x01\xff",
        b"\x00",
        encode_message(Answer(have=(1,))),
        encode_block_header(0, 0),
        frame(blocks_pb2.Message(ask=blocks_pb2.Ask(cids=[]))),
        frame(blocks_pb2.Message(ask=blocks_pb2.Ask(cids=[bytes(CID)] * (MAX_ASKED_AT_ONCE + 1)))),
        frame(blocks_pb2.Message(ask=blocks_pb2.Ask(cids=[bytes(CID), bytes(CID)[:-1]]))),
        frame(blocks_pb2.Message(cancel=blocks_pb2.Cancel())),
        frame(blocks_pb2.Message(cancel=blocks_pb2.Cancel(numbers=[1] * (MAX_UNANSWERED + 1)))),
    ],
)
def test_whoever_is_asked_takes_nothing_else(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        MessageDecoder(takes_blocks=False).feed(data)


@pytest.mark.parametrize(
    "data",
    [
        encode_message(Ask((CID,))),
        encode_message(Cancel((1,))),
        frame(blocks_pb2.Message(answer=blocks_pb2.Answer())),
        frame(blocks_pb2.Message(answer=blocks_pb2.Answer(have=[1] * 1000, busy=[1] * 25))),
        encode_block_header(0, MAX_BLOCK_BYTES + 1),
    ],
)
def test_whoever_asked_takes_nothing_else(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        MessageDecoder(takes_blocks=True).feed(data)


@pytest.mark.parametrize("takes_blocks", [True, False])
def test_damaged_messages_are_refused_or_mean_something_within_bounds(takes_blocks: bool) -> None:
    rng = Random(7)
    asking: list[Message] = [Ask((CID, Cid.of_dag_pb(b"node"))), Cancel((1, 300))]
    answering: list[Message] = [Answer(have=(1,), not_have=(2, 3), busy=(4,)), Block(5, bytearray(b"block"))]
    valid = b"".join(map(encoded, answering if takes_blocks else asking))
    refused = 0
    for _ in range(3000):
        try:
            for message in MessageDecoder(takes_blocks=takes_blocks).feed(damaged(valid, rng)):
                assert isinstance(message, Answer | Block) == takes_blocks
        except RemoteProtocolError:
            refused += 1
    assert refused > 500
