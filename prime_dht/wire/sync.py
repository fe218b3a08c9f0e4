"""The messages of a sync round as bytes (``protos/sync.proto``).

A :class:`SyncCodec` belongs to one network, whose parameters say how many sectors there are and what a layout time
means. An opening from another network is read only as far as to say what differs: it becomes a
:class:`~prime_dht.sync.messages.Foreign`.

Everything read is checked for form here: lengths, ranges, bounds. Whether it has a place in the round is for
:mod:`prime_dht.sync` to say. A message is looked at before it is parsed, so that a million empty fields cost nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import assert_never

import numpy as np
from google.protobuf.message import DecodeError

from prime_dht.entries.codec import decode_entry_set, encode_entry_set
from prime_dht.entries.entry import Entry
from prime_dht.errors import RemoteProtocolError, ValidationError
from prime_dht.partition.arcs import ArcSet
from prime_dht.partition.cells import Cell
from prime_dht.partition.combined import HASH_BYTES, Combined
from prime_dht.partition.plan import FIRST_SYMBOLS
from prime_dht.partition.sketch import SYMBOL_BYTES, Sketch
from prime_dht.partition.slices import END_OF_TIME_US, LAYOUT_BYTES, Layout
from prime_dht.partition.snapshot import MinimalSnapshot
from prime_dht.partition.symbols import ID_BYTES, SALT_BYTES, Code
from prime_dht.pb import sync_pb2 as pb
from prime_dht.sync.limits import IDS_PER_ANSWER, MAX_ENTRIES, MAX_MESSAGE_BYTES, MAX_QUESTIONS
from prime_dht.sync.messages import (
    CUT_HASH_BYTES,
    WANT_BYTES,
    Acceptance,
    Answer,
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
    Question,
    Refusal,
    Refuse,
    SymbolsTold,
    Turn,
    Verdict,
    check_question,
)
from prime_dht.wire.fields import has_more_fields
from prime_dht.wire.frames import decode_varint

MAX_CELLS = 1 << 16
"""Cells in one answer."""

MAX_SLICES = 1 << 8
"""Slices in one question: more than twice as many as rings can be."""

MAX_IDS = IDS_PER_ANSWER + 4096
"""Ids in one answer: a full page, and some beside it that the follower declined, if it does not count them in."""

MAX_NETWORK_ID_BYTES = 64
MAX_TEXT_CHARACTERS = 200

_MAX_FIELDS = 2 * MAX_QUESTIONS + 16

_REASONS = {
    Refusal.BUSY: pb.Refuse.BUSY,
    Refusal.TOO_OFTEN: pb.Refuse.TOO_OFTEN,
    Refusal.CROSSED: pb.Refuse.CROSSED,
    Refusal.NETWORK: pb.Refuse.NETWORK,
    Refusal.PARAMETERS: pb.Refuse.PARAMETERS,
    Refusal.VERSION: pb.Refuse.VERSION,
    Refusal.NO_COMMON_ARC: pb.Refuse.NO_COMMON_ARC,
    Refusal.CLOCKS: pb.Refuse.CLOCKS,
    Refusal.NOT_READY: pb.Refuse.NOT_READY,
}
_REFUSALS = {number: reason for reason, number in _REASONS.items()}


class SyncCodec:
    """Encodes and decodes the messages of one network's rounds."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._parameters = network.parameters
        self._sector_bits = network.parameters.sector_bits
        self._ours = Foreign(  # as others see it
            version=network.version,
            network_id=network.network_id,
            unit_us=network.parameters.unit_us,
            factor=network.parameters.factor,
            sector_bits=network.parameters.sector_bits,
            max_ttl_us=network.max_ttl_us,
        )

    def encode(self, message: Message) -> bytes:
        """A message's bytes, without a frame."""
        match message:
            case Open():
                return pb.Message(open=self._write_open(message)).SerializeToString()
            case Refuse(reason, text):
                refuse = pb.Refuse(reason=_REASONS[reason], text=text[:MAX_TEXT_CHARACTERS])
                return pb.Message(refuse=refuse).SerializeToString()
            case Turn():
                return pb.Message(turn=self._write_turn(message)).SerializeToString()
            case _:
                assert_never(message)

    def decode(self, body: bytes) -> Message | Foreign:
        """Read a message.

        Raises:
            RemoteProtocolError: it does not parse, or exceeds a bound.
        """
        if len(body) > MAX_MESSAGE_BYTES:
            raise RemoteProtocolError(f"a message of {len(body)} bytes")
        length = decode_varint(body, 1)
        if length is None or length[1] + length[0] != len(body):
            raise RemoteProtocolError("not one sync message")
        inner = body[length[1] :]
        if has_more_fields(inner, _MAX_FIELDS):
            raise RemoteProtocolError(f"a sync message has at most {_MAX_FIELDS} fields")
        try:
            match body[0]:
                case 0x0A:
                    return self._read_open(pb.Open.FromString(inner))
                case 0x12:
                    return _read_refuse(pb.Refuse.FromString(inner))
                case 0x1A:
                    return self._read_turn(pb.Turn.FromString(inner))
                case _:
                    raise RemoteProtocolError("an unknown sync message")
        except DecodeError as error:
            raise RemoteProtocolError("not a sync message") from error
        except ValidationError as error:
            raise RemoteProtocolError(str(error)) from error

    # Openings and acceptances.

    def _write_open(self, message: Open) -> pb.Open:
        parameters = message.network.parameters
        wire = pb.Open(
            network=pb.Network(
                version=message.network.version,
                network_id=message.network.network_id,
                unit_us=parameters.unit_us,
                factor=parameters.factor,
                sector_bits=parameters.sector_bits,
                max_ttl_us=message.network.max_ttl_us,
            ),
            arc=_write_arcs(message.arc),
            digest=_write_digest(message.digest, message.arc),
            nonce=message.nonce,
            dry_run=message.dry_run,
        )
        if message.held != message.arc:
            wire.held.CopyFrom(_write_arcs(message.held))
        if (probe := message.probe) is not None:
            wire.probe.CopyFrom(
                pb.Probe(sector=probe.sector, salt=probe.sketch.code.salt, symbol=probe.sketch.encode())
            )
        return wire

    def _read_open(self, wire: pb.Open) -> Open | Foreign:
        told = wire.network
        if len(told.network_id.encode()) > MAX_NETWORK_ID_BYTES:
            raise ValidationError(f"a network id has at most {MAX_NETWORK_ID_BYTES} bytes")
        theirs = Foreign(
            version=told.version,
            network_id=told.network_id,
            unit_us=told.unit_us,
            factor=told.factor,
            sector_bits=told.sector_bits,
            max_ttl_us=told.max_ttl_us,
        )
        if theirs != self._ours:
            return theirs
        arc = self._read_arcs(wire.arc)
        return Open(
            network=self._network,
            arc=arc,
            held=self._read_held(wire, arc),
            digest=self._read_digest(wire.digest, arc),
            nonce=wire.nonce,
            dry_run=wire.dry_run,
            probe=self._read_probe(wire.probe) if wire.HasField("probe") else None,
        )

    def _read_probe(self, wire: pb.Probe) -> Probe:
        if wire.sector >> self._sector_bits or len(wire.salt) != SALT_BYTES or len(wire.symbol) != SYMBOL_BYTES:
            raise ValidationError("a probe is one symbol of one sector, with its salt")
        return Probe(sector=wire.sector, sketch=Sketch.decode(wire.symbol, Code(wire.salt)))

    def _read_held(self, wire: pb.Open | pb.Acceptance, arc: ArcSet) -> ArcSet:
        held = self._read_arcs(wire.held) if wire.HasField("held") else arc
        if not arc or held - arc:
            raise ValidationError("an arc has a sector at least, and what is held is among them")
        return held

    def _read_digest(self, wire: pb.Digest, arc: ArcSet) -> Digest:
        arcs = self._read_arcs(wire.arcs) if wire.HasField("arcs") else arc
        if arcs - arc:
            raise ValidationError("a digest is of sectors of the arc")
        if len(wire.symbols) != FIRST_SYMBOLS * SYMBOL_BYTES or len(wire.tops) % CUT_HASH_BYTES:
            raise ValidationError(f"a digest has {FIRST_SYMBOLS} symbols, and whole top hashes")
        layout = self._read_layout(wire.layout_us)
        tops = [_uncut(raw, 0) for raw in _cut_up(wire.tops, CUT_HASH_BYTES)]
        rings = len(layout.ring_starts)
        if len(tops) < rings + 2:
            raise ValidationError("a digest has a top hash of the disc, of each ring, and of the tail")
        return Digest(
            tops=MinimalSnapshot(
                layout=layout,
                arcs=arcs,
                disc=tops[0],
                rings=tuple(tops[1 : rings + 1]),
                tail=tuple(tops[rings + 1 :]),
            ),
            op_count=wire.op_count,
            sketch=Sketch.decode(wire.symbols),
        )

    # Turns.

    def _write_turn(self, message: Turn) -> pb.Turn:
        wire = pb.Turn(
            questions=[_write_question(question) for question in message.questions],
            answers=[_write_answer(answer) for answer in message.answers],
            entries=encode_entry_set(entry for entry in message.entries if isinstance(entry, Entry)),
            wants=b"".join(message.wants),
            more=message.more,
            declined=message.declined,
        )
        if (acceptance := message.acceptance) is not None:
            wire.acceptance.CopyFrom(pb.Acceptance(arc=_write_arcs(acceptance.arc)))
            if acceptance.held != acceptance.arc:
                wire.acceptance.held.CopyFrom(_write_arcs(acceptance.held))
            if acceptance.digest is not None:
                wire.acceptance.digest.CopyFrom(_write_digest(acceptance.digest, acceptance.arc))
        if (verdict := message.verdict) is not None:
            found = pb.Verdict(only_leader=verdict.only_leader, only_follower=verdict.only_follower)
            if verdict.left:
                found.left.CopyFrom(_write_arcs(verdict.left))
            wire.verdict.CopyFrom(found)
        if message.vanished is not None:
            wire.vanished.CopyFrom(_write_arcs(message.vanished))
        return wire

    def _read_turn(self, wire: pb.Turn) -> Turn:
        if max(len(wire.questions), len(wire.answers)) > MAX_QUESTIONS:
            raise ValidationError(f"a turn has at most {MAX_QUESTIONS} questions, or answers")
        return Turn(
            acceptance=self._read_acceptance(wire.acceptance) if wire.HasField("acceptance") else None,
            questions=tuple(self._read_question(question) for question in wire.questions),
            answers=tuple(self._read_answer(answer) for answer in wire.answers),
            entries=tuple(decode_entry_set(wire.entries, max_entries=MAX_ENTRIES)),
            wants=_read_ids(wire.wants, WANT_BYTES),
            more=wire.more,
            declined=wire.declined,
            verdict=self._read_verdict(wire.verdict) if wire.HasField("verdict") else None,
            vanished=self._read_arcs(wire.vanished) if wire.HasField("vanished") else None,
        )

    def _read_acceptance(self, wire: pb.Acceptance) -> Acceptance:
        arc = self._read_arcs(wire.arc)
        digest = self._read_digest(wire.digest, arc) if wire.HasField("digest") else None
        return Acceptance(arc=arc, held=self._read_held(wire, arc), digest=digest)

    def _read_verdict(self, wire: pb.Verdict) -> Verdict:
        nothing = ArcSet.empty(sector_bits=self._sector_bits)
        left = self._read_arcs(wire.left) if wire.HasField("left") else nothing
        return Verdict(only_leader=wire.only_leader, only_follower=wire.only_follower, left=left)

    def _read_question(self, wire: pb.Question) -> Question:
        question: Question
        match wire.WhichOneof("body"):
            case "symbols":
                asked = wire.symbols
                question = AskSymbols(
                    arcs=self._read_arcs(asked.arcs),
                    start=asked.start,
                    stop=asked.stop,
                    parts=asked.parts,
                    known=asked.known,
                    code=Code(asked.salt),
                )
            case "checksums":
                question = AskChecksums(self._read_arcs(wire.checksums.arcs))
            case "cells":
                if len(wire.cells.slices) > MAX_SLICES:
                    raise ValidationError(f"cells are asked for in at most {MAX_SLICES} slices")
                question = AskCells(
                    self._read_layout(wire.cells.layout_us),
                    self._read_arcs(wire.cells.arcs),
                    tuple(wire.cells.slices),
                )
            case "ids":
                ids = wire.ids
                if ids.stop_us > END_OF_TIME_US:
                    raise ValidationError("no op is created so late")
                question = AskIds(
                    first=ids.first,
                    last=ids.last,
                    created_us=range(ids.start_us, ids.stop_us),
                    after=_read_cursor(ids.after) if ids.HasField("after") else None,
                )
            case _:
                raise ValidationError("an unknown question")
        check_question(question, self._sector_bits)
        return question

    def _read_answer(self, wire: pb.Answer) -> Answer:
        match wire.WhichOneof("body"):
            case "symbols":
                return SymbolsTold(wire.symbols.data)
            case "checksums":
                return ChecksumsTold(wire.checksums.data)
            case "cells":
                return self._read_cells(wire.cells)
            case "ids":
                upto = _read_cursor(wire.ids.upto) if wire.ids.HasField("upto") else None
                return IdsTold(_read_ids(wire.ids.ids, ID_BYTES), upto)
            case _:
                raise ValidationError("an unknown answer")

    def _read_cells(self, wire: pb.CellsTold) -> CellsTold:
        n = len(wire.counts)
        if (
            n > MAX_CELLS
            or not n == len(wire.start_steps) == len(wire.sector_steps) == len(wire.hashes) / CUT_HASH_BYTES
        ):
            raise ValidationError(f"at most {MAX_CELLS} cells, each with a count and a hash")
        places = list(zip(accumulate(wire.start_steps), accumulate(wire.sector_steps), strict=True))
        if any(not 0 <= sector < 1 << self._sector_bits for _, sector in places) or min(wire.counts, default=1) < 1:
            raise ValidationError("a cell is in a sector, and holds an op")
        if any(one >= other for one, other in pairwise(places)):
            raise ValidationError("cells are told in their order")
        hashes = _cut_up(wire.hashes, CUT_HASH_BYTES)
        return CellsTold(
            {
                Cell(sector, start): _uncut(raw, count)
                for (start, sector), count, raw in zip(places, wire.counts, hashes, strict=True)
            }
        )

    def _read_layout(self, since_us: int) -> Layout:
        return Layout.decode(since_us.to_bytes(LAYOUT_BYTES, "big"), self._parameters)

    def _read_arcs(self, wire: pb.Arcs) -> ArcSet:
        sector_count = 1 << self._sector_bits
        if wire.bits:
            if wire.runs:
                raise ValidationError("sectors are told in one way")
            return ArcSet.decode(wire.bits, sector_bits=self._sector_bits)
        if not wire.runs:
            return ArcSet.full(sector_bits=self._sector_bits)
        if len(wire.runs) > sector_count or sum(wire.runs) > sector_count or 0 in wire.runs[1:]:
            raise ValidationError("runs of sectors that do not exist")
        bounds = list(accumulate(wire.runs))
        bits = sum((1 << stop) - (1 << start) for start, stop in zip(bounds[::2], bounds[1::2], strict=False))
        return ArcSet(bits, self._sector_bits)


def _write_arcs(arcs: ArcSet) -> pb.Arcs:
    if len(arcs) == 1 << arcs.sector_bits:
        return pb.Arcs()
    bounds = np.flatnonzero(np.diff(arcs.mask, prepend=False))
    runs = np.diff(bounds, prepend=0).tolist()
    if len(bounds) % 2:
        runs.append((1 << arcs.sector_bits) - int(bounds[-1]))
    told = pb.Arcs(runs=runs or [1 << arcs.sector_bits])
    bits = arcs.encode()
    return told if told.ByteSize() <= len(bits) else pb.Arcs(bits=bits)


def _write_digest(digest: Digest, arc: ArcSet) -> pb.Digest:
    tops = digest.tops
    wire = pb.Digest(
        layout_us=tops.layout.since_us,
        tops=b"".join(top.hash[:CUT_HASH_BYTES] for top in (tops.disc, *tops.rings, *tops.tail)),
        op_count=digest.op_count,
        symbols=digest.sketch.encode(),
    )
    if digest.arcs != arc:
        wire.arcs.CopyFrom(_write_arcs(digest.arcs))
    return wire


def _write_question(question: Question) -> pb.Question:
    match question:
        case AskSymbols(arcs=arcs, start=start, stop=stop, parts=parts, known=known, code=code):
            asked = pb.AskSymbols(
                arcs=_write_arcs(arcs), start=start, stop=stop, parts=parts, salt=code.salt, known=known
            )
            return pb.Question(symbols=asked)
        case AskChecksums(arcs):
            return pb.Question(checksums=pb.AskChecksums(arcs=_write_arcs(arcs)))
        case AskCells(layout, arcs, slices):
            return pb.Question(cells=pb.AskCells(layout_us=layout.since_us, arcs=_write_arcs(arcs), slices=slices))
        case AskIds(first=first, last=last, created_us=created_us, after=after):
            ids = pb.AskIds(first=first, last=last, start_us=created_us.start, stop_us=created_us.stop)
            if after is not None:
                ids.after.CopyFrom(_write_cursor(after))
            return pb.Question(ids=ids)
        case _:
            assert_never(question)


def _write_answer(answer: Answer) -> pb.Answer:
    match answer:
        case SymbolsTold(data):
            return pb.Answer(symbols=pb.SymbolsTold(data=data))
        case ChecksumsTold(data):
            return pb.Answer(checksums=pb.ChecksumsTold(data=data))
        case CellsTold(cells):
            told = sorted(cells, key=lambda cell: (cell.start, cell.sector))
            return pb.Answer(
                cells=pb.CellsTold(
                    start_steps=_steps([cell.start for cell in told]),
                    sector_steps=_steps([cell.sector for cell in told]),
                    counts=[cells[cell].count for cell in told],
                    hashes=b"".join(cells[cell].hash[:CUT_HASH_BYTES] for cell in told),
                )
            )
        case IdsTold(ids, upto):
            return pb.Answer(ids=pb.IdsTold(ids=b"".join(ids), upto=None if upto is None else _write_cursor(upto)))
        case _:
            assert_never(answer)


def _read_refuse(wire: pb.Refuse) -> Refuse:
    if wire.reason not in _REFUSALS:
        raise ValidationError("an unknown reason")
    return Refuse(_REFUSALS[wire.reason], wire.text[:MAX_TEXT_CHARACTERS])


def _write_cursor(cursor: IdCursor) -> pb.Cursor:
    return pb.Cursor(created_at_us=cursor.created_at_us, op_id=cursor.op_id)


def _read_cursor(wire: pb.Cursor) -> IdCursor:
    if len(wire.op_id) != ID_BYTES or wire.created_at_us >= END_OF_TIME_US:
        raise ValidationError("a cursor that is no op's place")
    return IdCursor(wire.created_at_us, wire.op_id)


def _read_ids(raw: bytes, size: int) -> tuple[bytes, ...]:
    if len(raw) % size or len(raw) > MAX_IDS * size:
        raise ValidationError(f"{len(raw)} bytes are not up to {MAX_IDS} ids of {size} bytes")
    return tuple(_cut_up(raw, size))


def _cut_up(raw: bytes, size: int) -> list[bytes]:
    return [raw[start : start + size] for start in range(0, len(raw), size)]


def _uncut(raw: bytes, count: int) -> Combined:
    return Combined(raw.ljust(HASH_BYTES, b"\0"), count)


def _steps(numbers: Sequence[int]) -> list[int]:
    return [number - before for before, number in zip((0, *numbers), numbers, strict=False)]
