import mmap

import numpy as np
import pytest

from prime_dht.blobs.memory import CAPACITY_BYTES, LARGE_BYTES, BlockMemory


def address(data: bytearray | memoryview) -> int:
    return int(np.frombuffer(data, np.uint8).ctypes.data)


def test_memory_that_was_taken_back_is_lent_again() -> None:
    memory = BlockMemory(kept=2)
    first = memory.lend(CAPACITY_BYTES)
    where = address(first)
    memory.take_back(first)

    again = memory.lend(LARGE_BYTES)

    assert address(again) == where
    assert len(again) == LARGE_BYTES


def test_what_is_lent_at_a_time_is_apart_and_begins_at_a_page() -> None:
    memory = BlockMemory(kept=4)
    lent = [memory.lend(CAPACITY_BYTES) for _ in range(4)]
    for number, data in enumerate(lent):
        data[:] = bytes([number]) * CAPACITY_BYTES

    assert [bytes(data) for data in lent] == [bytes([number]) * CAPACITY_BYTES for number in range(4)]
    assert [address(data) % mmap.PAGESIZE for data in lent] == [0] * 4


def test_what_was_taken_back_cannot_be_read_or_taken_back_again() -> None:
    memory = BlockMemory(kept=2)
    data = memory.lend(CAPACITY_BYTES)
    memory.take_back(data)

    with pytest.raises(ValueError, match="released"):
        data[0]
    with pytest.raises(ValueError, match="released"):
        memory.take_back(data)


def test_no_more_is_kept_than_was_said() -> None:
    memory = BlockMemory(kept=1)
    lent = [memory.lend(CAPACITY_BYTES) for _ in range(3)]
    where = [address(data) for data in lent]
    for data in lent:
        memory.take_back(data)

    assert address(memory.lend(CAPACITY_BYTES)) == where[0]
    assert not memory._free


@pytest.mark.parametrize("size", [0, 1, LARGE_BYTES - 1, CAPACITY_BYTES + 1])
def test_a_block_of_another_size_has_memory_of_its_own(size: int) -> None:
    memory = BlockMemory(kept=2)
    data = memory.lend(size)
    assert bytes(data) == bytes(size)

    memory.take_back(data)

    assert bytes(data) == bytes(size)
    assert memory.lend(size) is not data


def test_the_memory_of_others_is_left_alone() -> None:
    memory = BlockMemory(kept=2)
    of_bytes = memoryview(bytes(CAPACITY_BYTES))
    for data in (bytes(CAPACITY_BYTES), bytearray(CAPACITY_BYTES), of_bytes):
        memory.take_back(data)
        assert len(data) == CAPACITY_BYTES
    assert not memory._free


def test_once_it_is_closed_nothing_is_kept() -> None:
    memory = BlockMemory(kept=2)
    before, after = memory.lend(CAPACITY_BYTES), memory.lend(CAPACITY_BYTES)
    memory.take_back(before)
    memory.close()
    memory.take_back(after)
    assert not memory._free
