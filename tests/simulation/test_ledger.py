"""The ledger complains of what must not be, and of nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio
from libp2p.crypto.ed25519 import create_new_key_pair

from prime_dht.entries.entry import Entry
from prime_dht.ids import TimestampUs
from prime_dht.net.identity import peer_id_of
from prime_dht.node.results import Found, PutReceipt
from prime_dht.testing.simulation.disc import Disc
from prime_dht.testing.simulation.ledger import Ledger
from prime_dht.testing.simulation.member import Member
from prime_dht.testing.storage_samples import NOW_US, make_entry
from prime_dht.testing.swarm import EPOCH_US, Machine, MockClock

ENTRY = make_entry(b"value")
NEWER = make_entry(b"newer", created_at_us=NOW_US + 1)


@pytest.fixture
def complaints() -> list[str]:
    return []


@pytest.fixture
def ledger(complaints: list[str]) -> Ledger:
    return Ledger(complaints.append)


def member(number: int) -> Member:
    key_pair = create_new_key_pair(bytes([number]) * 32)
    disc = Disc(lambda sentence: None)
    machine = Machine(key_pair=key_pair, peer=peer_id_of(key_pair), disc=disc)
    return Member(number=number, machine=machine, disc=disc, is_server=True, is_liar=False)


def receipt_for(entry: Entry, *replicas: Member) -> PutReceipt:
    header = entry.header
    return PutReceipt(
        key=header.key,
        subkey=header.subkey,
        op_id=entry.op_id,
        created_at_us=header.created_at_us,
        expires_at_us=header.expires_at_us,
        stored_by=tuple(replica.peer for replica in replicas),
        wanted=3,
        needed=2,
    )


async def test_whoever_is_said_to_have_stored_an_entry_has_it(ledger: Ledger, complaints: list[str]) -> None:
    one, other = member(1), member(2)
    await one.disc.put_entries([ENTRY], now_us=NOW_US)
    ledger.acknowledged(ENTRY.slot, receipt_for(ENTRY, one, other), [one, other])
    (complaint,) = complaints
    assert complaint.startswith("m2 is said to have stored")


async def test_who_has_handed_on_what_superseded_an_entry_need_not_have_either(
    ledger: Ledger, complaints: list[str]
) -> None:
    one = member(1)
    await one.disc.put_entries([ENTRY], now_us=NOW_US)
    await one.disc.put_entries([NEWER], now_us=NOW_US + 1)
    await one.disc.remove_ops([NEWER.op_id])
    ledger.acknowledged(ENTRY.slot, receipt_for(ENTRY, one), [one])
    assert complaints == []


async def test_who_has_handed_an_entry_on_need_not_have_it_but_somebody_must(
    ledger: Ledger, complaints: list[str]
) -> None:
    one, other = member(1), member(2)
    for replica in (one, other):
        await replica.disc.put_entries([ENTRY], now_us=NOW_US)
    await other.disc.remove_ops([ENTRY.op_id])
    ledger.acknowledged(ENTRY.slot, receipt_for(ENTRY, one, other), [one, other])
    ledger.check_nothing_lost([one.disc, other.disc])
    assert complaints == []
    await one.disc.remove_ops([ENTRY.op_id])
    ledger.check_nothing_lost([one.disc, other.disc])
    (complaint,) = complaints
    assert "is lost, though a replica lived" in complaint


async def test_what_was_acknowledged_is_kept_or_superseded(ledger: Ledger, complaints: list[str]) -> None:
    one, other = member(1), member(2)
    for replica in (one, other):
        await replica.disc.put_entries([ENTRY], now_us=NOW_US)
    ledger.acknowledged(ENTRY.slot, receipt_for(ENTRY, one, other), [one, other])
    ledger.check_nothing_lost([one.disc, other.disc])
    await one.disc.put_entries([make_entry(None, created_at_us=150)], now_us=NOW_US)
    ledger.check_nothing_lost([one.disc])
    assert complaints == []
    ledger.check_nothing_lost([member(3).disc])
    (complaint,) = complaints
    assert "is lost, though a replica lived" in complaint


async def test_nobody_is_to_blame_when_the_last_replica_is_lost(ledger: Ledger, complaints: list[str]) -> None:
    one, other, empty = member(1), member(2), member(3)
    for replica in (one, other):
        await replica.disc.put_entries([ENTRY], now_us=NOW_US)
    ledger.acknowledged(ENTRY.slot, receipt_for(ENTRY, one, other), [one, other])
    ledger.disc_lost([other.disc, empty.disc])
    ledger.disc_lost([empty.disc])
    ledger.check_nothing_lost([empty.disc])
    assert complaints == []


async def test_what_is_found_was_put_there_and_lives(
    ledger: Ledger, complaints: list[str], autojump_clock: MockClock
) -> None:
    reader = member(1)
    value = ledger.value_for(ENTRY.slot)
    found = replace(Found.of(ENTRY, answered=2), value=value, expires_at_us=TimestampUs(EPOCH_US + 10_000_000))
    ledger.found(reader, found)
    assert complaints == []
    ledger.found(reader, replace(found, value=b"made up"))
    ledger.found(reader, replace(found, subkey=b"elsewhere"))
    assert [complaint.endswith("not put there") for complaint in complaints] == [True, True]
    await trio.sleep(10)
    ledger.found(reader, found)
    assert complaints[-1].endswith("has expired")
