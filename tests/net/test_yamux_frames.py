"""The Yamux wire format: golden bytes, and independence of how a byte stream is cut into chunks."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prime_dht.errors import RemoteProtocolError
from prime_dht.net.yamux.frames import (
    ACK,
    DATA,
    FIN,
    GO_AWAY,
    PING,
    PROTOCOL_ERROR,
    RST,
    SYN,
    WINDOW_UPDATE,
    Frame,
    FrameParser,
    encode,
)

NOTHING = memoryview(b"")


@pytest.mark.parametrize(
    ("wire", "frame"),
    [
        ("00 01 0001 00000001 00000000", Frame(WINDOW_UPDATE, SYN, 1, 0, NOTHING)),
        ("00 01 0002 00000001 00040000", Frame(WINDOW_UPDATE, ACK, 1, 262144, NOTHING)),
        ("00 00 0004 00000002 00000000", Frame(DATA, FIN, 2, 0, NOTHING)),
        ("00 00 0000 00000003 00000002 6869", Frame(DATA, 0, 3, 2, memoryview(b"hi"))),
        ("00 01 0008 ffffffff 00000000", Frame(WINDOW_UPDATE, RST, 0xFFFFFFFF, 0, NOTHING)),
        ("00 02 0001 00000000 deadbeef", Frame(PING, SYN, 0, 0xDEADBEEF, NOTHING)),
        ("00 03 0000 00000000 00000001", Frame(GO_AWAY, 0, 0, PROTOCOL_ERROR, NOTHING)),
    ],
)
def test_frames_have_the_bytes_of_the_specification(wire: str, frame: Frame) -> None:
    golden = bytes.fromhex(wire)
    assert list(FrameParser().feed(golden)) == [frame]
    assert encode(*frame[:4]) + frame.payload == golden


def test_a_payload_that_arrives_in_pieces_opens_with_the_first_and_closes_with_the_last() -> None:
    parser = FrameParser()
    wire = encode(DATA, SYN | FIN, 5, 6) + b"abcdef"
    assert list(parser.feed(wire[:12])) == []
    pieces = [frame for chunk in (wire[12:14], wire[14:17], wire[17:]) for frame in parser.feed(chunk)]
    assert [(piece.flags, bytes(piece.payload)) for piece in pieces] == [(SYN, b"ab"), (0, b"cde"), (FIN, b"f")]


@pytest.mark.parametrize(
    "wire", [b"GET / HTTP/1.1\r\n", bytes.fromhex("010000000000000000000000"), b"\x00\x04" + bytes(10)]
)
def test_an_unknown_version_or_kind_is_an_error(wire: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="Yamux has no frame"):
        list(FrameParser().feed(wire))


def data_frame(flags: int, stream_id: int, payload: bytes) -> bytes:
    return encode(DATA, flags, stream_id, len(payload)) + payload


uint32 = st.integers(0, 2**32 - 1)
flag_sets = st.integers(0, 15)
wire_frames = st.one_of(
    st.builds(data_frame, flag_sets, uint32, st.binary(max_size=40)),
    st.builds(encode, st.sampled_from([WINDOW_UPDATE, PING, GO_AWAY]), flag_sets, uint32, uint32),
)


def meaning(pieces: Iterable[Frame]) -> list[tuple[int, ...]]:
    """What happens, in order: each flag of a DATA frame where it takes effect, each of its bytes, each other frame."""
    events: list[tuple[int, ...]] = []
    for kind, flags, stream_id, value, payload in pieces:
        if kind == DATA:
            opening, closing = flags & (SYN | ACK), flags & (FIN | RST)
            events += [(DATA, stream_id, opening, -1)] if opening else []
            events += [(DATA, stream_id, 0, byte) for byte in payload]
            events += [(DATA, stream_id, closing, -1)] if closing else []
        else:
            events.append((kind, flags, stream_id, value))
    return events


@settings(derandomize=True, deadline=None)
@given(st.lists(wire_frames, max_size=8).map(b"".join), st.lists(st.integers(1, 30), min_size=1, max_size=8))
def test_any_chunking_gives_the_same_frames(wire: bytes, sizes: list[int]) -> None:
    parser = FrameParser()
    pieces: list[Frame] = []
    rest = wire
    for size in itertools.cycle(sizes):
        pieces += parser.feed(rest[:size])
        rest = rest[size:]
        if not rest:
            break
    assert meaning(pieces) == meaning(FrameParser().feed(wire))
