"""A dump carries all that a store holds to any other, and nothing gets in with it that nobody signed."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from prime_dht.entries.admission import AdmissionRules
from prime_dht.errors import ValidationError
from prime_dht.ids import Key, TimestampUs
from prime_dht.storage.base import EntryQuery, OwnSlot, PutOutcome, StorageBackend
from prime_dht.storage.dump import MAX_LINE_BYTES, Refusal, export, import_
from prime_dht.storage.memory import MemoryBackend
from prime_dht.storage.sqlite import SQLiteBackend
from prime_dht.testing.storage_samples import (
    KEY,
    NOW_US,
    OTHER_KEY,
    bare,
    known_peer,
    make_entry,
    provider,
    read_all,
    record,
)

ENTRIES = (
    make_entry(b"value", subkey=b"\x00\xff"),
    make_entry(None, writer=1),
    bare(make_entry(expires_at_us=150, writer=2)),
    make_entry(bytes(50_000), key=OTHER_KEY),
)
OWN_SLOT = OwnSlot(ENTRIES[0].slot, TimestampUs(100), TimestampUs(1000))


async def fill(store: StorageBackend) -> None:
    await store.put_entries(ENTRIES, now_us=NOW_US)
    await store.put_record(record(b"a"), now_us=NOW_US)
    await store.put_record(replace(record(b"b"), publisher=ENTRIES[0].publisher), now_us=NOW_US)
    for name in (b"a", b"b", b"c"):
        await store.add_provider(provider(name), now_us=NOW_US)
    await store.put_peers([known_peer(b"a"), known_peer(b"b", last_seen_us=150)])
    await store.put_own_slots([OWN_SLOT])
    await store.put_meta("mode", b"\x00server")


async def assert_holds_all(store: StorageBackend) -> None:
    for key in (KEY, OTHER_KEY):
        held = await read_all(store, EntryQuery(key=key, include_expired=True))
        assert held == sorted(
            (entry for entry in ENTRIES if entry.header.key == key),
            key=lambda entry: (entry.publisher, entry.header.subkey),
        )
    assert await store.records() == [record(b"a"), replace(record(b"b"), publisher=ENTRIES[0].publisher)]
    assert await store.providers() == [provider(name) for name in (b"a", b"b", b"c")]
    assert await store.peers() == [known_peer(b"b", last_seen_us=150), known_peer(b"a")]
    assert await store.own_slots() == [OWN_SLOT]
    assert await store.get_meta("mode") == b"\x00server"


async def dump_of(store: StorageBackend, *, entries_only: bool = False) -> bytes:
    file = io.BytesIO()
    lines = await export(store, file, now_us=NOW_US, entries_only=entries_only)
    assert lines == file.getvalue().count(b"\n")
    return file.getvalue()


@pytest.fixture
async def dump() -> bytes:
    async with MemoryBackend() as store:
        await fill(store)
        return await dump_of(store)


async def test_a_dump_of_one_backend_is_read_by_another(tmp_path: Path) -> None:
    async with MemoryBackend() as memory, await SQLiteBackend.open(tmp_path / "prime.db") as database:
        await fill(memory)
        first = await dump_of(memory)
        report = await import_(database, io.BytesIO(first), now_us=NOW_US)
        assert report.outcomes == {PutOutcome.INSERTED: 4}
        assert report.others == {"record": 2, "provider": 3, "peer": 2, "own_slot": 1, "meta": 1}
        assert (report.refused, report.refusals, report.is_whole) == (0, (), True)
        await assert_holds_all(database)
        assert await dump_of(database) == first
        again = await import_(memory, io.BytesIO(first), now_us=NOW_US)
        assert again.outcomes == {PutOutcome.DUPLICATE: 4}
        await assert_holds_all(memory)


async def test_a_dump_is_lines_of_json_as_documented(dump: bytes) -> None:
    lines = [json.loads(line) for line in dump.splitlines()]
    assert lines[0] == {
        "prime_dht_dump": {
            "version": 1,
            "network": "conformance",
            "entries": 4,
            "records": 2,
            "providers": 3,
            "peers": 2,
        }
    }
    names = [name for line in lines for name in line]
    assert names[1:-1] == ["entry"] * 4 + ["record"] * 2 + ["provider"] * 3 + ["peer"] * 2 + ["own_slot", "meta"]
    assert lines[-1]["end"]["lines"] == len(lines) - 1


async def test_a_dump_may_be_of_entries_alone_and_so_may_what_is_read_of_one(dump: bytes) -> None:
    async with MemoryBackend() as store, MemoryBackend() as other:
        await import_(store, io.BytesIO(dump), now_us=NOW_US, entries_only=True)
        stats = await store.stats()
        assert (stats.entries, stats.records, stats.providers, stats.peers) == (4, 0, 0, 0)
        assert (await store.own_slots(), await store.meta_names()) == ([], [])
        await fill(other)
        assert await dump_of(other, entries_only=True) == await dump_of(store)


async def test_an_empty_store_makes_a_dump_and_takes_one() -> None:
    async with MemoryBackend() as store:
        dump = await dump_of(store)
        report = await import_(store, io.BytesIO(dump), now_us=NOW_US)
        assert (dict(report.outcomes), report.refused, report.is_whole) == ({}, 0, True)


async def test_values_that_have_expired_are_left_out(dump: bytes) -> None:
    async with MemoryBackend() as store:
        await store.put_entries([make_entry(expires_at_us=300)], now_us=NOW_US)
        file = io.BytesIO()
        await export(store, file, now_us=300)
        assert json.loads(file.getvalue().splitlines()[1])["entry"]["value"] is None


async def test_progress_ends_with_all_that_was_announced(dump: bytes) -> None:
    calls: list[tuple[int, int]] = []
    async with MemoryBackend() as store:
        await import_(store, io.BytesIO(dump), now_us=NOW_US, progress=lambda *call: calls.append(call))
        assert calls[-1] == (11, 11)
        await export(store, io.BytesIO(), now_us=NOW_US, progress=lambda *call: calls.append(call))
        assert calls[-1] == (11, 11)


def edited(dump: bytes, line: int, edit: Callable[[dict[str, str]], None]) -> bytes:
    """The dump with the fields of one line changed."""
    lines = dump.splitlines(keepends=True)
    decoded = json.loads(lines[line - 1])
    (fields,) = decoded.values()
    edit(fields)
    lines[line - 1] = json.dumps(decoded).encode() + b"\n"
    return b"".join(lines)


def flip_a_bit_of_the_signature(fields: dict[str, str]) -> None:
    fields["envelope"] = fields["envelope"][:-8] + "AAAA" + fields["envelope"][-4:]


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (flip_a_bit_of_the_signature, "bad signature: "),
        (lambda fields: fields.update(value="b3RoZXI="), "SHA-256"),
        (lambda fields: fields.update(envelope="CiQ="), "not an envelope"),
        (lambda fields: fields.update(envelope="*"), "envelope is not base64"),
        (lambda fields: fields.pop("envelope"), "envelope is not text"),
    ],
)
async def test_an_entry_that_was_tampered_with_is_refused_and_the_rest_is_taken(
    dump: bytes, edit: Callable[[dict[str, str]], None], reason: str
) -> None:
    line = next(n for n, data in enumerate(dump.splitlines(), 1) if b'"value":"dmFsdWU="' in data)
    async with MemoryBackend() as store:
        report = await import_(store, io.BytesIO(edited(dump, line, edit)), now_us=NOW_US)
        assert report.outcomes == {PutOutcome.INSERTED: 3}
        (refusal,) = report.refusals
        assert refusal.line == line
        assert reason in refusal.reason
        assert not report.is_whole


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "none of the lines of a dump"),
        (b'{"entry": []}', "none of the lines of a dump"),
        (b'{"notes": {}}', "none of the lines of a dump"),
        (b'{"prime_dht_dump": {"version": 1}}', "entries is not a number"),
        (b'{"record": {"key": "YQ==", "value": ""}}', "received_at_us is not a number"),
        (b'{"peer": {"peer": "YQ==", "addresses": "YQ=="}}', "addresses is not a list"),
        (b'{"peer": {"peer": "YQ==", "addresses": [1]}}', "addresses is not text"),
        (b'{"meta": {"name": 1}}', "name is not text"),
        (b'{"meta": {"name": "\\ud800", "value": ""}}', "name is not text: surrogates not allowed"),
        (b'{"peer": {"peer": "YQ==", "addresses": [], "source": "\\udfff"}}', "source is not text: surrogates"),
        (b'{"end": {"lines": 1, "sha256": "x"}}', "sha256 is not hexadecimal"),
        (b'{"end": {"lines": true, "sha256": ""}}', "lines is not a number"),
        (b'{"end": {"lines": 9223372036854775808, "sha256": ""}}', "lines is not a number"),
    ],
)
async def test_a_line_that_cannot_be_read_is_refused_and_the_rest_is_taken(
    dump: bytes, line: bytes, reason: str
) -> None:
    first, *rest = dump.splitlines(keepends=True)
    async with MemoryBackend() as store:
        report = await import_(store, io.BytesIO(b"".join((first, line, b"\n", *rest))), now_us=NOW_US)
        assert report.refused == 1
        assert report.refusals[0].line == 2
        assert reason in report.refusals[0].reason
        await assert_holds_all(store)


async def test_a_second_first_line_is_refused(dump: bytes) -> None:
    first, *rest = dump.splitlines(keepends=True)
    async with MemoryBackend() as store:
        report = await import_(store, io.BytesIO(b"".join((first, first, *rest))), now_us=NOW_US)
        assert report.refusals == (Refusal(2, "it is the first line of another dump"),)


@pytest.mark.parametrize("lines", [slice(0, -1), slice(0, 5)])
async def test_a_dump_that_was_cut_short_is_noticed(dump: bytes, lines: slice) -> None:
    async with MemoryBackend() as store:
        report = await import_(store, io.BytesIO(b"".join(dump.splitlines(keepends=True)[lines])), now_us=NOW_US)
        assert not report.is_whole
        assert report.outcomes == {PutOutcome.INSERTED: 4}


async def test_a_dump_with_a_line_too_few_or_behind_its_end_is_noticed(dump: bytes) -> None:
    lines = dump.splitlines(keepends=True)
    async with MemoryBackend() as store:
        for tampered in ((*lines[:2], *lines[3:]), (*lines, lines[5])):
            assert not (await import_(store, io.BytesIO(b"".join(tampered)), now_us=NOW_US)).is_whole


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no dump of prime_dht$"),
        (b"SQLite format 3\x00", "no dump of prime_dht: it is not JSON"),
        (b'{"end": {"lines": 0, "sha256": ""}}', "no dump of prime_dht$"),
        (b'{"prime_dht_dump": {"version": 2}}', "a dump of version 2; this prime_dht reads version 1"),
        (b"x" * (MAX_LINE_BYTES + 1), "at most 8,388,608 bytes"),
    ],
)
async def test_a_file_that_is_no_dump_is_an_error(data: bytes, reason: str) -> None:
    async with MemoryBackend() as store:
        with pytest.raises(ValidationError, match=reason):
            await import_(store, io.BytesIO(data), now_us=NOW_US)


async def test_entries_are_judged_as_those_of_a_peer(dump: bytes) -> None:
    async def refusals(rules: AdmissionRules | None, now_us: int) -> Sequence[str]:
        async with MemoryBackend() as store:
            report = await import_(store, io.BytesIO(dump), now_us=now_us, rules=rules)
            return sorted(refusal.reason.split(":")[0] for refusal in report.refusals)

    assert await refusals(AdmissionRules(network_id="other"), NOW_US) == ["wrong network"] * 4
    assert await refusals(AdmissionRules(network_id="conformance", unit_us=1), 1002) == ["retired"] * 4
    assert await refusals(None, NOW_US) == []


async def test_a_report_lists_the_first_refusals_and_counts_them_all(dump: bytes) -> None:
    first, *_ = dump.splitlines(keepends=True)
    async with MemoryBackend() as store:
        report = await import_(store, io.BytesIO(first + b"{}\n" * 150), now_us=NOW_US)
        assert (report.refused, len(report.refusals)) == (150, 100)


async def test_what_the_store_refuses_is_reported(dump: bytes) -> None:
    async with MemoryBackend() as store:
        store.capacity.limits = replace(store.capacity.limits, max_slots_per_key=2)
        report = await import_(store, io.BytesIO(dump), now_us=NOW_US)
        assert report.outcomes == {PutOutcome.INSERTED: 3}
        assert "the key: 3 slots; the limit is 2" in report.refusals[0].reason


async def test_a_store_of_many_pages_of_everything_is_written_whole() -> None:
    many = 1001
    async with MemoryBackend() as store, MemoryBackend() as other:
        await store.put_entries([make_entry(key=Key(b"/prime/%d" % number)) for number in range(many)], now_us=NOW_US)
        for number in range(many):
            await store.put_record(record(b"%d" % number), now_us=NOW_US)
            await store.add_provider(provider(b"peer", multihash=b"%d" % number), now_us=NOW_US)
        await store.put_peers([known_peer(b"%d" % number, last_seen_us=number) for number in range(many)])
        slots = [OWN_SLOT.slot._replace(subkey=b"%d" % number) for number in range(many)]
        await store.put_own_slots([replace(OWN_SLOT, slot=slot) for slot in slots])
        dump = await dump_of(store)
        await import_(other, io.BytesIO(dump), now_us=NOW_US)
        assert await other.stats() == await store.stats()
        assert (await other.stats()).peers == many
        assert await dump_of(other) == dump
        assert dump.count(b'{"own_slot"') == many


async def test_a_large_store_is_written_and_read_in_many_blocks() -> None:
    entries = [make_entry(bytes(40_000), key=Key(b"/prime/%d" % (n // 45)), subkey=b"%d" % n) for n in range(50)]
    async with MemoryBackend() as store, MemoryBackend() as other:
        await store.put_entries(entries, now_us=NOW_US)
        calls: list[tuple[int, int]] = []
        file = io.BytesIO()
        await export(store, file, now_us=NOW_US, progress=lambda *call: calls.append(call))
        assert len(calls) > 3
        assert [total for _, total in calls] == [50] * len(calls)
        report = await import_(other, io.BytesIO(file.getvalue()), now_us=NOW_US)
        assert report.outcomes == {PutOutcome.INSERTED: 50}
        assert await dump_of(other) == file.getvalue()
