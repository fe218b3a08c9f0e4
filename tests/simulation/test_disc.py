"""The simulation's disc fails as it is told to, and complains when the law of a replica is broken."""

from __future__ import annotations

import pytest
import trio

from prime_dht.entries.lifetime import UNIT_US
from prime_dht.errors import NotWrittenError, StorageError
from prime_dht.storage.base import PutOutcome
from prime_dht.testing.simulation.disc import Disc
from prime_dht.testing.simulation.plan import Trouble
from prime_dht.testing.storage_samples import NOW_US, make_entry
from prime_dht.testing.swarm import MockClock

OLD = make_entry(b"old", created_at_us=100)
NEW = make_entry(None, created_at_us=150)


@pytest.fixture
def complaints() -> list[str]:
    return []


@pytest.fixture
def disc(complaints: list[str]) -> Disc:
    return Disc(complaints.append)


async def test_what_was_stored_before_the_machine_went_down_is_there_when_it_is_up_again(disc: Disc) -> None:
    await disc.put_entries([OLD], now_us=NOW_US)
    disc.is_off = True
    with pytest.raises(StorageError, match="down"):
        await disc.put_entries([NEW], now_us=NOW_US)
    disc.is_off = False
    assert disc.standing(OLD.slot) == OLD
    assert disc.forgotten() == []


async def test_a_store_that_goes_back_to_an_older_entry_is_complained_of(disc: Disc, complaints: list[str]) -> None:
    await disc.put_entries([NEW], now_us=NOW_US)
    disc._entries.evict(NEW.op_id)
    assert disc.forgotten() == [NEW]
    (result,) = await disc.put_entries([OLD], now_us=NOW_US)
    assert result.outcome is PutOutcome.INSERTED
    assert len(complaints) == 1
    assert disc.forgotten() == [NEW]


async def test_what_the_node_drops_on_purpose_is_not_missed(disc: Disc, complaints: list[str]) -> None:
    await disc.put_entries([NEW], now_us=NOW_US)
    await disc.remove_ops([NEW.op_id])
    await disc.put_entries([OLD], now_us=NOW_US)
    assert disc.forgotten() == []
    assert complaints == []


async def test_what_has_retired_is_not_missed(disc: Disc) -> None:
    await disc.put_entries([NEW], now_us=NOW_US)
    await disc.delete_expired(now_us=UNIT_US, retire_before_us=UNIT_US)
    assert disc.standing(NEW.slot) is None
    assert disc.has_retired(NEW)
    assert disc.forgotten() == []


async def test_a_value_that_went_before_its_time_is_missed(disc: Disc) -> None:
    await disc.put_entries([OLD], now_us=NOW_US)
    for _ in disc._entries.drop_values(1000, 10):
        pass
    assert disc.forgotten() == [OLD]
    await disc.delete_expired(now_us=1000, retire_before_us=0)
    assert disc.forgotten() == [], "its time is over now"


async def test_a_full_disc_takes_nothing_and_still_reads(disc: Disc) -> None:
    await disc.put_entries([OLD], now_us=NOW_US)
    disc.trouble = Trouble.FULL
    with pytest.raises(NotWrittenError, match="no space left"):
        await disc.put_entries([NEW], now_us=NOW_US)
    assert await disc.get_ops([OLD.op_id], now_us=NOW_US) == [OLD]
    assert disc.standing(NEW.slot) == OLD


async def test_of_what_failed_nobody_knows_whether_it_was_done(disc: Disc) -> None:
    disc.trouble = Trouble.FAILING
    entries = [make_entry(b"value", subkey=b"%d" % number) for number in range(50)]
    failed = []
    for entry in entries:
        try:
            await disc.put_entries([entry], now_us=NOW_US)
        except StorageError:
            failed.append(entry)
    stored = [disc.standing(entry.slot) is not None for entry in failed]
    assert any(stored)
    assert not all(stored)


async def test_a_slow_disc_does_what_it_is_told_after_a_while(disc: Disc, autojump_clock: MockClock) -> None:
    disc.trouble = Trouble.SLOW
    await disc.put_entries([OLD], now_us=NOW_US)
    assert trio.current_time() > 0
    assert disc.standing(OLD.slot) == OLD


async def test_a_disc_that_is_restored_has_what_was_there_when_it_was_copied(disc: Disc) -> None:
    await disc.put_entries([OLD], now_us=NOW_US)
    copy = disc.backup()
    await disc.put_entries([NEW], now_us=NOW_US)
    restored = Disc(disc.complain)
    await restored.restore(copy)
    assert restored.standing(OLD.slot) == OLD
    assert disc.standing(OLD.slot) == NEW
    assert restored.miscounted() == []


async def test_counters_that_do_not_say_what_is_there_are_found_out(disc: Disc) -> None:
    await disc.put_entries([OLD], now_us=NOW_US)
    assert disc.miscounted() == []
    disc._entries._count(OLD, +1)
    assert [wrong.split(":")[0] for wrong in disc.miscounted()][:2] == ["entries", "bytes"]


async def test_what_went_while_its_clock_was_wrong_is_not_missed(disc: Disc) -> None:
    await disc.put_entries([OLD], now_us=NOW_US)
    disc.told_the_time(is_right=False)
    await disc.delete_expired(now_us=10**15, retire_before_us=10**15)
    disc.told_the_time(is_right=True)
    assert disc.forgotten() == []
    assert disc.furthest_us < 10**15
