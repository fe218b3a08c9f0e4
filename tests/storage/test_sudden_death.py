"""What was acknowledged survives SIGKILL, and so does the right to open the store."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO

import pytest

from prime_dht.errors import StorageError
from prime_dht.ids import OpId
from prime_dht.storage.sqlite import SQLiteBackend
from prime_dht.testing.storage_samples import NOW_US

PUTTING = Path(__file__).with_name("put_until_killed.py")


@contextmanager
def a_process_that_puts(path: Path) -> Iterator[tuple[subprocess.Popen[str], IO[str]]]:
    with subprocess.Popen([sys.executable, PUTTING, path], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout
        finally:
            process.kill()


@pytest.mark.parametrize("before_the_kill", [1, 100, 500])
async def test_every_acknowledged_entry_survives_sigkill(tmp_path: Path, before_the_kill: int) -> None:
    path = tmp_path / "prime.db"
    with a_process_that_puts(path) as (process, output):
        lines = list(islice(output, before_the_kill))
        process.kill()
        lines += output
    acknowledged = {OpId(bytes.fromhex(line)) for line in lines if line.endswith("\n")}
    assert len(acknowledged) >= before_the_kill
    async with await SQLiteBackend.open(path) as store:
        found = await store.get_ops(list(acknowledged), now_us=NOW_US)
        assert {entry.op_id for entry in found} == acknowledged
        assert all(entry.value is not None for entry in found)
        assert (await store.stats()).entries % 3 == 0  # each put was of three


async def test_a_second_process_is_refused_until_the_first_is_dead(tmp_path: Path) -> None:
    path = tmp_path / "prime.db"
    with a_process_that_puts(path) as (_, output):
        output.readline()
        with pytest.raises(StorageError, match="another process has it open"):
            await SQLiteBackend.open(path)
    async with await SQLiteBackend.open(path) as store:
        assert await store.keys() != []
