"""A portable dump of a store: JSON lines, which any backend can write and any other can read.

The first line says what follows ::

    {"prime_dht_dump": {"version": 1, "network": "prime", "entries": 2, "records": 0, "providers": 1, "peers": 5}}

then comes one line for each thing, a JSON object with one name that says what it is. Bytes are base64 ::

    {"entry": {"envelope": "CiQI…", "value": "aGVsbG8="}}      value is null where it is not beside the header
    {"record": {"key": "…", "value": "…", "received_at_us": 1, "expires_at_us": 2, "publisher": null}}
    {"provider": {"multihash": "…", "provider": "…", "addresses": ["…"], "expires_at_us": 2}}
    {"peer": {"peer": "…", "addresses": ["…"], "source": "lookup", "first_seen_us": 1, "last_seen_us": 2}}
    {"own_slot": {"key": "…", "publisher": "…", "subkey": "…", "created_at_us": 1, "retain_until_us": 2}}
    {"meta": {"name": "…", "value": "…"}}

and the last says how many lines came before it, and the SHA-256 of all their bytes ::

    {"end": {"lines": 9, "sha256": "…"}}

Reading trusts nothing about entries: each is decoded, judged as one that a peer offers, and its signature verified
(:func:`~prime_dht.entries.admission.admit`). Everything else is not signed, and is taken as it is said: only read the
dumps of somebody you trust, or only their entries. Own slots and metadata belong to one node: a dump that is meant for
others is best written with entries only.

Both directions hold some 256 KiB of it in memory at a time.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import BinaryIO, assert_never

import trio

from prime_dht.entries.admission import AdmissionRules, Admitted, Deferred, Refused, admit
from prime_dht.entries.entry import BlobRef, Entry
from prime_dht.errors import StorageError, ValidationError
from prime_dht.ids import Key
from prime_dht.storage.base import (
    EntryQuery,
    KnownPeer,
    OwnSlot,
    PlainRecord,
    ProviderRecord,
    PutOutcome,
    StorageBackend,
)
from prime_dht.storage.blocks_status import ARE_UNKEPT
from prime_dht.storage.dump_lines import NAMES, End, Header, Line, Meta, decode_line, encode_line

Progress = Callable[[int, int], None]
"""Is told how many of how many are done."""

MAX_LINE_BYTES = 8 << 20
"""More than any line takes: a plain record has at most 4 MiB."""

BLOCK_BYTES = 256 << 10
"""About as much is in memory at a time."""

MOST_REFUSALS = 100
"""That a report lists; it counts them all."""

_Other = PlainRecord | ProviderRecord | KnownPeer | OwnSlot | Meta


@dataclass(frozen=True, slots=True)
class Refusal:
    """A line that was not taken, counted from 1, and why."""

    line: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportReport:
    """What became of the lines of a dump.

    Attributes:
        outcomes: how many entries were inserted, were there already, or had a newer one in their slot.
        others: how many of everything else were stored, by the name they have in the dump.
        refused: how many lines were not taken; ``refusals`` are the first of them.
        is_whole: whether the dump ends as it says it does. If not, it was cut short or changed.
    """

    outcomes: Mapping[PutOutcome, int]
    others: Mapping[str, int]
    refused: int
    refusals: tuple[Refusal, ...]
    is_whole: bool


async def export(
    store: StorageBackend,
    file: BinaryIO,
    *,
    now_us: int,
    entries_only: bool = False,
    progress: Progress | None = None,
) -> int:
    """Write what a store holds to a file, and return the number of lines.

    Values that have expired at ``now_us`` are left out; their headers are not.

    Raises:
        StorageError: the store cannot be read.
        OSError: the file cannot be written.
    """
    stats = await store.stats()
    header = Header(
        network=await _network(store, now_us),
        entries=stats.entries,
        records=0 if entries_only else stats.records,
        providers=0 if entries_only else stats.providers,
        peers=0 if entries_only else stats.peers,
    )
    total = header.entries + header.records + header.providers + header.peers
    writing = _Writing(file, total, progress)
    await writing.write([header])
    await _export_entries(store, writing, now_us)
    if not entries_only:
        await _export_the_rest(store, writing, stats.peers)
    return await writing.finish()


@dataclass(frozen=True, slots=True)
class Begun:
    """A dump of which the first lines were read, and its header understood."""

    header: Header
    block: Sequence[bytes] = field(repr=False)
    file: BinaryIO


async def import_(
    store: StorageBackend,
    file: BinaryIO,
    *,
    now_us: int,
    rules: AdmissionRules | None = None,
    entries_only: bool = False,
    progress: Progress | None = None,
) -> ImportReport:
    """:func:`begin` to read a dump, and :func:`finish`."""
    begun = await begin(file)
    return await finish(begun, store, now_us=now_us, rules=rules, entries_only=entries_only, progress=progress)


async def begin(file: BinaryIO) -> Begun:
    """Read the header of a dump.

    Raises:
        ValidationError: the file is no dump, or of a newer version, or has a line that is too long.
        OSError: the file cannot be read.
    """
    block = await trio.to_thread.run_sync(_read_block, file)
    try:
        header = decode_line(block[0]) if block else None
    except ValidationError as error:
        raise ValidationError(f"the file is no dump of prime_dht: {error}") from error
    if not isinstance(header, Header):
        raise ValidationError("the file is no dump of prime_dht")
    return Begun(header, block, file)


async def finish(
    begun: Begun,
    store: StorageBackend,
    *,
    now_us: int,
    rules: AdmissionRules | None = None,
    entries_only: bool = False,
    progress: Progress | None = None,
) -> ImportReport:
    """Read a dump into a store. What is refused is reported, and does not keep the rest from being taken.

    Args:
        rules: what entries are judged by; the default limits, and the network the dump says it is of, unless given.

    Raises:
        ValidationError: it has a line that is too long.
        StorageError: the store cannot be written.
        OSError: the file cannot be read.
    """
    header, block = begun.header, begun.block
    total = header.entries if entries_only else header.entries + header.records + header.providers + header.peers
    importing = _Importing(store, rules or AdmissionRules(network_id=header.network or ""), now_us, entries_only)
    while block:
        await importing.take(block)
        if progress is not None:
            progress(min(importing.lines, total), total)
        block = await trio.to_thread.run_sync(_read_block, begun.file)
    return importing.report()


async def _network(store: StorageBackend, now_us: int) -> str | None:
    """The network of which the store's entries are: a node takes those of one alone."""
    for key in await store.keys(limit=1):
        page = await store.get_entries(EntryQuery(key=key, include_expired=True, max_bytes=1), now_us=now_us)
        return page.entries[0].header.network_id if page.entries else None
    return None


async def _export_entries(store: StorageBackend, writing: _Writing, now_us: int) -> None:
    after: Key | None = None
    while keys := await store.keys(after=after):
        for key in keys:
            query = EntryQuery(key=key, include_expired=True)
            while True:
                page = await store.get_entries(query, now_us=now_us)
                await writing.write(page.entries)
                if not page.next_cursor:
                    break
                query = replace(query, cursor=page.next_cursor)
        after = keys[-1]


async def _export_the_rest(store: StorageBackend, writing: _Writing, peers: int) -> None:
    records = await store.records()
    while records:
        await writing.write(records)
        records = await store.records(after=records[-1].key)
    providers = await store.providers()
    while providers:
        await writing.write(providers)
        providers = await store.providers(after=(providers[-1].multihash, providers[-1].provider))
    await writing.write(await store.peers(limit=peers))
    own_slots = await store.own_slots()
    while own_slots:
        await writing.write(own_slots)
        own_slots = await store.own_slots(after=own_slots[-1].slot)
    for name in await store.meta_names():
        value = await store.get_meta(name)
        if value is not None:
            await writing.write([Meta(name, value)])


class _Writing:
    """Lines on their way to a file, a block at a time."""

    def __init__(self, file: BinaryIO, total: int, progress: Progress | None) -> None:
        self._file = file
        self._total = total
        self._progress = progress
        self._block: list[bytes] = []
        self._block_bytes = 0
        self._sha256 = hashlib.sha256()
        self._lines = 0

    async def write(self, lines: Sequence[Line]) -> None:
        for line in lines:
            data = encode_line(line)
            self._sha256.update(data)
            self._block.append(data)
            self._block_bytes += len(data)
            self._lines += 1
            if self._block_bytes >= BLOCK_BYTES:
                await self._write_block()

    async def finish(self) -> int:
        """Write the last line; returns how many there are."""
        await self.write([End(self._lines, self._sha256.digest())])
        await self._write_block()
        return self._lines

    async def _write_block(self) -> None:
        block, self._block, self._block_bytes = b"".join(self._block), [], 0
        await trio.to_thread.run_sync(self._file.write, block)
        if self._progress is not None:
            self._progress(min(self._lines, self._total), self._total)


def _read_block(file: BinaryIO) -> list[bytes]:
    """The next lines, about as much as a block; none at the end."""
    lines: list[bytes] = []
    left = BLOCK_BYTES
    while left > 0 and (line := file.readline(MAX_LINE_BYTES + 1)):
        if len(line) > MAX_LINE_BYTES:
            raise ValidationError(f"a line of a dump has at most {MAX_LINE_BYTES:,} bytes")
        lines.append(line)
        left -= len(line)
    return lines


class _Importing:
    """A dump on its way into a store.

    Attributes:
        lines: how many were read.
    """

    def __init__(self, store: StorageBackend, rules: AdmissionRules, now_us: int, entries_only: bool) -> None:
        self._store = store
        self._rules = rules
        self._now_us = now_us
        self._entries_only = entries_only
        self._sha256 = hashlib.sha256()
        self._outcomes: Counter[PutOutcome] = Counter()
        self._others: Counter[str] = Counter()
        self._refused = 0
        self._refusals: list[Refusal] = []
        self._is_whole = False
        self._are_unkept_noted = False
        self.lines = 0

    async def take(self, block: Sequence[bytes]) -> None:
        """Store what some lines say."""
        entries, others = await trio.to_thread.run_sync(self._read, block)
        if not self._are_unkept_noted and any(isinstance(entry.header.content, BlobRef) for _, entry in entries):
            await self._store.put_meta(ARE_UNKEPT, b"1")  # so that the node takes up their blobs, whatever it keeps
            self._are_unkept_noted = True
        results = await self._store.put_entries([entry for _, entry in entries], now_us=self._now_us)
        for (line, _), result in zip(entries, results, strict=True):
            if result.outcome is PutOutcome.REFUSED:
                self._refuse(line, result.reason)
            else:
                self._outcomes[result.outcome] += 1
        if not self._entries_only:
            await self._store_others(others)

    def report(self) -> ImportReport:
        return ImportReport(
            outcomes=dict(self._outcomes),
            others=dict(self._others),
            refused=self._refused,
            refusals=tuple(self._refusals),
            is_whole=self._is_whole,
        )

    def _read(self, block: Sequence[bytes]) -> tuple[list[tuple[int, Entry]], list[tuple[int, _Other]]]:
        """What some lines say: the entries that are admitted, and the rest, each with the number of its line."""
        entries: list[tuple[int, Entry]] = []
        others: list[tuple[int, _Other]] = []
        for data in block:
            is_first, self._is_whole = self.lines == 0, False
            before, digest = self.lines, self._sha256.digest()
            self.lines += 1
            self._sha256.update(data)
            try:
                line = decode_line(data)
                match line:
                    case Entry():
                        entries.append((self.lines, self._admitted(line)))
                    case End(lines, sha256):
                        self._is_whole = lines == before and sha256 == digest
                    case Header():
                        if not is_first:
                            raise ValidationError("it is the first line of another dump")
                    case PlainRecord() | ProviderRecord() | KnownPeer() | OwnSlot() | Meta():
                        others.append((self.lines, line))
                    case _:
                        assert_never(line)
            except ValidationError as error:
                self._refuse(self.lines, str(error))
        return entries, others

    def _admitted(self, entry: Entry) -> Entry:
        """The entry as the store may take it.

        Raises:
            ValidationError: it may not.
        """
        verdict = admit(entry, now_us=self._now_us, rules=self._rules)
        match verdict:
            case Admitted(admitted):
                return admitted
            case Refused(reason, text):
                raise ValidationError(f"{reason.value}: {text}")
            case Deferred():
                raise ValidationError("it is dated too far in the future")
            case _:
                assert_never(verdict)

    def _refuse(self, line: int, reason: str) -> None:
        self._refused += 1
        if len(self._refusals) < MOST_REFUSALS:
            self._refusals.append(Refusal(line, reason))

    async def _store_others(self, others: Sequence[tuple[int, _Other]]) -> None:
        failures: list[StorageError] = []
        # All at once, because those who write at the same time may share a wait for the disk.
        async with trio.open_nursery() as nursery:
            for number, line in others:
                nursery.start_soon(self._store_one, number, line, failures)
        if failures:
            raise failures[0]

    async def _store_one(self, number: int, line: _Other, failures: list[StorageError]) -> None:
        try:
            match line:
                case PlainRecord():
                    await self._store.put_record(line, now_us=self._now_us)
                case ProviderRecord():
                    await self._store.add_provider(line, now_us=self._now_us)
                case Meta(name, value):
                    if name != ARE_UNKEPT:  # which is of the blobs that the other node had
                        await self._store.put_meta(name, value)
                case KnownPeer():
                    await self._store.put_peers([line])
                case OwnSlot():
                    await self._store.put_own_slots([line])
                case _:
                    assert_never(line)
        except ValidationError as error:
            self._refuse(number, str(error))
        except StorageError as error:
            failures.append(error)
        else:
            self._others[NAMES[type(line)]] += 1
