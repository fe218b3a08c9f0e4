"""Whole swarms under faults keep their promises; one seed is one history; and broken nodes are found out."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Awaitable, Sequence
from hashlib import sha256
from typing import TYPE_CHECKING

import pytest
import trio

from prime_dht.entries.codec import Undecodable
from prime_dht.entries.entry import Entry
from prime_dht.ids import PeerId
from prime_dht.node.blobs.keeping import Keeping
from prime_dht.node.keeper import Keeper
from prime_dht.node.maintenance import Maintenance
from prime_dht.node.neighbourhood import Neighbourhood
from prime_dht.node.server import Server
from prime_dht.node.strangers import Strangers
from prime_dht.node.syncing import Syncing
from prime_dht.partition.partition import Partition
from prime_dht.storage.base import Expired
from prime_dht.storage.memory import MemoryBackend
from prime_dht.testing.memory_network import MemoryNetwork
from prime_dht.testing.simulation import Outcome, plan, simulate
from prime_dht.wire.kad import EntryStatus, Reply, Request, StatusCode

if TYPE_CHECKING:
    from trio_typing import TaskStatus

SOON_S = 300.0
"""Long enough for a fault to be seen; ``make simulate`` has two hours of faults, and lets a swarm settle for one."""

A_WHILE_S = 90.0
"""Long enough for one history to part from another."""


def digest(outcome: Outcome) -> str:
    return sha256("\n".join(outcome.log).encode()).hexdigest()


def test_under_faults_nodes_keep_their_promises() -> None:
    outcome = simulate(1, faults_s=600.0, settle_s=1800.0)
    assert not outcome.complaints, "\n".join(outcome.log[-60:])


def test_one_seed_is_one_history_in_one_process_and_in_another() -> None:
    here = digest(simulate(3, faults_s=A_WHILE_S, settle_s=A_WHILE_S))
    assert digest(simulate(3, faults_s=A_WHILE_S, settle_s=A_WHILE_S)) == here
    program = (
        "from hashlib import sha256; from prime_dht.testing.simulation import simulate; "
        f"log = simulate(3, faults_s={A_WHILE_S}, settle_s={A_WHILE_S}).log; "
        "print(sha256('\\n'.join(log).encode()).hexdigest())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    elsewhere = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=True)
    assert elsewhere.stdout.decode().strip() == here


def test_another_seed_is_another_history() -> None:
    assert digest(simulate(4, faults_s=10.0, settle_s=10.0)) != digest(simulate(5, faults_s=10.0, settle_s=10.0))


def test_nodes_that_acknowledge_what_they_did_not_store_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    async def join(
        _self: Server, candidates: Sequence[Entry | Undecodable], *, relayer: PeerId | None
    ) -> list[EntryStatus]:
        return [EntryStatus(one.op_id, StatusCode.STORED) for one in candidates if isinstance(one, Entry)]

    monkeypatch.setattr(Server, "join", join)
    complaints = simulate(1, faults_s=SOON_S, settle_s=SOON_S).complaints
    assert any("is said to have stored" in complaint for complaint in complaints)


def test_stores_that_forget_tombstones_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    delete_expired = MemoryBackend.delete_expired

    async def forgetful(self: MemoryBackend, *, now_us: int, retire_before_us: int, limit: int = 1000) -> Expired:
        tombstones = [op_id for op_id, entry in self._entries.by_op_id.items() if entry.is_tombstone]
        await MemoryBackend.remove_ops(self, tombstones)
        return await delete_expired(self, now_us=now_us, retire_before_us=retire_before_us, limit=limit)

    monkeypatch.setattr(MemoryBackend, "delete_expired", forgetful)
    complaints = simulate(1, faults_s=SOON_S, settle_s=SOON_S).complaints
    assert any("has it no more" in complaint for complaint in complaints)


def test_nodes_that_never_try_again_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refresh_and_meet_nobody(self: Maintenance) -> None:
        await self.refresh()

    async def look_at_no_stranger(_self: Strangers) -> None:
        return None

    monkeypatch.setattr(Maintenance, "_meet_again_and_refresh", refresh_and_meet_nobody)
    monkeypatch.setattr(Maintenance, "_look_for_lost", refresh_and_meet_nobody)
    monkeypatch.setattr(Strangers, "run", look_at_no_stranger)
    monkeypatch.setattr(Neighbourhood, "heard_from", lambda _self, _peer: None)
    complaints = simulate(1, faults_s=SOON_S, settle_s=SOON_S).complaints
    assert any("does not know" in complaint for complaint in complaints)


def test_readers_that_show_what_has_expired_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Entry, "is_live", lambda self, _now_us: not self.is_tombstone)
    complaints = simulate(1, faults_s=SOON_S, settle_s=SOON_S).complaints
    assert any("which has expired" in complaint for complaint in complaints)


def test_tasks_that_leak_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    handle = Server.handle

    def leaky(self: Server, peer: PeerId, request: Request) -> Reply | Awaitable[Reply]:
        network = self._network
        assert isinstance(network, MemoryNetwork)
        assert network._nursery is not None
        network._nursery.start_soon(trio.sleep_forever)
        return handle(self, peer, request)

    monkeypatch.setattr(Server, "handle", leaky)
    complaints = simulate(1, faults_s=60.0, settle_s=SOON_S).complaints
    assert any("tasks at rest" in complaint for complaint in complaints)


def test_what_a_node_should_not_raise_comes_out_with_what_led_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async def join(_self: Server, _candidates: Sequence[Entry | Undecodable], *, relayer: PeerId | None) -> None:
        raise KeyError("a defect")

    monkeypatch.setattr(Server, "join", join)
    with pytest.raises(ExceptionGroup) as raised:
        simulate(1, faults_s=SOON_S, settle_s=SOON_S)
    assert "in the simulation of seed 1:" in raised.value.__notes__[0]


def test_nodes_that_do_not_keep_alive_what_they_said_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    async def renew_never(_self: Keeper, *, task_status: TaskStatus[None]) -> None:
        task_status.started()

    monkeypatch.setattr(Keeper, "run", renew_never)
    monkeypatch.setattr(plan, "KEPT_TTLS_S", (60.0, 120.0))
    monkeypatch.setattr(plan, "KEEP_EVERY_S", 20.0)
    complaints = simulate(1, faults_s=120.0, settle_s=SOON_S).complaints
    assert any("keeps alive" in complaint for complaint in complaints)


def test_nodes_that_have_not_what_they_count_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fetch_never(_self: Keeping, *, task_status: TaskStatus[None]) -> None:
        task_status.started()

    monkeypatch.setattr(Keeping, "run", fetch_never)
    monkeypatch.setattr(Partition, "remove", lambda *_op: None)
    monkeypatch.setattr(Partition, "remove_batch", lambda *_ops: None)
    complaints = simulate(1, faults_s=SOON_S, settle_s=SOON_S).complaints
    assert any("lacks the blob" in complaint for complaint in complaints)
    assert any("its partition says otherwise" in complaint for complaint in complaints)


def test_replicas_that_do_not_sync_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    async def sync_never(_self: Syncing, *, task_status: TaskStatus[None]) -> None:
        task_status.started()

    monkeypatch.setattr(Syncing, "run", sync_never)
    complaints = simulate(1, faults_s=600.0, settle_s=SOON_S).complaints
    assert any("and is a replica" in complaint for complaint in complaints)
