"""``prime-dht store``: what a person and a program see of a store, and that nothing they do harms one."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import pytest
import trio

from prime_dht.cli import main
from prime_dht.cli.commands.store.files import dump_to_write
from prime_dht.entries.entry import Entry
from prime_dht.errors import ConfigError
from prime_dht.ids import Key, TimestampUs, peer_text
from prime_dht.net.identity import IDENTITY_FILE
from prime_dht.node.clock import SystemClock
from prime_dht.node.open import BLOCKS_DIRECTORY, STORE_FILE
from prime_dht.storage.base import OwnSlot
from prime_dht.storage.blocks import INDEX_FILE, BlockStore
from prime_dht.storage.dump_lines import End, Header, Line, encode_line
from prime_dht.storage.offline import check
from prime_dht.storage.sqlite import SQLiteBackend
from prime_dht.storage.sqlite_file import PAGE_BYTES, open_database
from prime_dht.testing.processes import PRIME_DHT, Ended, prime_dht, running, running_node
from prime_dht.testing.storage_samples import NOW_US, OTHER_KEY, known_peer, make_entry, provider, record

OpenTerminal = Callable[[], AbstractContextManager[Callable[[], list[str]]]]

ENTRIES = (
    make_entry(b"weights"),
    make_entry(b"expired", subkey=b"old", created_at_us=50, expires_at_us=150, retain_until_us=1000),
    make_entry(None, key=OTHER_KEY),
    make_entry(b"by another", writer=1, created_at_us=180),
)
LINES = len(ENTRIES) + 1 + 1 + 2 + 1 + 1 + 2  # record, provider, peers, own slot, metadata, first and last


@pytest.fixture(autouse=True)
def _at_a_literal_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what runs in this process."""
    monkeypatch.setattr(SystemClock, "now_us", lambda _: TimestampUs(NOW_US))


@dataclass(frozen=True, slots=True)
class Shell:
    """Runs ``prime-dht store`` in this process."""

    captured: pytest.CaptureFixture[str]

    def store(self, *arguments: str | Path) -> Ended:
        self.captured.readouterr()
        status = main(["store", *map(str, arguments)])
        out, err = self.captured.readouterr()
        return Ended(status, out.encode(), err)


@pytest.fixture
def shell(capfd: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capfd)


async def fill(path: Path) -> None:
    async with await SQLiteBackend.open(path) as store:
        await store.put_entries(ENTRIES, now_us=100)
        await store.put_record(record(b"name"), now_us=NOW_US)
        await store.add_provider(provider(b"provider"), now_us=NOW_US)
        await store.put_peers([known_peer(b"one"), known_peer(b"two")])
        await store.put_own_slots([OwnSlot(ENTRIES[0].slot, TimestampUs(100), TimestampUs(1000))])
        await store.put_meta("name", b"value")


def living_entries() -> list[Entry]:
    """Some, of 80 KB a line, for processes that look at the real clock."""
    now_us = time.time_ns() // 1000
    return [
        make_entry(bytes(60_000), key=Key(b"/prime/%d" % number), created_at_us=now_us, expires_at_us=now_us + 10**9)
        for number in range(20)
    ]


async def add(path: Path, entries: Sequence[Entry]) -> None:
    async with await SQLiteBackend.open(path) as store:
        await store.put_entries(entries, now_us=NOW_US)


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """Of a node that has these entries and some of everything else."""
    directory = tmp_path / "data"
    directory.mkdir(0o700)
    trio.run(fill, directory / STORE_FILE)
    return directory


def change(data_dir: Path, sql: str) -> list[tuple[object, ...]]:
    """Do to the database what no code of ours does; returns what it answers."""
    with closing(sqlite3.connect(data_dir / STORE_FILE)) as connection, connection:
        return connection.execute(sql).fetchall()


def complaint(ended: Ended) -> str:
    """The one line that a command which failed has written."""
    assert (ended.status, ended.out) == (2, b""), ended
    assert ended.err.startswith("prime-dht: ")
    assert ended.err.count("\n") == 1, ended.err
    return ended.err


# info


def test_info_tells_programs_all_that_is_known(data_dir: Path, shell: Shell) -> None:
    peer_id = prime_dht("id", "--data-dir", str(data_dir)).out.decode().strip()
    change(data_dir, "CREATE TABLE large AS SELECT zeroblob(80000)")
    change(data_dir, "DROP TABLE large")
    ended = shell.store("info", "--data-dir", data_dir, "--json")
    assert (ended.status, ended.err) == (0, "")
    [(free_pages,)] = change(data_dir, "PRAGMA freelist_count")
    assert isinstance(free_pages, int)
    assert free_pages >= 10
    by_first = sum(entry.size_bytes for entry in ENTRIES[:3])
    assert json.loads(ended.out) == {
        "path": str(data_dir / STORE_FILE),
        "schema": 4,
        "peer_id": peer_id,
        "network": "conformance",
        "file_bytes": (data_dir / STORE_FILE).stat().st_size,
        "free_bytes": free_pages * PAGE_BYTES,
        "journal_bytes": 0,
        "entry_bytes": by_first + ENTRIES[3].size_bytes,
        "keys": 2,
        "entries": 4,
        "ops": 0,  # none of them lives for the five minutes that make it one
        "records": 1,
        "providers": 1,
        "peers": 2,
        "expired": 1,
        "oldest_us": 50,
        "newest_us": 180,
        "publishers": 2,
        "top_publishers": [
            {"peer_id": peer_text(ENTRIES[0].publisher), "entries": 3, "bytes": by_first},
            {"peer_id": peer_text(ENTRIES[3].publisher), "entries": 1, "bytes": ENTRIES[3].size_bytes},
        ],
    }


def test_info_tells_people_the_same_in_lines(data_dir: Path, shell: Shell) -> None:
    lines = shell.store("info", "--data-dir", data_dir).out.decode().splitlines()
    assert lines[0] == f"store      {data_dir / STORE_FILE}, schema 4"
    assert "node       no identity yet" in lines
    assert "network    conformance" in lines
    assert f"entries    4 under 2 keys, {sum(entry.size_bytes for entry in ENTRIES)} bytes; 0 are ops" in lines
    assert lines[-2].split()[:3] == [peer_text(ENTRIES[0].publisher), "3", "entries"]


def test_info_of_an_empty_store_has_less_to_say(tmp_path: Path, shell: Shell) -> None:
    open_database(tmp_path / STORE_FILE, synchronous="FULL").close()
    ended = shell.store("info", "--data-dir", tmp_path)
    assert (ended.status, ended.err) == (0, "")
    assert b"network    not known, there are no entries\n" in ended.out
    assert ended.out.endswith(b"publishers 0\n")


def test_info_makes_no_identity(data_dir: Path, shell: Shell) -> None:
    shell.store("info", "--data-dir", data_dir)
    assert not (data_dir / IDENTITY_FILE).exists()


# check


def test_a_sound_store_checks_with_status_0(data_dir: Path, shell: Shell) -> None:
    assert shell.store("check", "--data-dir", data_dir) == Ended(0, b"4 entries, all sound\n", "")
    ended = shell.store("check", "--data-dir", data_dir, "--json")
    assert json.loads(ended.out) == {"entries": 4, "problems": []}


def test_what_is_wrong_is_printed_with_status_1(data_dir: Path, shell: Shell) -> None:
    change(data_dir, "UPDATE entries SET value = x'00' WHERE id = 1")
    ended = shell.store("check", "--data-dir", data_dir)
    assert (ended.status, ended.err) == (1, "")
    assert ended.out.startswith(b"entry 1: ")
    ended = shell.store("check", "--data-dir", data_dir, "--json")
    assert ended.status == 1
    assert json.loads(ended.out)["problems"][0].startswith("entry 1: ")


def test_a_damaged_file_checks_with_status_1_and_stays_where_it_is(data_dir: Path, shell: Shell) -> None:
    (data_dir / STORE_FILE).write_bytes(b"garbage" * 1000)
    ended = shell.store("check", "--data-dir", data_dir)
    assert (ended.status, ended.out.count(b"\n")) == (1, 1)
    assert b"damaged" in ended.out
    assert (data_dir / STORE_FILE).read_bytes() == b"garbage" * 1000


def test_a_damaged_index_of_blobs_checks_with_status_1_and_is_named(data_dir: Path, shell: Shell) -> None:
    async def make_blocks() -> None:
        await (await BlockStore.open(data_dir / BLOCKS_DIRECTORY, max_bytes=0)).aclose()

    trio.run(make_blocks)
    index = data_dir / BLOCKS_DIRECTORY / INDEX_FILE
    assert shell.store("check", "--data-dir", data_dir).status == 0
    index.write_bytes(b"garbage" * 1000)
    ended = shell.store("check", "--data-dir", data_dir)
    assert (ended.status, ended.out.decode()) == (1, f"{index}: damaged, or not a database\n")
    assert index.read_bytes() == b"garbage" * 1000


def test_an_index_of_blobs_that_is_gone_checks_with_status_1_and_none_is_made(data_dir: Path, shell: Shell) -> None:
    index = data_dir / BLOCKS_DIRECTORY / INDEX_FILE
    block = index.with_name("ab") / ("ab" * 32)
    block.parent.mkdir(parents=True)
    assert shell.store("check", "--data-dir", data_dir).status == 0
    block.touch()
    ended = shell.store("check", "--data-dir", data_dir)
    assert (ended.status, ended.out.count(b"\n")) == (1, 1)
    assert ended.out.decode().startswith(f"{index}: gone or empty, while blocks are there: ")
    assert not index.exists()


def test_another_programs_database_cannot_be_checked(data_dir: Path, shell: Shell) -> None:
    change(data_dir, "PRAGMA application_id = 7")
    assert "not a store of prime_dht" in complaint(shell.store("check", "--data-dir", data_dir))


# export and import


def export(shell: Shell, data_dir: Path, out: Path, *options: str) -> bytes:
    """The dump of a store."""
    ended = shell.store("export", "--data-dir", data_dir, "--out", out, *options)
    assert ended.status == 0, ended.err
    return out.read_bytes()


def test_a_store_that_was_exported_and_imported_exports_the_same(data_dir: Path, tmp_path: Path, shell: Shell) -> None:
    dump = export(shell, data_dir, tmp_path / "dump")
    ended = shell.store("import", "--data-dir", tmp_path / "new" / "one", tmp_path / "dump")
    assert ended == Ended(
        0,
        b"entry: 4 taken, 0 there already, 0 older than what is there\n"
        b"meta: 1 taken\nown_slot: 1 taken\npeer: 2 taken\nprovider: 1 taken\nrecord: 1 taken\nrefused: 0\n",
        "",
    )
    assert export(shell, tmp_path / "new" / "one", tmp_path / "again") == dump
    assert (tmp_path / "new" / "one").stat().st_mode & 0o777 == 0o700


def test_entries_only_leaves_everything_else_out(data_dir: Path, tmp_path: Path, shell: Shell) -> None:
    dump = export(shell, data_dir, tmp_path / "dump", "--entries-only")
    assert [next(iter(json.loads(line))) for line in dump.splitlines()] == ["prime_dht_dump", *["entry"] * 4, "end"]
    export(shell, data_dir, tmp_path / "all")
    ended = shell.store("import", "--data-dir", tmp_path / "new", tmp_path / "all", "--entries-only", "--json")
    assert (ended.status, json.loads(ended.out)["others"]) == (0, {})


def test_what_export_did_is_told_to_people_and_programs(data_dir: Path, tmp_path: Path, shell: Shell) -> None:
    out = tmp_path / "dump"
    ended = shell.store("export", "--data-dir", data_dir, "--out", out)
    assert ended == Ended(0, f"{LINES} lines written to {out}\n".encode(), "")
    ended = shell.store("export", "--data-dir", data_dir, "--out", out, "--force", "--json")
    assert json.loads(ended.out) == {"path": str(out), "lines": LINES}


def test_what_was_imported_before_is_there_already(data_dir: Path, tmp_path: Path, shell: Shell) -> None:
    export(shell, data_dir, tmp_path / "dump")
    ended = shell.store("import", "--data-dir", data_dir, tmp_path / "dump", "--json")
    assert (ended.status, ended.err) == (0, "")
    report = json.loads(ended.out)
    assert (report["inserted"], report["duplicate"], report["superseded"], report["refused"]) == (0, 4, 0, 0)
    assert report["whole"]


def test_what_is_refused_is_listed_with_the_reason_and_the_rest_is_taken(tmp_path: Path, shell: Shell) -> None:
    good, forged, *others = (make_entry(key=Key(b"/prime/%d" % number)) for number in range(13))
    lines = [
        encode_line(Header(network="conformance", entries=13, records=0, providers=0, peers=0)),
        encode_line(good),
        encode_line(replace(forged, envelope=forged.envelope[:-1] + bytes([forged.envelope[-1] ^ 1]))),
        *[encode_line(replace(other, value=b"another")) for other in others],
    ]
    dump = tmp_path / "dump"
    dump.write_bytes(b"".join((*lines, encode_line(End(len(lines), sha256(b"".join(lines)).digest())))))
    ended = shell.store("import", "--data-dir", tmp_path, dump)
    assert ended.status == 1
    assert ended.out.splitlines()[0].startswith(b"entry: 1 taken")
    assert ended.out.endswith(b"refused: 12\n")
    complaints = ended.err.splitlines()
    assert complaints[0] == "prime-dht: line 3 was refused: bad signature: the publisher did not sign the entry"
    assert complaints[-1] == "prime-dht: 2 more were refused"
    assert len(complaints) == 11
    report = json.loads(shell.store("import", "--data-dir", tmp_path, dump, "--json").out)
    assert [refusal["line"] for refusal in report["refusals"]] == list(range(3, 15))


def test_a_dump_that_was_cut_short_is_taken_as_far_as_it_goes_with_status_1(
    data_dir: Path, tmp_path: Path, shell: Shell
) -> None:
    dump = export(shell, data_dir, tmp_path / "dump")
    (tmp_path / "dump").write_bytes(b"".join(dump.splitlines(keepends=True)[:3]))
    ended = shell.store("import", "--data-dir", tmp_path, tmp_path / "dump")
    assert (ended.status, ended.err) == (
        1,
        "prime-dht: the dump does not end as it should: it was cut short, or changed\n",
    )
    assert ended.out.startswith(b"entry: 2 taken")


def test_a_dump_brings_back_what_a_damaged_file_held(data_dir: Path, tmp_path: Path, shell: Shell) -> None:
    dump = export(shell, data_dir, tmp_path / "dump")
    (data_dir / STORE_FILE).write_bytes(b"garbage" * 1000)
    damaged = shell.store("import", "--data-dir", data_dir, tmp_path / "dump")
    assert "it was moved to store.sqlite.corrupt-" in complaint(damaged)
    again = shell.store("import", "--data-dir", data_dir, tmp_path / "dump")
    assert "move that away to start afresh" in complaint(again)
    (aside,) = data_dir.glob("store.sqlite.corrupt-*")
    assert aside.rename(tmp_path / "damaged").read_bytes() == b"garbage" * 1000
    assert shell.store("import", "--data-dir", data_dir, tmp_path / "dump").status == 0
    assert export(shell, data_dir, tmp_path / "again") == dump


def test_a_file_that_is_there_is_replaced_only_by_force(data_dir: Path, tmp_path: Path, shell: Shell) -> None:
    (tmp_path / "dump").write_text("precious")
    refused = shell.store("export", "--data-dir", data_dir, "--out", tmp_path / "dump")
    assert "it exists already; --force replaces it" in complaint(refused)
    assert (tmp_path / "dump").read_text() == "precious"
    assert export(shell, data_dir, tmp_path / "dump", "--force").startswith(b'{"prime_dht_dump"')


def test_no_force_replaces_what_is_no_file(data_dir: Path, tmp_path: Path, shell: Shell) -> None:
    os.mkfifo(tmp_path / "pipe")
    refused = shell.store("export", "--data-dir", data_dir, "--out", tmp_path / "pipe", "--force")
    assert "not a regular file" in complaint(refused)
    assert (tmp_path / "pipe").is_fifo()


def test_a_dump_is_for_its_owner_alone(data_dir: Path, tmp_path: Path, shell: Shell) -> None:
    export(shell, data_dir, tmp_path / "dump")
    assert (tmp_path / "dump").stat().st_mode & 0o777 == 0o600


def test_an_export_that_fails_leaves_what_was_there(data_dir: Path, tmp_path: Path, shell: Shell) -> None:
    change(data_dir, "UPDATE entries SET value = x'00' WHERE id = 1")
    (tmp_path / "dump").write_text("precious")
    before = set(tmp_path.iterdir())
    failed = shell.store("export", "--data-dir", data_dir, "--out", tmp_path / "dump", "--force")
    assert "a stored entry was damaged" in complaint(failed)
    assert set(tmp_path.iterdir()) == before
    assert (tmp_path / "dump").read_text() == "precious"


def test_an_export_that_ctrl_c_ends_leaves_nothing(
    data_dir: Path, tmp_path: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    def press_ctrl_c(line: Line) -> bytes:
        if isinstance(line, End):
            raise KeyboardInterrupt
        return encode_line(line)

    monkeypatch.setattr("prime_dht.storage.dump.encode_line", press_ctrl_c)
    before = set(tmp_path.iterdir())
    assert shell.store("export", "--data-dir", data_dir, "--out", tmp_path / "dump").status == 130
    assert set(tmp_path.iterdir()) == before


def test_a_file_that_appears_during_an_export_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="exists already"), dump_to_write(tmp_path / "dump", force=False):
        (tmp_path / "dump").write_text("precious")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["precious"]


@pytest.mark.parametrize("verb", ["check", "export", "import"])
def test_what_takes_long_shows_its_progress_on_a_terminal(
    verb: str, data_dir: Path, tmp_path: Path, shell: Shell, open_terminal: OpenTerminal
) -> None:
    export(shell, data_dir, tmp_path / "dump")
    options = {"check": (), "export": ("--out", tmp_path / "new"), "import": (tmp_path / "dump",)}
    with open_terminal() as shown:
        assert shell.store(verb, "--data-dir", data_dir, *options[verb]).status == 0
        assert shown()[-1] == f"{verb.removesuffix('e')}ing  [##########]  100%\x1b[K\n"


# mistakes


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("infos", "No such command 'infos'"),
        ("info", "Missing option '--data-dir'"),
        ("info --data-dir /etc/passwd", "'/etc/passwd' is not a directory"),
        ("info --data-dir /no/such", "/no/such/store.sqlite: there is no store"),
        ("check --data-dir /no/such", "there is no store"),
        ("check --data-dir /no/such surplus", "unexpected extra argument"),
        ("export --data-dir /no/such", "there is no store"),
        ("export --data-dir /no/such --json", "--json needs --out FILE"),
        ("export --data-dir /no/such --out /no/such/file", "/no/such/file: No such file or directory"),
        ("import --data-dir /no/such", "Missing argument 'FILE'"),
        ("import --data-dir /no/such /no/such/file", "/no/such/file: No such file or directory"),
        ("import --data-dir /no/such /", "/: Is a directory"),
        ("import --data-dir /proc/self/nothing /etc/passwd", "/proc/self/nothing"),
    ],
)
def test_a_mistake_gets_one_line_and_status_2(arguments: str, says: str, shell: Shell) -> None:
    assert says in complaint(shell.store(*arguments.split(" ")))


def test_a_file_that_is_no_dump_is_refused(tmp_path: Path, shell: Shell) -> None:
    (tmp_path / "photo").write_bytes(bytes(range(256)))
    refused = shell.store("import", "--data-dir", tmp_path, tmp_path / "photo")
    assert "the file is no dump of prime_dht" in complaint(refused)


def test_without_a_subcommand_help_goes_to_standard_error(shell: Shell) -> None:
    ended = shell.store()
    assert (ended.status, ended.out) == (2, b"")
    assert "Commands:" in ended.err


def test_help_says_what_each_subcommand_does(shell: Shell) -> None:
    for verb in ("info", "check", "export", "import"):
        assert f"prime-dht store {verb}".encode() in shell.store(verb, "--help").out


# with other processes


def test_the_store_of_a_node_that_runs_is_in_use(data_dir: Path, tmp_path: Path, shell: Shell) -> None:
    export(shell, data_dir, tmp_path / "dump")
    with running_node("--data-dir", str(data_dir)):
        for arguments in (["info"], ["check"], ["export"], ["import", str(tmp_path / "dump")]):
            used = shell.store(*arguments, "--data-dir", data_dir)
            assert "store.sqlite: another process has it open" in complaint(used)


def test_a_dump_goes_through_pipes(tmp_path: Path) -> None:
    trio.run(add, tmp_path / STORE_FILE, living_entries())
    exported = prime_dht("store", "export", "--data-dir", str(tmp_path))
    assert (exported.status, exported.err) == (0, "")
    imported = prime_dht("store", "import", "--data-dir", str(tmp_path / "new"), "-", stdin=exported.out)
    assert (imported.status, imported.err) == (0, "")
    assert imported.out.startswith(b"entry: 20 taken")


def test_a_reader_that_stops_reading_ends_an_export_quietly(data_dir: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with (
        os.fdopen(writing, "wb") as pipe,
        running(*PRIME_DHT, "store", "export", "--data-dir", str(data_dir), stdout=pipe) as exporting,
    ):
        ended = exporting.end()
    assert (ended.status, ended.err) == (128 + signal.SIGPIPE, "")


def test_ctrl_c_ends_an_export_that_nobody_reads(tmp_path: Path) -> None:
    trio.run(add, tmp_path / STORE_FILE, living_entries())
    with running(*PRIME_DHT, "store", "export", "--data-dir", str(tmp_path)) as exporting:
        assert exporting.line().startswith('{"prime_dht_dump"')
        exporting.process.send_signal(signal.SIGINT)
        assert exporting.status() == 130


async def test_ctrl_c_in_the_middle_of_an_import_leaves_a_sound_store(tmp_path: Path) -> None:
    entries = living_entries()
    lines: list[Line] = [Header(network="conformance", entries=40, records=0, providers=0, peers=0), *entries]
    with running(*PRIME_DHT, "store", "import", "--data-dir", str(tmp_path), "-") as importing:
        stdin = importing.process.stdin
        assert stdin is not None
        fcntl.fcntl(stdin, fcntl.F_SETPIPE_SZ, 4096)
        stdin.write(b"".join(map(encode_line, lines))[:-100])
        stdin.flush()  # all but what is in the pipe has been read: it has stored some, and waits for the end of a line
        ended = importing.stop(signal.SIGINT)
    assert ended == Ended(130, b"", "")
    report = await check(tmp_path / STORE_FILE)
    assert report.problems == ()
    assert 0 < report.entries < len(entries)
