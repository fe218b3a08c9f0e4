"""What is in a Redis store, as bytes; the scripts that read and write it are :mod:`prime_dht.storage.redis_scripts`.

A store is two Redis keys and a third for the lease. ``<prefix>:rows`` is a hash. ``<prefix>:order`` is a sorted set
whose scores are all 0, which Redis keeps in the order of its members' bytes: an index of everything that is walked, and
of everything that falls due. The first byte of a field or a member is its kind ::

    field of rows        row                                                      members of order
    e‖op id              arrival ‖ retain_until ‖ location ‖ is_op ‖ length ‖     s‖slot‖version‖expires‖is_tombstone
                         place ‖ envelope                                         l‖location‖arrival‖op id
                                                                                  t‖sector‖version‖location, of an op
                                                                                  i‖op id, of an op
                                                                                  R‖retain_until‖op id
    v‖op id              an entry's value                                         V‖expires‖op id
    u‖publisher          how many entries and bytes it has, as doubles
    k‖key                a plain record: expires ‖ received ‖ parts               k‖key
                                                                                  X‖expires‖key‖location
                                                                                  x‖location‖expires‖key
    m‖multihash‖peer     a provider: expires ‖ addresses                          m‖multihash‖peer
                                                                                  q‖multihash‖expires‖peer
                                                                                  w‖peer‖expires‖multihash‖location
                                                                                  Y‖expires‖multihash‖peer‖location
                                                                                  y‖location‖expires‖multihash‖peer
    p‖peer               a known peer: first seen ‖ last seen ‖ parts             p‖last seen‖peer
    o‖slot               an own slot: created ‖ retain_until                      o‖slot
                                                                                  O‖retain_until‖slot
    n‖name               node metadata                                            n‖name
    c‖seat               the last call made from a seat, and what was said
    #…                   schema, holder, counts, how many writes there were, and the latest time of retirement

A *place* is an entry's member of kind ``s``. Times and arrivals, which count up, take 8 bytes, lengths and locations 4,
sectors 2, big-endian. What precedes something else in a member, and may have any length and any bytes, is *terminated*:
members then sort as tuples of their parts do ::

    >>> terminated(b"a"), terminated(bytes([97, 0]))
    (b'a\\x00\\x01', b'a\\x00\\xff\\x00\\x01')
    >>> unterminated(terminated(bytes([97, 0])))
    b'a\\x00'

A time is anything from 0 to 2**64 - 1; what lies outside counts as the nearest of these.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from io import BytesIO

import numpy as np

from prime_dht.entries.codec import decode_entry
from prime_dht.entries.entry import Entry, Slot, Version
from prime_dht.entries.lifetime import is_op
from prime_dht.entries.limits import Limits, Occupancy
from prime_dht.errors import StorageError, ValidationError
from prime_dht.ids import Key, OpId, PeerId, TimestampUs
from prime_dht.storage.base import (
    OP_ID_BYTES,
    Expired,
    Gone,
    KnownPeer,
    Op,
    OpArrays,
    OwnSlot,
    PlainRecord,
    ProviderRecord,
    PutOutcome,
    PutResult,
)
from prime_dht.storage.capacity import location_of
from prime_dht.storage.joined import LENGTH_BYTES, joined, split

TIME_BYTES = 8

_LOCATION_BYTES = 4

SECTOR_BITS = 9
"""Of the order of ops. It is the default network's, and serves those of finer or coarser sectors as well."""

OP_BYTES = 1 + 2 + TIME_BYTES + OP_ID_BYTES + _LOCATION_BYTES
"""The length of a member of kind ``t``."""

_TERMINATOR = b"\x00\x01"
_ESCAPED_ZERO = b"\x00\xff"
_ENTRY_HEAD = struct.Struct(">QQI?I")
_OCCUPANCY = struct.Struct(">5d")
_OP = struct.Struct(">cHQ32sI")
_GONE = struct.Struct(">32sIQ?")
_OP_COLUMNS = np.dtype(
    [("kind", "S1"), ("sector", ">u2"), ("created_at_us", ">u8"), ("op_id", "u1", 32), ("location", ">u4")]
)
_OUTCOMES = {
    b"I": PutOutcome.INSERTED,
    b"X": PutOutcome.INSERTED,
    b"D": PutOutcome.DUPLICATE,
    b"S": PutOutcome.SUPERSEDED,
    b"R": PutOutcome.REFUSED,
    b"F": PutOutcome.REFUSED,
}


def terminated(part: bytes) -> bytes:
    """``part`` so that what follows it neither changes its order nor can be taken for its end."""
    return part.replace(b"\x00", _ESCAPED_ZERO) + _TERMINATOR


def unterminated(part: bytes) -> bytes:
    """What :func:`terminated` was given."""
    return part.removesuffix(_TERMINATOR).replace(_ESCAPED_ZERO, b"\x00")


def split_first(parts: bytes) -> tuple[bytes, bytes]:
    """A part that was terminated, as it was before, and what is behind it."""
    stop = parts.index(_TERMINATOR) + len(_TERMINATOR)
    return unterminated(parts[:stop]), parts[stop:]


def time(time_us: int) -> bytes:
    """A time, whose bytes sort as it does."""
    return min(max(time_us, 0), (1 << 64) - 1).to_bytes(TIME_BYTES, "big")


def pairs(found: Iterable[bytes | None]) -> Iterator[tuple[bytes, bytes]]:
    """What came in turn, in pairs: names and rows."""
    parts = iter(found)
    for name, row in zip(parts, parts, strict=True):
        assert name is not None
        assert row is not None
        yield name, row


def slot_name(slot: Slot) -> bytes:
    """A slot, after those that precede it in the order of (key, publisher, subkey)."""
    return terminated(slot.key) + terminated(slot.publisher) + terminated(slot.subkey)


def read_slot(name: bytes) -> Slot:
    """What :func:`slot_name` was given."""
    key, rest = split_first(name)
    publisher, rest = split_first(rest)
    return Slot(Key(key), PeerId(publisher), unterminated(rest))


def place_and_row(entry: Entry) -> tuple[bytes, bytes]:
    """An entry's place, and its row, in which the arrival is still to be filled in."""
    header = entry.header
    place = b"".join(
        (
            b"s",
            slot_name(entry.slot),
            time(header.created_at_us),
            entry.op_id,
            time(header.expires_at_us),
            bytes([entry.is_tombstone]),
        )
    )
    head = _ENTRY_HEAD.pack(0, header.retain_until_us, location_of(header.key), is_op(entry), len(place))
    return place, head + place + entry.envelope


def read_entries(envelopes_and_values: Iterable[bytes | None]) -> Iterator[Entry]:
    """Entries from what the scripts return of each: its envelope, and its value or ``None``.

    Raises:
        StorageError: one cannot be decoded.
    """
    parts = iter(envelopes_and_values)
    for envelope, value in zip(parts, parts, strict=True):
        assert envelope is not None
        try:
            yield decode_entry(envelope, value)
        except ValidationError as error:
            raise StorageError(f"a stored entry was damaged: {error}") from error


def read_outcomes(said: bytes, entries: Iterable[Entry], limits: Limits) -> list[PutResult]:
    """What became of each of the ``entries`` of a put, as ``PUT_ENTRIES`` says it."""
    results = []
    stream = BytesIO(said)
    for entry in entries:
        letter, displaced, reason = stream.read(1), None, ""
        if letter == b"X":
            (displaced,) = read_gone(stream.read(_GONE.size))
        elif letter == b"R":
            reason = "retired: entries retained until then have left this store for good"
        elif letter == b"F":
            reason = _why_full(entry, _OCCUPANCY.unpack(stream.read(_OCCUPANCY.size)), limits)
        evicted_bytes = _GONE.size * int.from_bytes(stream.read(LENGTH_BYTES), "big")
        evicted = tuple(read_gone(stream.read(evicted_bytes)))
        results.append(PutResult(_OUTCOMES[letter], displaced, reason, evicted))
    return results


def _why_full(entry: Entry, occupancy: tuple[float, ...], limits: Limits) -> str:
    """Why there was no room for an entry, in the words in which every backend says it."""
    slots, store_entries, store_bytes, publisher_entries, publisher_bytes = map(int, occupancy)
    try:
        limits.check_room(
            entry,
            Occupancy(
                slots_of_key=slots,
                store_entries=store_entries,
                store_bytes=store_bytes,
                publisher_entries=publisher_entries,
                publisher_bytes=publisher_bytes,
            ),
        )
    except ValidationError as error:
        return str(error)
    raise AssertionError("a script refused an entry for which there is room")


def read_expired(said: bytes) -> Expired:
    """What a deletion removed: the numbers of values, records, providers and own slots, then what retired."""
    numbers, retired = said[: 4 * LENGTH_BYTES], said[4 * LENGTH_BYTES :]
    values_dropped, records, providers, own_slots = struct.unpack(">4I", numbers)
    return Expired(
        retired=tuple(read_gone(retired)),
        values_dropped=values_dropped,
        records=records,
        providers=providers,
        own_slots=own_slots,
    )


def read_gone(said: bytes) -> list[Gone]:
    """Entries that left the store, as the scripts say them."""
    return [
        Gone(OpId(op_id), Op(OpId(op_id), location, TimestampUs(created_at_us)) if is_op else None)
        for op_id, location, created_at_us, is_op in _GONE.iter_unpack(said)
    ]


def last_of_version(version: Version) -> bytes:
    """What the last member of kind ``t`` that an op of this version could have has behind its sector."""
    return time(version.created_at_us) + version.op_id + b"\xff" * _LOCATION_BYTES


def read_ops(members: bytes) -> list[Op]:
    """Ops from their members of kind ``t``, joined."""
    return [
        Op(OpId(op_id), location, TimestampUs(created_at_us))
        for _, _, created_at_us, op_id, location in _OP.iter_unpack(members)
    ]


def read_op_arrays(members: bytes, next_cursor: bytes) -> OpArrays:
    """The same as columns, without looking at each op."""
    table = np.frombuffer(members, _OP_COLUMNS)
    return OpArrays(
        op_ids=np.ascontiguousarray(table["op_id"]),
        locations=table["location"].astype(np.uint32),
        created_at_us=table["created_at_us"].astype(np.int64),
        next_cursor=next_cursor,
    )


def location(key: bytes) -> bytes:
    """Where a key, or content by its multihash, lies on the circle."""
    return location_of(key).to_bytes(_LOCATION_BYTES, "big")


def record_name(key: Key) -> bytes:
    """What the scripts know a plain record by."""
    return terminated(key)


def provider_name(multihash: bytes, provider: PeerId) -> bytes:
    """What the scripts know a provider record by."""
    return terminated(multihash) + provider


def read_numbers(said: bytes) -> tuple[int, ...]:
    """The numbers that a script says as doubles."""
    return tuple(int(number) for (number,) in struct.iter_unpack(">d", said))


def record_row(record: PlainRecord) -> bytes:
    parts = [record.value] if record.publisher is None else [record.value, record.publisher]
    return time(record.expires_at_us) + time(record.received_at_us) + joined(parts)


def read_record(key: bytes, row: bytes) -> PlainRecord:
    value, *publisher = split(row[2 * TIME_BYTES :])
    return PlainRecord(
        key=Key(key),
        value=value,
        received_at_us=_read_time(row, 1),
        expires_at_us=_read_time(row, 0),
        publisher=PeerId(publisher[0]) if publisher else None,
    )


def provider_row(record: ProviderRecord) -> bytes:
    return time(record.expires_at_us) + joined(record.addresses)


def read_provider(multihash: bytes, provider: bytes, row: bytes) -> ProviderRecord:
    return ProviderRecord(
        multihash=multihash,
        provider=PeerId(provider),
        addresses=split(row[TIME_BYTES:]),
        expires_at_us=_read_time(row, 0),
    )


def peer_row(peer: KnownPeer) -> bytes:
    return time(peer.first_seen_us) + time(peer.last_seen_us) + joined([peer.source.encode(), *peer.addresses])


def read_peer(peer: bytes, row: bytes) -> KnownPeer:
    source, *addresses = split(row[2 * TIME_BYTES :])
    return KnownPeer(
        peer=PeerId(peer),
        addresses=tuple(addresses),
        source=source.decode(),
        first_seen_us=_read_time(row, 0),
        last_seen_us=_read_time(row, 1),
    )


def own_slot_row(own: OwnSlot) -> bytes:
    return time(own.created_at_us) + time(own.retain_until_us)


def read_own_slot(slot: Slot, row: bytes) -> OwnSlot:
    return OwnSlot(slot, _read_time(row, 0), _read_time(row, 1))


def _read_time(row: bytes, index: int) -> TimestampUs:
    return TimestampUs(int.from_bytes(row[index * TIME_BYTES : (index + 1) * TIME_BYTES], "big"))
