"""``prime-dht store import`` for a node whose limits are not the usual ones; where dumps come from and go to."""

from __future__ import annotations

import io
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from prime_dht.cli import main
from prime_dht.cli.commands.store.files import dump_to_write
from prime_dht.entries import inline
from prime_dht.entries.limits import Limits
from prime_dht.entries.signing import sign_entry
from prime_dht.ids import TimestampUs
from prime_dht.node.clock import SystemClock
from prime_dht.storage.capacity import Capacity
from prime_dht.storage.dump import export
from prime_dht.storage.memory import MemoryBackend
from prime_dht.testing.storage_samples import NOW_US, WRITERS, make_entry

DAY_US = 86_400_000_000
LIMITS = Limits(max_inline_bytes=100_000, max_ttl_s=90 * 86_400.0, max_store_entries=2)
CONFIG = """
[dht.limits]
max_inline_bytes = 100_000
max_ttl_s = "90d"
max_store_entries = 2
"""


def make_dump(path: Path) -> None:
    """Of a store that holds an entry too large for most nodes, and one that lives too long."""
    large = replace(make_entry().header, content=inline(bytes(80_000)))
    long = replace(make_entry(b"", subkey=b"long").header, expires_at_us=TimestampUs(60 * DAY_US))
    long = replace(long, retain_until_us=long.expires_at_us)
    entries = [
        sign_entry(large, WRITERS[0], bytes(80_000), limits=LIMITS),
        sign_entry(long, WRITERS[0], b"", limits=LIMITS),
    ]

    async def write() -> bytes:
        file = io.BytesIO()
        async with MemoryBackend(Capacity(limits=LIMITS)) as store:
            await store.put_entries(entries, now_us=NOW_US)
            await export(store, file, now_us=NOW_US)
        return file.getvalue()

    path.write_bytes(trio.run(write))


def test_what_a_node_exports_it_can_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(SystemClock, "now_us", lambda _: TimestampUs(NOW_US))
    make_dump(tmp_path / "dump")
    (tmp_path / "node.toml").write_text(CONFIG)
    arguments = ["store", "import", str(tmp_path / "dump"), "--json", "--data-dir"]
    assert main([*arguments, str(tmp_path / "usual")]) == 1
    assert json.loads(capfd.readouterr().out)["refused"] == 2
    assert main([*arguments, str(tmp_path / "own"), "--config", str(tmp_path / "node.toml")]) == 0
    assert json.loads(capfd.readouterr().out)["inserted"] == 2


def test_a_store_takes_no_more_than_its_node_may_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(SystemClock, "now_us", lambda _: TimestampUs(NOW_US))
    make_dump(tmp_path / "dump")
    monkeypatch.setenv("PRIME_DHT_DHT_LIMITS_MAX_INLINE_BYTES", "100000")
    monkeypatch.setenv("PRIME_DHT_DHT_LIMITS_MAX_TTL_S", "90d")
    monkeypatch.setenv("PRIME_DHT_DHT_LIMITS_MAX_STORE_ENTRIES", "1")
    assert main(["store", "import", str(tmp_path / "dump"), "--json", "--data-dir", str(tmp_path)]) == 1
    report = json.loads(capfd.readouterr().out)
    assert (report["inserted"], report["refused"]) == (1, 1)


def test_a_dump_may_be_a_file_that_is_called_like_a_standard_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(SystemClock, "now_us", lambda _: TimestampUs(NOW_US))
    monkeypatch.setenv("PRIME_DHT_DHT_LIMITS_MAX_INLINE_BYTES", "100000")
    monkeypatch.setenv("PRIME_DHT_DHT_LIMITS_MAX_TTL_S", "90d")
    make_dump(tmp_path / "-")
    monkeypatch.chdir(tmp_path)
    assert main(["store", "import", "./-", "--data-dir", "there"]) == 0
    assert capfd.readouterr().out.startswith("entry: 2 taken")
    assert main(["store", "export", "--data-dir", "there", "--out", "./-", "--force"]) == 0
    assert capfd.readouterr().out.startswith("4 lines written")


def test_a_dump_has_reached_the_disk_under_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "dump"
    synced: list[tuple[int, bool]] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append((os.fstat(descriptor).st_ino, out.exists())))
    with dump_to_write(out, force=False) as file:
        file.write(b"a line")
    assert synced == [(out.stat().st_ino, False), (tmp_path.stat().st_ino, True)]
