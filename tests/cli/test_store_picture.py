"""``prime-dht store picture``: the ops of a store as text, as SVG and as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trio

from prime_dht.cli import main
from prime_dht.ids import TimestampUs
from prime_dht.node.clock import SystemClock
from prime_dht.node.open import STORE_FILE
from prime_dht.storage.sqlite import SQLiteBackend
from prime_dht.testing.storage_samples import make_entry

HOUR_US = 3_600_000_000
NOW_US = 1_800_000_001_000_000


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of a store with an op of this moment, one of an hour ago, and a heartbeat, which is no op."""
    monkeypatch.setattr(SystemClock, "now_us", lambda _: TimestampUs(NOW_US))

    async def fill() -> None:
        async with await SQLiteBackend.open(tmp_path / STORE_FILE) as store:
            entries = [
                make_entry(
                    name,
                    subkey=name,
                    created_at_us=NOW_US - age_us,
                    expires_at_us=NOW_US - age_us + ttl_us,
                    retain_until_us=NOW_US - age_us + ttl_us,
                )
                for name, age_us, ttl_us in (
                    (b"now", 0, 24 * HOUR_US),
                    (b"hour", HOUR_US, 24 * HOUR_US),
                    (b"beat", 0, HOUR_US // 60),
                )
            ]
            await store.put_entries(entries, now_us=NOW_US)

    trio.run(fill)
    return tmp_path


def test_the_ops_of_a_store_are_described_and_drawn(data_dir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["store", "picture", "--data-dir", str(data_dir), "--rows", "16"]) == 0
    out = capfd.readouterr().out
    assert out.startswith("2 ops in 1 of 512 sectors, the most in one: 2\n")
    assert "tail  1 op, 2027-01-15 08:00 to 2027-01-15 08:15" in out
    assert out.count("│\n") == 16
    assert "ops in a cell: '.' 1\n" in out


def test_both_drawings_are_written(data_dir: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    files = [tmp_path / "graph.svg", tmp_path / "circle.svg"]
    options = ["--graph", str(files[0]), "--circle", str(files[1])]
    assert main(["store", "picture", "--data-dir", str(data_dir), *options]) == 0
    for file in files:
        assert ": 1 op</title>" in file.read_text(encoding="utf-8")


def test_json_has_each_slice_with_the_ops_in_its_sectors(data_dir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["store", "picture", "--data-dir", str(data_dir), "--json"]) == 0
    drawn = json.loads(capfd.readouterr().out)
    assert drawn["sectors"] == 512
    assert {one["kind"] for one in drawn["slices"]} == {"ring", "tail"}
    assert [sum(one["ops"].values()) for one in drawn["slices"] if one["ops"]] == [1, 1]
    assert drawn["slices"][-1]["start_us"] <= NOW_US < drawn["slices"][-1]["stop_us"]


def test_it_is_divided_as_the_network_of_the_configuration_is(
    data_dir: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    configured = tmp_path / "node.toml"
    configured.write_text('[dht]\nunit_s = "1h"\nfactor = 5\nsector_bits = 6\n')
    assert main(["store", "picture", "--data-dir", str(data_dir), "--config", str(configured)]) == 0
    out = capfd.readouterr().out
    assert out.startswith("2 ops in 1 of 64 sectors")
    assert "tail  1 op, 2027-01-15 08:00 to 2027-01-15 09:00" in out
    monkeypatch.setenv("PRIME_DHT_DHT_SECTOR_BITS", "7")
    assert main(["store", "picture", "--data-dir", str(data_dir)]) == 0
    assert capfd.readouterr().out.startswith("2 ops in 1 of 128 sectors")


def test_a_file_that_cannot_be_written_is_one_line(data_dir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    target = data_dir / "missing" / "graph.svg"
    assert main(["store", "picture", "--data-dir", str(data_dir), "--graph", str(target)]) == 2
    assert capfd.readouterr().err == f"prime-dht: {target}: No such file or directory\n"


def test_no_store_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["store", "picture", "--data-dir", str(tmp_path)]) == 2
    assert capfd.readouterr().err.count("\n") == 1
