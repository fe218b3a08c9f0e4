"""Fetch plans whose blocks wait for a reader, or for the turn of other fetches; in virtual time."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest

from prime_dht.blobs.actions import Ask, DropProvider, Failed, FindProviders, Finished
from prime_dht.blobs.cid import BlockBytes, Cid, Codec
from prime_dht.blobs.plan import FetchLimits, FetchPlan
from prime_dht.blobs.walk import Walk
from prime_dht.ids import US_PER_S, PeerId
from prime_dht.testing.blob_fetch import HONEST, FetchWorld, Temper, blocks_of

ANNE, BOB = PeerId(b"anne"), PeerId(b"bob")
LIMITS = FetchLimits(max_blocks=8)
CHUNKS = [index.to_bytes(4, "big") * 50 for index in range(40)]


class Reading(FetchWorld):
    """A world whose reader takes the leaves in order, each for a while; until its turn has come, each waits.

    Args:
        read_us: what the reader takes for each.
        lost: a block that no provider has.
        refuses: whether they are busy when asked for it, and do not say that they lack it.
    """

    def __init__(
        self, chunks: list[bytes], *, read_us: int, lost: Cid | None = None, refuses: bool = False, blob: int = 0
    ) -> None:
        root, blocks = blocks_of(chunks, 174)
        plan = FetchPlan(Walk(root), now_us=0, limits=LIMITS)
        plan.on_provider(ANNE)
        super().__init__(plan, blocks, {ANNE: HONEST}, Random(blob))
        self._order = [Cid.of_raw(chunk) for chunk in chunks]
        self._came: dict[Cid, BlockBytes] = {}
        self._is_reading = False
        self._read_us = read_us
        self._lost = lost
        self._refuses = refuses

    def _answer(self, peer: PeerId, cid: Cid, temper: Temper) -> None:
        if cid != self._lost:
            super()._answer(peer, cid, temper)
            return
        self._close(peer, cid)
        if self._refuses:
            self.plan.on_busy(peer, [cid], self.now_us)
        else:
            self.plan.on_not_have(peer, [cid], self.now_us)

    def _stored(self, cid: Cid, data: bytes) -> None:
        if cid.codec is Codec.DAG_PB:
            super()._stored(cid, data)
        else:
            self._came[cid] = data
            self._read_on()

    def _read_on(self) -> None:
        if not self._is_reading and self._order and self._order[0] in self._came:
            self._is_reading = True
            self.after(self._read_us, self._have_read)

    def _have_read(self) -> None:
        self._is_reading = False
        leaf = self._order.pop(0)
        if leaf not in self._order[: LIMITS.max_blocks]:  # else it waits to be read again
            super()._stored(leaf, bytes(self._came.pop(leaf)))
        self._read_on()


def test_a_reader_that_takes_longer_for_each_block_than_a_fetch_has_patience_is_waited_for() -> None:
    world = Reading(CHUNKS, read_us=2 * LIMITS.patience_us)
    assert world.run() == Finished()
    assert world.now_us > len(CHUNKS) * LIMITS.patience_us


@pytest.mark.parametrize("read_us", [0, 1000, 10 * US_PER_S])
@pytest.mark.parametrize("lost", [1, 20, 39])
def test_a_block_that_nobody_has_ends_the_fetch_though_what_is_behind_it_waits_for_the_reader(
    read_us: int, lost: int
) -> None:
    world = Reading(CHUNKS, read_us=read_us, lost=Cid.of_raw(CHUNKS[lost]))
    end = world.run()
    assert isinstance(end, Failed)
    assert "nobody has block" in end.reason


def test_so_does_one_for_which_its_only_provider_never_has_time() -> None:
    world = Reading(CHUNKS, read_us=1000, lost=Cid.of_raw(CHUNKS[20]), refuses=True)
    end = world.run()
    assert isinstance(end, Failed)
    assert "got no block for 120 s" in end.reason


def test_and_though_a_block_that_is_read_already_waits_to_be_read_again() -> None:
    chunks = [CHUNKS[0], CHUNKS[1], CHUNKS[0], *CHUNKS[2:]]
    world = Reading(chunks, read_us=1000, lost=Cid.of_raw(CHUNKS[1]), refuses=True)
    assert isinstance(world.run(), Failed)


def asked_for(world: FetchWorld, *peers: PeerId) -> tuple[Cid, Callable[[int], list[object]]]:
    """A plan that knows these providers and has asked the first for the root; and what it says."""
    plan, root = world.plan, world.plan.root
    for peer in peers[1:]:
        plan.on_provider(peer)
    plan.next(0)
    plan.on_absent(root)
    assert Ask(peers[0], (root,)) in plan.next(0)
    return root, lambda now_us: list(plan.next(now_us)[:-1])


def test_what_is_not_said_to_a_provider_that_is_held_up_is_asked_of_another() -> None:
    world = Reading(CHUNKS, read_us=0)
    root, said = asked_for(world, ANNE, BOB)
    world.plan.on_held_up(ANNE, [root])
    assert said(0) == [Ask(BOB, (root,))]
    world.plan.on_gone(BOB, "left")
    assert said(0) == [], "Anne may have it"


def test_a_provider_that_is_held_up_has_not_stalled_and_its_fetch_waits_for_its_turn() -> None:
    world = Reading(CHUNKS, read_us=0)
    root, said = asked_for(world, ANNE)
    world.plan.on_held_up(ANNE, [root])
    searched = [action for now_s in range(3600) for action in said(now_s * US_PER_S)]
    assert searched == [FindProviders()], "there may be others"
    world.plan.on_search_ended(3600 * US_PER_S)
    world.plan.on_turn(ANNE)
    assert said(3600 * US_PER_S) == [Ask(ANNE, (root,))]


def test_a_fetch_waits_for_the_turn_of_one_provider_however_long_another_is_busy() -> None:
    world = Reading(CHUNKS, read_us=0)
    root, said = asked_for(world, ANNE, BOB)
    world.plan.on_held_up(ANNE, [root])
    for now_s in range(2 * LIMITS.patience_us // US_PER_S):
        for action in said(now_s * US_PER_S):
            if action == Ask(BOB, (root,)):
                world.plan.on_busy(BOB, [root], now_s * US_PER_S)
    world.plan.on_gone(BOB, "left")
    world.plan.on_turn(ANNE)
    assert Ask(ANNE, (root,)) in said(2 * LIMITS.patience_us)


def test_what_was_said_to_a_provider_that_is_held_up_it_may_still_bring_and_is_waited_for_no_longer_than_ever() -> None:
    world = Reading(CHUNKS, read_us=0)
    root, said = asked_for(world, ANNE)
    world.plan.on_held_up(ANNE, [])
    said(0)
    assert DropProvider(ANNE, "stalled", is_hostile=False) in said(LIMITS.silence_us)

    world = Reading(CHUNKS, read_us=0)
    root, said = asked_for(world, ANNE)
    world.plan.on_held_up(ANNE, [])
    world.plan.on_block(ANNE, root, world.blocks[root], 0)
    assert not any(isinstance(action, Ask) for action in said(0))
    for chunk in CHUNKS:
        world.plan.on_absent(Cid.of_raw(chunk))
    assert not any(isinstance(action, Ask) for action in said(0))
    world.plan.on_turn(ANNE)
    assert any(isinstance(action, Ask) for action in said(0))
