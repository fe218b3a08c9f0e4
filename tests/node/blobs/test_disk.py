"""Writing past the cache: every byte comes to its place, whatever the system takes directly, cuts short or refuses."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prime_dht.node.blobs.disk import BUFFER_BYTES, CACHED_BYTES, DIRECT_FROM_BYTES, UNIT_BYTES, DiskWriter

MIB = 1 << 20
NEAR = st.integers(-2, 2) | st.integers(-UNIT_BYTES, UNIT_BYTES)
SIZES = st.builds(
    lambda size, more: max(1, size + more),
    st.sampled_from([0, UNIT_BYTES, DIRECT_FROM_BYTES, DIRECT_FROM_BYTES + UNIT_BYTES, MIB, 2 * MIB]),
    NEAR,
)
STARTS = st.sampled_from([0, 1, UNIT_BYTES - 1, UNIT_BYTES, MIB, MIB + 7])


class System:
    """A file system that takes direct writes as Linux does: whole units, from memory that begins at one.

    Args:
        opens: whether a file can be opened for direct writes.
        direct_writes: so many are taken, and the others refused.
        at_most_bytes: of each.
        room_bytes: of the disk, for what is written directly.

    Attributes:
        direct_bytes, cached_bytes: what was written, either way.
        unsynced_bytes: of both, since the last sync.
    """

    def __init__(
        self,
        *,
        opens: bool = True,
        direct_writes: int = 1 << 30,
        at_most_bytes: int = 1 << 30,
        room_bytes: int = 1 << 30,
    ) -> None:
        self._opens = opens
        self._direct_writes = direct_writes
        self._at_most_bytes = at_most_bytes
        self._room_bytes = room_bytes
        self._direct: set[int] = set()
        self._open, self._pwrite, self._fsync = os.open, os.pwrite, os.fsync
        self.direct_bytes = self.cached_bytes = self.unsynced_bytes = 0

    @contextmanager
    def in_place(self) -> Iterator[System]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "O_DIRECT", 1 << 30, raising=False)
            patch.setattr(os, "open", self.open)
            patch.setattr(os, "pwrite", self.pwrite)
            patch.setattr(os, "fsync", self.fsync)
            yield self

    def open(self, path: str | Path, flags: int, mode: int = 0o777) -> int:
        if not flags & 1 << 30:
            return self._open(path, flags, mode)
        if not self._opens:
            raise OSError(errno.EINVAL, "no direct writes")
        direct = os.dup(int(Path(path).name))
        self._direct.add(direct)
        return direct

    def pwrite(self, descriptor: int, data: memoryview, at: int) -> int:
        if descriptor not in self._direct:
            written = self._pwrite(descriptor, data, at)
            self.cached_bytes += written
        else:
            address = ctypes.addressof(ctypes.c_char.from_buffer(data))
            if self._direct_writes == 0 or address % UNIT_BYTES or len(data) % UNIT_BYTES or at % UNIT_BYTES:
                raise OSError(errno.EINVAL, "no such direct write")
            if self.direct_bytes >= self._room_bytes:
                raise OSError(errno.ENOSPC, "no space")
            self._direct_writes -= 1
            left_bytes = self._room_bytes - self.direct_bytes
            written = self._pwrite(descriptor, data[: min(self._at_most_bytes, left_bytes)], at)
            self.direct_bytes += written
        self.unsynced_bytes += written
        return written

    def fsync(self, descriptor: int) -> None:
        self._fsync(descriptor)
        self.unsynced_bytes = 0


@contextmanager
def written_to(path: Path) -> Iterator[DiskWriter]:
    with ExitStack() as resources:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        resources.callback(os.close, descriptor)
        yield DiskWriter(descriptor, resources)


def written_in_any_order(start: int, sizes: list[int], seed: int, writer: DiskWriter, path: Path) -> None:
    """Write pieces that lie one behind the other, in any order, over what was there; each is read back at once."""
    rng = Random(seed)
    expected = bytearray(rng.randbytes(start + sum(sizes) // 2))
    path.write_bytes(expected)
    pieces = []
    for size in sizes:
        pieces.append((start, rng.randbytes(size)))
        start += size
    rng.shuffle(pieces)
    for at, data in pieces:
        writer.write(data, at)
        expected.extend(bytes(max(0, at - len(expected))))
        expected[at : at + len(data)] = data
        assert path.read_bytes() == expected
    writer.sync()
    assert path.read_bytes() == expected


@settings(derandomize=True, deadline=None, max_examples=40)
@given(start=STARTS, sizes=st.lists(SIZES, min_size=1, max_size=5), seed=st.integers(0, 99))
def test_what_is_written_is_what_is_read_with_this_systems_own_direct_writes(
    start: int, sizes: list[int], seed: int
) -> None:
    with TemporaryDirectory() as directory, written_to(path := Path(directory) / "out") as writer:
        written_in_any_order(start, sizes, seed, writer, path)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    start=STARTS,
    sizes=st.lists(SIZES, min_size=1, max_size=4),
    seed=st.integers(0, 99),
    opens=st.booleans(),
    direct_writes=st.integers(0, 4),
    at_most_bytes=st.sampled_from([5000, 2 * UNIT_BYTES, DIRECT_FROM_BYTES + 1, MIB - 1, 4 * MIB]),
)
def test_what_is_written_is_what_is_read_when_direct_writes_are_cut_short_or_refused(
    start: int, sizes: list[int], seed: int, opens: bool, direct_writes: int, at_most_bytes: int
) -> None:
    system = System(opens=opens, direct_writes=direct_writes, at_most_bytes=at_most_bytes)
    with TemporaryDirectory() as directory, system.in_place(), written_to(path := Path(directory) / "out") as writer:
        written_in_any_order(start, sizes, seed, writer, path)


@pytest.mark.parametrize("start", [0, 1, UNIT_BYTES - 1, 5 * UNIT_BYTES])
@pytest.mark.parametrize("size", [DIRECT_FROM_BYTES + UNIT_BYTES, BUFFER_BYTES, 2 * BUFFER_BYTES - 1])
def test_only_what_is_no_whole_unit_is_written_through_the_cache(start: int, size: int, tmp_path: Path) -> None:
    with System().in_place() as system, written_to(tmp_path / "out") as writer:
        writer.write(bytes(size), start)
    assert system.direct_bytes == (start + size) // UNIT_BYTES * UNIT_BYTES - -(-start // UNIT_BYTES) * UNIT_BYTES
    assert system.direct_bytes + system.cached_bytes == size


def test_what_lies_at_the_beginning_of_a_unit_is_written_at_once_from_there(tmp_path: Path) -> None:
    content = Random(1).randbytes(2 * BUFFER_BYTES)
    memory = mmap.mmap(-1, len(content))
    memory[:] = content
    with System(direct_writes=1).in_place() as system, written_to(tmp_path / "out") as writer:
        writer.write(memoryview(memory), 0)
    assert (system.direct_bytes, system.cached_bytes) == (len(content), 0)
    assert (tmp_path / "out").read_bytes() == content


def test_a_small_piece_does_not_wait_for_the_disk(tmp_path: Path) -> None:
    with System().in_place() as system, written_to(tmp_path / "out") as writer:
        writer.write(bytes(DIRECT_FROM_BYTES - 1), 0)
    assert system.direct_bytes == 0


@pytest.mark.parametrize("room_bytes", [0, DIRECT_FROM_BYTES, DIRECT_FROM_BYTES + 5])
def test_a_disk_that_is_full_is_not_taken_for_one_that_takes_no_direct_writes(room_bytes: int, tmp_path: Path) -> None:
    with System(room_bytes=room_bytes).in_place() as system, written_to(tmp_path / "out") as writer:
        with pytest.raises(OSError, match="no space"):
            writer.write(bytes(MIB), 0)
        assert system.direct_bytes == room_bytes
        assert system.cached_bytes < UNIT_BYTES


def test_what_is_written_through_the_cache_is_brought_to_the_disk_bit_by_bit(tmp_path: Path) -> None:
    most_bytes = 0
    with System(opens=False).in_place() as system, written_to(tmp_path / "out") as writer:
        for index in range(3 * CACHED_BYTES // MIB):
            writer.write(bytes(MIB), index * MIB)
            most_bytes = max(most_bytes, system.unsynced_bytes)
    assert system.cached_bytes == 3 * CACHED_BYTES
    assert most_bytes < CACHED_BYTES
