"""What a replica lets go of when its time has come."""

from __future__ import annotations

from trio.testing import MockClock

from prime_dht.ids import Key, TimestampUs
from prime_dht.node.feed import Feed
from prime_dht.node.replica import Replica
from prime_dht.partition.parameters import PartitionParameters
from prime_dht.storage.base import MAX_STEP_BACK_US, Expired, OwnSlot
from prime_dht.storage.memory import MemoryBackend
from prime_dht.testing.storage_samples import make_entry
from prime_dht.testing.swarm import EPOCH_US, VirtualClock

PARAMETERS = PartitionParameters()
UNIT_US = PARAMETERS.unit_us


async def test_headers_whose_values_went_before_are_retired_even_if_nothing_else_is_due(
    autojump_clock: MockClock,
) -> None:
    clock, storage = VirtualClock(), MemoryBackend()
    replica = Replica(storage, PARAMETERS, clock, Feed())
    entries = [
        make_entry(
            key=Key(b"/prime/step:%d" % number),
            created_at_us=EPOCH_US,
            expires_at_us=EPOCH_US + UNIT_US,
            retain_until_us=EPOCH_US + 3 * UNIT_US,
        )
        for number in range(3)
    ]
    await storage.put_entries(entries, now_us=EPOCH_US)
    clock.set_by_us = 2 * UNIT_US
    assert await replica.expire() == Expired(values_dropped=3)
    clock.set_by_us = 5 * UNIT_US
    retired = (await replica.expire()).retired
    assert {gone.op_id for gone in retired} == {entry.op_id for entry in entries}


async def test_own_slots_of_which_nothing_is_left_for_a_day_are_forgotten_all_at_once(
    autojump_clock: MockClock,
) -> None:
    clock, storage = VirtualClock(), MemoryBackend()
    replica = Replica(storage, PARAMETERS, clock, Feed())
    slots = [make_entry(key=Key(b"/prime/step:%d" % number)).slot for number in range(5)]
    ended_us, kept_us = (TimestampUs(EPOCH_US - MAX_STEP_BACK_US + late_us) for late_us in (-UNIT_US, UNIT_US))
    await storage.put_own_slots([OwnSlot(slot, TimestampUs(1), ended_us) for slot in slots[1:]])
    await storage.put_own_slots([kept := OwnSlot(slots[0], TimestampUs(1), kept_us)])
    assert await replica.expire() == Expired(own_slots=4)
    assert await storage.own_slots() == [kept]
