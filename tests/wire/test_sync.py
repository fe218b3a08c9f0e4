"""The bytes of every sync message, by hand from ``protos/sync.proto``, and what becomes of bytes that are none.

A field is its tag, ``number << 3 | kind`` (kind 0 a varint, 1 eight bytes, 2 a length and so many bytes, 5 four bytes),
and its value. A message is the field 1, 2 or 3 of the outer one: tags 0a, 12, 1a.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prime_dht.entries.entry import Entry
from prime_dht.errors import RemoteProtocolError
from prime_dht.partition.arcs import ArcSet
from prime_dht.partition.cells import Cell
from prime_dht.partition.combined import Combined
from prime_dht.partition.parameters import PartitionParameters
from prime_dht.partition.sketch import Sketch
from prime_dht.partition.slices import layout_at
from prime_dht.partition.snapshot import MinimalSnapshot
from prime_dht.partition.symbols import Code
from prime_dht.pb import sync_pb2 as pb
from prime_dht.sync.limits import MAX_ENTRIES, MAX_MESSAGE_BYTES, MAX_QUESTIONS
from prime_dht.sync.messages import (
    Acceptance,
    AskCells,
    AskChecksums,
    AskIds,
    AskSymbols,
    CellsTold,
    ChecksumsTold,
    Digest,
    Foreign,
    IdCursor,
    IdsTold,
    Message,
    Network,
    Open,
    Probe,
    Refusal,
    Refuse,
    SymbolsTold,
    Turn,
    Verdict,
)
from prime_dht.testing.storage_samples import make_entry
from prime_dht.wire.sync import MAX_CELLS, MAX_IDS, SyncCodec

PARAMETERS = PartitionParameters(unit_us=10, factor=3, sector_bits=5)
NETWORK = Network(network_id="n", parameters=PARAMETERS, max_ttl_us=6)
CODEC = SyncCodec(NETWORK)
CIRCLE = ArcSet.full(sector_bits=5)
NOTHING = ArcSet.empty(sector_bits=5)
HALF = ArcSet.of_prefix(1, 1, sector_bits=5)
LAYOUT = layout_at(11, PARAMETERS)  # one ring
SYMBOLS = Sketch(bytes(range(22)) * 32)
SALT = bytes(range(16))


def top(number: int) -> Combined:
    return Combined(bytes([number]) * 8 + bytes(24), 0)


DIGEST = Digest(
    tops=MinimalSnapshot(layout=LAYOUT, arcs=CIRCLE, disc=top(1), rings=(top(2),), tail=(top(3), top(4))),
    op_count=5,
    sketch=SYMBOLS,
)
DIGEST_HEX = "11" + "0b00000000000000" + "1a20" + "01" * 8 + "02" * 8 + "03" * 8 + "04" * 8 + "2005"
DIGEST_HEX += "2ac005" + SYMBOLS.data.hex()
assert len(bytes.fromhex(DIGEST_HEX)) == 752  # f0 05 as a varint

NETWORK_HEX = "0801" + "12016e" + "180a" + "2003" + "2805" + "3006"
OPEN = Open(network=NETWORK, arc=CIRCLE, held=CIRCLE, digest=DIGEST, nonce=7)
# network of 13 bytes, arc empty because it is everything, digest, nonce as 4 bytes
OPEN_HEX = "0a0d" + NETWORK_HEX + "1200" + "22f005" + DIGEST_HEX + "2d07000000"

ENTRY = make_entry(b"v", created_at_us=100, expires_at_us=1_000_000_000)
ENVELOPE_HEX = ENTRY.envelope.hex()

MESSAGES: list[tuple[Message, str]] = [
    (OPEN, "0a8906" + OPEN_HEX),
    # held, of HALF: 16 sectors not in it, then 16 in it
    (
        Open(
            network=NETWORK,
            arc=CIRCLE,
            held=HALF,
            digest=DIGEST,
            nonce=7,
            dry_run=True,
            probe=Probe(sector=3, sketch=Sketch(bytes(22), Code(SALT))),
        ),
        "0abf06"
        + "0a0d"
        + NETWORK_HEX
        + "1200"
        + "1a040a021010"
        + "22f005"
        + DIGEST_HEX
        + "2d07000000"
        + "3001"
        + "3a2c"
        + "0803"
        + "1210"
        + SALT.hex()
        + "1a16"
        + "00" * 22,
    ),
    (Refuse(Refusal.BUSY), "1202" + "0801"),
    (Refuse(Refusal.PARAMETERS, "why"), "1207" + "0805" + "1203776879"),
    (Turn(), "1a00"),
    # an acceptance of 8 bytes (arc: HALF; held: absent), a verdict that found nothing
    (
        Turn(acceptance=Acceptance(arc=HALF, held=HALF), verdict=Verdict(only_leader=0, only_follower=0, left=NOTHING)),
        "1a0a" + "0a060a040a021010" + "4200",
    ),
    (
        Turn(wants=(bytes(8), bytes([1] * 8)), verdict=Verdict(only_leader=1, only_follower=300, left=HALF)),
        "1a1f" + "2a10" + "00" * 8 + "01" * 8 + "420b" + "0801" + "10ac02" + "1a040a021010",
    ),
    (Turn(more=True, declined=2), "1a04" + "3001" + "3802"),
    (Turn(vanished=HALF), "1a06" + "4a04" + "0a021010"),
    (
        Turn(questions=(AskSymbols(arcs=HALF, start=32, stop=64, parts=2, known=5, code=Code(SALT)),)),
        "1a24" + "1222" + "0a20" + "0a040a021010" + "1020" + "1840" + "2002" + "2a10" + SALT.hex() + "3005",
    ),
    (Turn(questions=(AskChecksums(CIRCLE),)), "1a06" + "1204" + "1202" + "0a00"),
    (
        Turn(questions=(AskCells(LAYOUT, CIRCLE, (0, 1)),)),
        "1a13" + "1211" + "1a0f" + "090b00000000000000" + "1200" + "1a020001",
    ),
    (
        Turn(questions=(AskIds(first=1, last=2, created_us=range(3, 4), after=IdCursor(9, SALT)),)),
        "1a22" + "1220" + "221e" + "0801" + "1002" + "1803" + "2004" + "2a14" + "0809" + "1210" + SALT.hex(),
    ),
    (Turn(answers=(SymbolsTold(b"ab"),)), "1a08" + "1a06" + "0a04" + "0a026162"),
    (Turn(answers=(ChecksumsTold(b"ab"),)), "1a08" + "1a06" + "1204" + "0a026162"),
    # cells (3, 0), (1, 8), (2, 8): by start, then sector, as steps; sector steps zigzag: 3 → 06, -2 → 03, 1 → 02
    (
        Turn(
            answers=(
                CellsTold(
                    {
                        Cell(1, 8): Combined(bytes([2] * 8) + bytes(24), 1),
                        Cell(3, 0): Combined(bytes([1] * 8) + bytes(24), 9),
                        Cell(2, 8): Combined(bytes([3] * 8) + bytes(24), 1),
                    }
                ),
            )
        ),
        "1a2d" + "1a2b" + "1a29" + "0a03000800" + "1203060302" + "1a03090101" + "2218" + "01" * 8 + "02" * 8 + "03" * 8,
    ),
    (
        Turn(answers=(IdsTold((SALT, SALT), IdCursor(9, SALT)),)),
        "1a3c" + "1a3a" + "2238" + "0a20" + SALT.hex() * 2 + "1214" + "0809" + "1210" + SALT.hex(),
    ),
]


@pytest.mark.parametrize(("message", "expected"), MESSAGES, ids=lambda value: type(value).__name__)
def test_each_message_has_these_bytes_and_is_read_back(message: Message, expected: str) -> None:
    assert CODEC.encode(message).hex() == expected
    assert CODEC.decode(bytes.fromhex(expected)) == message


def test_entries_travel_as_in_a_record() -> None:
    body = CODEC.encode(Turn(entries=(ENTRY,)))
    n = len(ENTRY.envelope)
    entry = f"0a{n & 127 | 128:02x}{n >> 7:02x}" + ENVELOPE_HEX + "120176"
    entry_set = f"0a{len(entry) // 2 & 127 | 128:02x}{len(entry) // 2 >> 7:02x}" + entry
    assert body.hex().endswith(entry_set)
    assert CODEC.decode(body) == Turn(entries=(ENTRY,))


def test_one_undecodable_entry_does_not_hide_the_others() -> None:
    body = pb.Message(turn=pb.Turn(entries=b"\x0a\x02\x0a\x00")).SerializeToString()
    decoded = CODEC.decode(body)
    assert isinstance(decoded, Turn)
    assert len(decoded.entries) == 1


@pytest.mark.parametrize(
    "theirs",
    [
        replace(NETWORK, network_id="m"),
        replace(NETWORK, version=2),
        replace(NETWORK, parameters=PartitionParameters(unit_us=10, factor=4, sector_bits=5)),
        replace(NETWORK, parameters=PartitionParameters(unit_us=10, factor=3, sector_bits=6)),
        replace(NETWORK, max_ttl_us=7),
    ],
)
def test_of_another_networks_opening_only_that_is_read(theirs: Network) -> None:
    wire = pb.Message.FromString(CODEC.encode(OPEN))
    wire.open.network.version = theirs.version
    wire.open.network.network_id = theirs.network_id
    wire.open.network.factor = theirs.parameters.factor
    wire.open.network.sector_bits = theirs.parameters.sector_bits
    wire.open.network.max_ttl_us = theirs.max_ttl_us
    wire.open.digest.symbols = b"means something else there"
    assert CODEC.decode(wire.SerializeToString()) == Foreign(
        version=theirs.version,
        network_id=theirs.network_id,
        unit_us=10,
        factor=theirs.parameters.factor,
        sector_bits=theirs.parameters.sector_bits,
        max_ttl_us=theirs.max_ttl_us,
    )


@settings(derandomize=True, deadline=None)
@given(st.integers(0, (1 << 512) - 1), st.booleans())
def test_any_set_of_sectors_travels_in_66_bytes_at_most(bits: int, is_sparse: bool) -> None:
    arcs = ArcSet(bits & bits >> 7 & bits >> 40 if is_sparse else bits, 9)
    codec = SyncCodec(Network(network_id="n", parameters=PartitionParameters(), max_ttl_us=6))
    question = AskChecksums(arcs or ArcSet.full(sector_bits=9))
    body = codec.encode(Turn(questions=(question,)))
    assert len(body) <= 66 + 8
    assert codec.decode(body) == Turn(questions=(question,))


@pytest.mark.parametrize(
    "arcs",
    [[0], [31], [0, 31], [1, 3, 5, 7, 9, 11], range(5, 32), range(31), [0, 2, 3, 30], []],
)
def test_runs_of_sectors_are_read_back(arcs: list[int]) -> None:
    left = ArcSet.of_sectors(arcs, sector_bits=5)
    told = Turn(verdict=Verdict(only_leader=0, only_follower=0, left=left))
    assert CODEC.decode(CODEC.encode(told)) == told


def _open(**changes: object) -> pb.Open:
    wire = pb.Message.FromString(CODEC.encode(OPEN)).open
    for name, value in changes.items():
        place: object = wire
        *path, last = name.split("__")
        for part in path:
            place = getattr(place, part)
        setattr(place, last, value)
    return wire


def _turn(**fields: object) -> bytes:
    return pb.Message(turn=pb.Turn(**fields)).SerializeToString()  # type: ignore[arg-type]


def _read_turn(body: bytes) -> Turn:
    turn = CODEC.decode(body)
    assert isinstance(turn, Turn)
    return turn


def _cells(number: int) -> bytes:
    cells = pb.CellsTold(
        start_steps=[1] * number, sector_steps=[0] * number, counts=[1] * number, hashes=bytes(8 * number)
    )
    return _turn(answers=[pb.Answer(cells=cells)])


def test_as_much_as_the_limits_allow_is_read() -> None:
    (told,) = _read_turn(_cells(MAX_CELLS)).answers
    assert isinstance(told, CellsTold)
    assert len(told.cells) == MAX_CELLS
    questions = (AskChecksums(CIRCLE),) * MAX_QUESTIONS
    assert _read_turn(CODEC.encode(Turn(questions=questions))).questions == questions
    answers = (ChecksumsTold(b""),) * MAX_QUESTIONS
    assert _read_turn(CODEC.encode(Turn(answers=answers))).answers == answers
    assert len(_read_turn(_turn(wants=bytes(8 * MAX_IDS))).wants) == MAX_IDS


BAD_ARCS = [pb.Arcs(runs=[33]), pb.Arcs(runs=[1, 0, 1]), pb.Arcs(runs=[1], bits=bytes(4)), pb.Arcs(bits=bytes(5))]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x0a",
        b"\x1a\x01",
        b"\x22\x00",
        b"\x1a\x00\x00",
        b"\x1a\x00" * 2,
        b"\x12\x00",
        b"\x12\x02\x08\x7f",
        b"\x0a\x00\x00",
        pb.Message(open=_open(digest__symbols=bytes(31 * 22))).SerializeToString(),
        pb.Message(open=_open(digest__tops=bytes(16))).SerializeToString(),
        pb.Message(open=_open(digest__tops=bytes(33))).SerializeToString(),
        pb.Message(open=_open(digest__tops=bytes(48))).SerializeToString(),
        pb.Message(open=_open(digest__layout_us=12)).SerializeToString(),
        pb.Message(open=_open(network__network_id="n" * 65)).SerializeToString(),
        *(_turn(questions=[pb.Question(checksums=pb.AskChecksums(arcs=arcs))]) for arcs in BAD_ARCS),
        _turn(questions=[pb.Question(checksums=pb.AskChecksums(arcs=pb.Arcs(runs=[32])))]),
        _turn(questions=[pb.Question()]),
        _turn(answers=[pb.Answer()]),
        _turn(questions=[pb.Question(checksums=pb.AskChecksums())] * (MAX_QUESTIONS + 1)),
        _turn(answers=[pb.Answer(checksums=pb.ChecksumsTold())] * (MAX_QUESTIONS + 1)),
        _turn(questions=[pb.Question(symbols=pb.AskSymbols(start=1, stop=1, parts=1))]),
        _turn(questions=[pb.Question(symbols=pb.AskSymbols(stop=1, parts=33))]),
        _turn(questions=[pb.Question(symbols=pb.AskSymbols(stop=1, parts=1, salt=b"salt"))]),
        _turn(questions=[pb.Question(ids=pb.AskIds(first=32, last=32, stop_us=1))]),
        _turn(questions=[pb.Question(ids=pb.AskIds(stop_us=1 << 63 | 1))]),
        _turn(questions=[pb.Question(ids=pb.AskIds(stop_us=1, after=pb.Cursor(op_id=b"short")))]),
        _turn(questions=[pb.Question(cells=pb.AskCells(layout_us=12))]),
        _turn(wants=bytes(9)),
        _turn(answers=[pb.Answer(ids=pb.IdsTold(ids=bytes(15)))]),
        _turn(answers=[pb.Answer(ids=pb.IdsTold(ids=bytes(16 * (MAX_IDS + 1))))]),
        _turn(answers=[pb.Answer(cells=pb.CellsTold(counts=[1]))]),
        _cells(MAX_CELLS + 1),
        *(
            _turn(
                answers=[
                    pb.Answer(
                        cells=pb.CellsTold(
                            start_steps=starts, sector_steps=sectors, counts=counts, hashes=bytes(8 * len(counts))
                        )
                    )
                ]
            )
            for starts, sectors, counts in [
                ([0], [0], [0]),
                ([0], [32], [1]),
                ([0], [-1], [1]),
                ([0, 0], [0, 0], [1, 1]),
                ([0, 0], [2, -1], [1, 1]),
            ]
        ),
        _turn(entries=b"\x0a\x00" * (MAX_ENTRIES + 1)),
        _turn(entries=b"\x12\x00"),
        _turn(wants=bytes(MAX_MESSAGE_BYTES)),
        b"\x1a\x80\x80\x20" + b"\x12\x00" * (1 << 18),
    ],
)
def test_what_is_no_message_or_exceeds_a_bound_is_refused(body: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        CODEC.decode(body)


@settings(derandomize=True, deadline=None, max_examples=400)
@given(st.integers(0, len(MESSAGES) - 1), st.data())
def test_damaged_messages_are_read_as_others_or_refused(which: int, data: st.DataObject) -> None:
    body = bytearray(bytes.fromhex(MESSAGES[which][1]))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(body) - 1))
        body[place] = data.draw(st.integers(0, 255))
    body = body[: data.draw(st.integers(0, len(body)))] if data.draw(st.booleans()) else body
    try:
        message = CODEC.decode(bytes(body))
    except RemoteProtocolError:
        return
    if isinstance(message, Turn):  # entries that were not readable are not passed on
        message = replace(message, entries=tuple(one for one in message.entries if isinstance(one, Entry)))
    if not isinstance(message, Foreign):
        assert CODEC.decode(CODEC.encode(message)) == message


@settings(derandomize=True, deadline=None, max_examples=200)
@given(st.sampled_from([0x0A, 0x12, 0x1A]), st.binary(max_size=300))
def test_noise_is_refused_and_nothing_else_happens(tag: int, noise: bytes) -> None:
    length = bytes([len(noise)]) if len(noise) < 128 else bytes([len(noise) & 127 | 128, len(noise) >> 7])
    try:
        CODEC.decode(bytes([tag]) + length + noise)
    except RemoteProtocolError:
        return


def test_sketches_and_hashes_of_any_content_are_read() -> None:
    rng = np.random.default_rng(1)
    wire = _open(digest__symbols=rng.bytes(32 * 22), digest__tops=rng.bytes(40))
    assert isinstance(CODEC.decode(pb.Message(open=wire).SerializeToString()), Open)
