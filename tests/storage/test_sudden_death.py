"""What was acknowledged survives SIGKILL, whenever and however often it comes; so does the right to open the store."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from random import Random
from statistics import median
from typing import IO

import pytest

from prime_dht.errors import StorageError
from prime_dht.ids import OpId
from prime_dht.storage.offline import check
from prime_dht.storage.sqlite import SQLiteBackend
from prime_dht.testing.storage_samples import NOW_US

PUTTING = Path(__file__).with_name("put_until_killed.py")
DEAD = "it is dead\n"
KILLS = 60
MOST_ACKNOWLEDGED_BEFORE_A_KILL = 60


class Putting:
    """Processes that put entries, one after the other; see ``put_until_killed.py``."""

    def __init__(self, requests: IO[str], output: IO[str]) -> None:
        self._requests = requests
        self._output = output

    def start(self) -> int:
        """Start one; returns its process id."""
        self._requests.write("\n")
        self._requests.flush()
        return int(self._output.readline())

    def acknowledged(self, count: int) -> list[OpId]:
        """The next ops that it says are durable."""
        return [OpId(bytes.fromhex(self._output.readline())) for _ in range(count)]

    def kill(self, process: int) -> list[OpId]:
        """Kill it; returns the ops that it said were durable before it noticed."""
        os.kill(process, signal.SIGKILL)
        return [OpId(bytes.fromhex(line)) for line in takewhile(lambda line: line != DEAD, self._output)]


@contextmanager
def putting_into(path: Path) -> Iterator[Putting]:
    command = [sys.executable, str(PUTTING), str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            yield Putting(server.stdin, server.stdout)
        finally:
            os.killpg(server.pid, signal.SIGKILL)


async def test_every_acknowledged_entry_survives_sigkill_at_any_moment(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    path = tmp_path / "prime.db"
    rng = Random(50)
    acknowledged: list[OpId] = []
    recoveries_s: list[float] = []
    with putting_into(path) as putting:
        for _ in range(KILLS):
            process = putting.start()
            recent = putting.acknowledged(rng.randrange(MOST_ACKNOWLEDGED_BEFORE_A_KILL))
            recent += putting.kill(process)
            acknowledged += recent
            began_s = time.perf_counter()
            async with await SQLiteBackend.open(path) as store:
                recoveries_s.append(time.perf_counter() - began_s)
                assert {entry.op_id for entry in await store.get_ops(recent, now_us=NOW_US)} == set(recent)
                assert (await store.stats()).entries % 3 == 0  # each put was of three
    async with await SQLiteBackend.open(path) as store:
        found = await store.get_ops(acknowledged, now_us=NOW_US)
        assert {entry.op_id for entry in found} == set(acknowledged)
        assert all(entry.value is not None for entry in found)
    assert (await check(path)).problems == ()
    assert len(acknowledged) > KILLS * MOST_ACKNOWLEDGED_BEFORE_A_KILL / 4
    record_property("recovery_ms_median", 1e3 * median(recoveries_s))
    record_property("recovery_ms_most", 1e3 * max(recoveries_s))
    print(f"{KILLS} kills, {len(acknowledged)} entries acknowledged;")
    print(f"opened again in {1e3 * median(recoveries_s):.1f} ms (median), {1e3 * max(recoveries_s):.1f} ms (most)")


async def test_a_second_process_is_refused_until_the_first_is_dead(tmp_path: Path) -> None:
    path = tmp_path / "prime.db"
    with putting_into(path) as putting:
        process = putting.start()
        putting.acknowledged(1)
        with pytest.raises(StorageError, match="another process has it open"):
            await SQLiteBackend.open(path)
        with pytest.raises(StorageError, match="another process has it open"):
            await check(path)
        putting.kill(process)
    async with await SQLiteBackend.open(path) as store:
        assert await store.keys() != []
