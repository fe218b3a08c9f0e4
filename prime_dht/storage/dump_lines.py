"""The lines of a dump, as values and as JSON. What they mean is said in :mod:`prime_dht.storage.dump`.

>>> line = encode_line(Meta("mode", b"server"))
>>> line
b'{"meta":{"name":"mode","value":"c2VydmVy"}}\\n'
>>> decode_line(line)
Meta(name='mode', value=b'server')
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import assert_never

from prime_dht.entries.codec import decode_entry
from prime_dht.entries.entry import Entry, Slot
from prime_dht.errors import ValidationError
from prime_dht.ids import Key, PeerId, TimestampUs
from prime_dht.storage.base import KnownPeer, OwnSlot, PlainRecord, ProviderRecord

VERSION = 1
MAX_NUMBER = (1 << 63) - 1
"""What every backend can store."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The first line: which network the entries are of, if there are any, and how many of what follow.

    The counts are for whoever shows progress; a store that changes meanwhile makes them wrong.
    """

    network: str | None
    entries: int
    records: int
    providers: int
    peers: int


@dataclass(frozen=True, slots=True)
class Meta:
    """A piece of node metadata."""

    name: str
    value: bytes


@dataclass(frozen=True, slots=True)
class End:
    """The last line: how many came before it, and the SHA-256 of their bytes."""

    lines: int
    sha256: bytes


Line = Header | Entry | PlainRecord | ProviderRecord | KnownPeer | OwnSlot | Meta | End

_Json = str | int | Sequence[str] | None


NAMES: Mapping[type[Line], str] = {
    Header: "prime_dht_dump",
    Entry: "entry",
    PlainRecord: "record",
    ProviderRecord: "provider",
    KnownPeer: "peer",
    OwnSlot: "own_slot",
    Meta: "meta",
    End: "end",
}


def encode_line(line: Line) -> bytes:
    """A line, with its end."""
    return json.dumps({NAMES[type(line)]: _fields(line)}, separators=(",", ":")).encode() + b"\n"


def _fields(line: Line) -> Mapping[str, _Json]:
    match line:
        case Header():
            counts = {name: getattr(line, name) for name in ("entries", "records", "providers", "peers")}
            return {"version": VERSION, "network": line.network, **counts}
        case Entry():
            return {"envelope": _text(line.envelope), "value": _text_or_null(line.value)}
        case PlainRecord():
            return {
                "key": _text(line.key),
                "value": _text(line.value),
                "received_at_us": line.received_at_us,
                "expires_at_us": line.expires_at_us,
                "publisher": _text_or_null(line.publisher),
            }
        case ProviderRecord():
            return {
                "multihash": _text(line.multihash),
                "provider": _text(line.provider),
                "addresses": [_text(address) for address in line.addresses],
                "expires_at_us": line.expires_at_us,
            }
        case KnownPeer():
            return {
                "peer": _text(line.peer),
                "addresses": [_text(address) for address in line.addresses],
                "source": line.source,
                "first_seen_us": line.first_seen_us,
                "last_seen_us": line.last_seen_us,
            }
        case OwnSlot(slot, created_at_us, retain_until_us):
            return {
                "key": _text(slot.key),
                "publisher": _text(slot.publisher),
                "subkey": _text(slot.subkey),
                "created_at_us": created_at_us,
                "retain_until_us": retain_until_us,
            }
        case Meta(name, value):
            return {"name": name, "value": _text(value)}
        case End(lines, sha256):
            return {"lines": lines, "sha256": sha256.hex()}
        case _:
            assert_never(line)


def decode_line(data: bytes) -> Line:
    """Read a line.

    Raises:
        ValidationError: it is none of a dump, or of a newer version's.
    """
    try:
        decoded = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValidationError("it is not JSON") from error
    match decoded:
        case {"prime_dht_dump": dict(fields)}:
            return _header(_Fields(fields))
        case {"entry": dict(fields)}:
            entry = _Fields(fields)
            return decode_entry(entry.data("envelope"), entry.data_or_none("value"))
        case {"record": dict(fields)}:
            return _record(_Fields(fields))
        case {"provider": dict(fields)}:
            return _provider(_Fields(fields))
        case {"peer": dict(fields)}:
            return _peer(_Fields(fields))
        case {"own_slot": dict(fields)}:
            return _own_slot(_Fields(fields))
        case {"meta": dict(fields)}:
            return Meta(_Fields(fields).text("name"), _Fields(fields).data("value"))
        case {"end": dict(fields)}:
            return _end(_Fields(fields))
        case _:
            raise ValidationError("it is none of the lines of a dump")


class _Fields:
    """The fields of a line, each of the kind that is asked for, or a ValidationError."""

    def __init__(self, fields: Mapping[str, object]) -> None:
        self._fields = fields

    def number(self, name: str) -> int:
        value = self._fields.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_NUMBER:
            raise ValidationError(f"{name} is not a number in [0, 2**63)")
        return value

    def time_us(self, name: str) -> TimestampUs:
        return TimestampUs(self.number(name))

    def text(self, name: str) -> str:
        value = self._fields.get(name)
        if not isinstance(value, str):
            raise ValidationError(f"{name} is not text")
        try:
            value.encode()
        except UnicodeEncodeError as error:  # half a character, which JSON can say and no store can hold
            raise ValidationError(f"{name} is not text: {error.reason}") from error
        return value

    def data(self, name: str) -> bytes:
        text = self.text(name)
        try:
            return base64.b64decode(text, validate=True)
        except ValueError as error:
            raise ValidationError(f"{name} is not base64") from error

    def is_null(self, name: str) -> bool:
        return self._fields.get(name) is None

    def data_or_none(self, name: str) -> bytes | None:
        return None if self.is_null(name) else self.data(name)

    def data_list(self, name: str) -> tuple[bytes, ...]:
        values = self._fields.get(name)
        if not isinstance(values, list):
            raise ValidationError(f"{name} is not a list")
        return tuple(_Fields({name: value}).data(name) for value in values)


def _header(fields: _Fields) -> Header:
    version = fields.number("version")
    if version != VERSION:
        raise ValidationError(f"it is a dump of version {version}; this prime_dht reads version {VERSION}")
    return Header(
        network=None if fields.is_null("network") else fields.text("network"),
        entries=fields.number("entries"),
        records=fields.number("records"),
        providers=fields.number("providers"),
        peers=fields.number("peers"),
    )


def _record(fields: _Fields) -> PlainRecord:
    publisher = fields.data_or_none("publisher")
    return PlainRecord(
        key=Key(fields.data("key")),
        value=fields.data("value"),
        received_at_us=fields.time_us("received_at_us"),
        expires_at_us=fields.time_us("expires_at_us"),
        publisher=None if publisher is None else PeerId(publisher),
    )


def _provider(fields: _Fields) -> ProviderRecord:
    return ProviderRecord(
        multihash=fields.data("multihash"),
        provider=PeerId(fields.data("provider")),
        addresses=fields.data_list("addresses"),
        expires_at_us=fields.time_us("expires_at_us"),
    )


def _peer(fields: _Fields) -> KnownPeer:
    return KnownPeer(
        peer=PeerId(fields.data("peer")),
        addresses=fields.data_list("addresses"),
        source=fields.text("source"),
        first_seen_us=fields.time_us("first_seen_us"),
        last_seen_us=fields.time_us("last_seen_us"),
    )


def _own_slot(fields: _Fields) -> OwnSlot:
    slot = Slot(Key(fields.data("key")), PeerId(fields.data("publisher")), fields.data("subkey"))
    return OwnSlot(slot, fields.time_us("created_at_us"), fields.time_us("retain_until_us"))


def _end(fields: _Fields) -> End:
    lines, sha256 = fields.number("lines"), fields.text("sha256")
    try:
        return End(lines, bytes.fromhex(sha256))
    except ValueError as error:
        raise ValidationError("sha256 is not hexadecimal") from error


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _text_or_null(data: bytes | None) -> str | None:
    return None if data is None else _text(data)
