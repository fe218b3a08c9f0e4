"""The block store, on disk and in memory: blocks by digest, roots that use them, claims that keep roots, garbage."""

from __future__ import annotations

import pickle
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from prime_dht.blobs.cid import Cid
from prime_dht.errors import StorageError, ValidationError
from prime_dht.storage import blocks
from prime_dht.storage.blocks import BlockStore, Claim
from prime_dht.storage.blocks_files import DiskFiles
from prime_dht.storage.blocks_index import BlockIndex, LostBlocksError
from prime_dht.storage.blocks_status import BlockStats, Collected, NoRoomError, RootStatus

PUBLISHER, OTHER = b"publisher", b"another publisher"
BLOCKS = [b"first", b"second block", b"third"]
CIDS = [Cid.of_raw(data) for data in BLOCKS]
PAIRS = list(zip(CIDS, BLOCKS, strict=True))
ROOT, ROOT_2 = Cid.of_dag_pb(b"a root"), Cid.of_dag_pb(b"another root")
CLAIM, CLAIM_2 = Claim(root=ROOT, owner=PUBLISHER, label=b"op"), Claim(root=ROOT_2, owner=OTHER, label=b"op")
NOTHING = Collected(blocks=0, bytes=0, is_all=True)


@pytest.fixture(params=["disk", "memory"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[BlockStore]:
    if request.param == "disk":
        store = await BlockStore.open(tmp_path / "blocks", max_bytes=1000)
    else:
        store = BlockStore.in_memory(max_bytes=1000)
    async with store:
        yield store


async def collect_all(store: BlockStore) -> int:
    """Collect until there is nothing left; returns the number of blocks."""
    blocks = 0
    while not (collected := await store.collect(limit=2)).is_all:
        blocks += collected.blocks
    return blocks + collected.blocks


# Blocks


async def test_a_block_is_read_back_and_one_that_is_not_there_is_none(store: BlockStore) -> None:
    await store.claim(CLAIM, size_bytes=22)
    await store.add(ROOT, PAIRS[:2])
    assert await store.read(CIDS) == [b"first", b"second block", None]
    assert await store.read(CIDS, verify=True) == [b"first", b"second block", None]
    assert await store.present(CIDS) == set(CIDS[:2])


async def test_any_buffer_is_a_block(store: BlockStore) -> None:
    await store.claim(CLAIM, size_bytes=22)
    await store.add(ROOT, [(CIDS[0], bytearray(BLOCKS[0])), (CIDS[1], memoryview(BLOCKS[1]))])
    assert await store.read(CIDS[:2], verify=True) == BLOCKS[:2]


async def test_a_block_that_several_roots_use_is_kept_once(store: BlockStore) -> None:
    await store.claim(CLAIM, size_bytes=17)
    await store.claim(CLAIM_2, size_bytes=17)
    await store.add(ROOT, PAIRS[:2])
    await store.add(ROOT_2, PAIRS[1:])
    assert await store.stats() == BlockStats(blocks=3, bytes=22, max_bytes=1000)
    await store.release(CLAIM)
    assert await collect_all(store) == 1
    assert await store.read(CIDS) == [None, b"second block", b"third"]


async def test_blocks_of_one_digest_are_one_block_whatever_their_codec(store: BlockStore) -> None:
    await store.claim(CLAIM, size_bytes=5)
    await store.add(ROOT, [(Cid.of_raw(b"first"), b"first"), (Cid.of_dag_pb(b"first"), b"first")])
    assert (await store.stats()).blocks == 1
    assert await store.present([Cid.of_dag_pb(b"first")]) == {Cid.of_dag_pb(b"first")}


async def test_nothing_is_stored_for_a_root_that_nobody_claims(store: BlockStore) -> None:
    with pytest.raises(StorageError, match=f"nobody claims the root {ROOT}"):
        await store.add(ROOT, PAIRS)
    assert (await store.stats()).blocks == 0
    assert await store.read(CIDS) == [None] * 3


# Roots


async def test_a_root_is_partial_until_it_is_said_to_be_complete(store: BlockStore) -> None:
    status = await store.claim(CLAIM, size_bytes=22)
    assert (status.present_blocks, status.present_bytes, status.is_complete) == (0, 0, False)
    await store.add(ROOT, PAIRS[:2])
    partial = await store.status(ROOT)
    assert partial is not None
    assert (partial.size_bytes, partial.present_blocks, partial.present_bytes) == (22, 2, 17)
    assert not partial.is_complete
    await store.add(ROOT, PAIRS)
    await store.complete(ROOT)
    whole = await store.status(ROOT)
    assert whole is not None
    assert (whole.present_blocks, whole.present_bytes, whole.is_complete) == (3, 22, True)
    assert await store.status(ROOT_2) is None


async def test_adopting_tells_what_is_there_and_keeps_it(store: BlockStore) -> None:
    await store.claim(CLAIM, size_bytes=17)
    await store.add(ROOT, PAIRS[:2])
    await store.claim(CLAIM_2, size_bytes=22)
    assert await store.adopt(ROOT_2, CIDS) == set(CIDS[:2])
    await store.release(CLAIM)
    assert await collect_all(store) == 0
    assert await store.present(CIDS) == set(CIDS[:2])
    status = await store.status(ROOT_2)
    assert status is not None
    assert status.present_bytes == 17


async def test_roots_are_listed_page_by_page_in_the_order_of_their_cids(store: BlockStore) -> None:
    roots = sorted((Cid.of_raw(b"%d" % number) for number in range(5)), key=bytes)
    for root in roots:
        await store.claim(Claim(root=root), size_bytes=1)
    first = await store.roots(limit=3)
    assert [status.root for status in first] == roots[:3]
    assert [status.root for status in await store.roots(after=first[-1].root)] == roots[3:]


async def test_what_is_being_written_under_a_draft_is_no_garbage(store: BlockStore) -> None:
    async with store.draft() as draft:
        await store.add(draft, PAIRS)
        assert await collect_all(store) == 0
        await store.settle(draft, CLAIM, size_bytes=22)
    assert await collect_all(store) == 0
    status = await store.status(ROOT)
    assert status is not None
    assert (status.size_bytes, status.present_blocks, status.is_complete) == (22, 3, True)
    assert await store.claims(ROOT) == [CLAIM]


async def test_a_draft_that_is_not_settled_becomes_garbage(store: BlockStore) -> None:
    async with store.draft() as draft:
        await store.add(draft, PAIRS)
    assert await collect_all(store) == 3
    assert await store.stats() == BlockStats(blocks=0, bytes=0, max_bytes=1000)


async def test_a_draft_that_turns_out_to_be_a_known_root_completes_it(store: BlockStore) -> None:
    await store.claim(CLAIM, size_bytes=22)
    await store.add(ROOT, PAIRS[:1])
    async with store.draft() as draft:
        await store.add(draft, PAIRS)
        await store.settle(draft, Claim(root=ROOT), size_bytes=22)
    assert await collect_all(store) == 0
    assert await store.claims(ROOT) == [Claim(root=ROOT), CLAIM]
    (status,) = await store.roots()
    assert (status.root, status.present_blocks, status.is_complete) == (ROOT, 3, True)


# Claims


async def test_a_root_is_kept_until_its_last_claim_is_released(store: BlockStore) -> None:
    again = Claim(root=ROOT, owner=PUBLISHER, label=b"another op")
    await store.claim(CLAIM, size_bytes=22)
    await store.claim(CLAIM, size_bytes=22)
    await store.claim(again, size_bytes=22)
    await store.add(ROOT, PAIRS)
    await store.complete(ROOT)
    await store.release(CLAIM)
    await store.release(CLAIM)
    assert await store.claims(ROOT) == [again]
    assert await collect_all(store) == 0
    await store.release(again)
    assert await store.status(ROOT) is None
    assert await collect_all(store) == 3


async def test_a_root_that_is_claimed_again_before_it_was_collected_starts_afresh_from_what_is_left(
    store: BlockStore,
) -> None:
    await store.claim(CLAIM, size_bytes=22)
    await store.add(ROOT, PAIRS)
    await store.complete(ROOT)
    await store.release(CLAIM)
    status = await store.claim(CLAIM, size_bytes=22)
    assert not status.is_complete
    assert await store.adopt(ROOT, CIDS) == set(CIDS)
    assert await collect_all(store) == 0
    assert await store.read(CIDS) == BLOCKS


# Garbage


async def test_garbage_is_collected_a_few_blocks_at_a_time(store: BlockStore) -> None:
    await store.claim(CLAIM, size_bytes=22)
    await store.add(ROOT, PAIRS)
    assert await store.collect() == NOTHING
    await store.release(CLAIM)
    collected = [await store.collect(limit=2), await store.collect(limit=2), await store.collect(limit=2)]
    assert sum(each.blocks for each in collected) == 3
    assert sum(each.bytes for each in collected) == 22
    assert [each.is_all for each in collected] == [False, True, True]
    assert await store.read(CIDS) == [None] * 3


async def test_a_block_that_was_collected_can_be_added_again(store: BlockStore) -> None:
    await store.claim(CLAIM, size_bytes=22)
    await store.add(ROOT, PAIRS)
    await store.release(CLAIM)
    await collect_all(store)
    await store.claim(CLAIM_2, size_bytes=22)
    await store.add(ROOT_2, PAIRS)
    assert await collect_all(store) == 0
    assert await store.read(CIDS, verify=True) == BLOCKS


# Room


async def test_blocks_for_which_there_is_no_room_are_refused_together(store: BlockStore) -> None:
    await store.claim(CLAIM, size_bytes=22)
    large = bytes(990)
    with pytest.raises(NoRoomError, match="no room for 1012 bytes of blocks: of 1000 bytes, 1000 are free") as refused:
        await store.add(ROOT, [*PAIRS, (Cid.of_raw(large), large)])
    assert (refused.value.wanted_bytes, refused.value.room_bytes) == (1012, 1000)
    assert await store.present([*CIDS, Cid.of_raw(large)]) == set()
    await store.add(ROOT, PAIRS)
    assert (await store.stats()).bytes == 22


async def test_garbage_makes_room(store: BlockStore) -> None:
    large, larger = bytes(600), bytes(601)
    await store.claim(CLAIM, size_bytes=600)
    await store.add(ROOT, [(Cid.of_raw(large), large)])
    await store.release(CLAIM)
    await store.claim(CLAIM_2, size_bytes=601)
    await store.add(ROOT_2, [(Cid.of_raw(larger), larger)])
    assert await store.stats() == BlockStats(blocks=1, bytes=601, max_bytes=1000)


def test_that_there_is_no_room_can_be_told_to_another_process() -> None:
    error = NoRoomError(1012, 900, 1000)
    handed_on = pickle.loads(pickle.dumps(error))
    assert (type(handed_on), str(handed_on)) == (NoRoomError, str(error))
    assert (handed_on.wanted_bytes, handed_on.room_bytes) == (1012, 900)


async def test_a_root_is_refused_for_which_there_is_no_room_beside_what_others_still_lack(store: BlockStore) -> None:
    await store.claim(CLAIM, size_bytes=900)
    await store.add(ROOT, PAIRS)
    with pytest.raises(NoRoomError, match="no room for 957 bytes of blocks: of 1000 bytes, 956 are free"):
        await store.claim(CLAIM_2, size_bytes=957)
    assert await store.status(ROOT_2) is None
    await store.claim(CLAIM_2, size_bytes=956)
    await store.claim(Claim(root=ROOT_2), size_bytes=10_000)  # known already: nothing more will come


async def test_for_a_root_as_much_is_reserved_as_has_come_of_it_and_all_of_it_if_the_nodes_own_user_claims_it(
    store: BlockStore,
) -> None:
    for number in range(3):
        await store.claim(Claim(root=Cid.of_dag_pb(b"%d" % number), owner=PUBLISHER), size_bytes=1000)
    await store.claim(CLAIM, size_bytes=900)
    await store.claim(Claim(root=ROOT, label=b"pin"), size_bytes=0)
    with pytest.raises(NoRoomError, match="of 1000 bytes, 100 are free"):
        await store.claim(CLAIM_2, size_bytes=101)
    await store.add(ROOT, PAIRS)
    with pytest.raises(NoRoomError, match="of 1000 bytes, 100 are free"):
        await store.claim(CLAIM_2, size_bytes=101)


async def test_a_root_that_was_let_go_of_while_its_blocks_came_is_not_complete(store: BlockStore) -> None:
    before = await store.claim(CLAIM, size_bytes=22)
    await store.add(ROOT, PAIRS[:2])
    await store.release(CLAIM)
    since = await store.claim(CLAIM, size_bytes=22)
    await store.add(ROOT, PAIRS[2:])
    with pytest.raises(LostBlocksError, match="let go of"):
        await store.complete(ROOT, since=before)
    status = await store.status(ROOT)
    assert status is not None
    assert not status.is_complete
    assert await store.roots(is_partial=True) == [status]
    await store.add(ROOT, PAIRS)
    await store.complete(ROOT, since=since)
    assert await store.roots(is_partial=True) == []


async def test_what_is_there_already_needs_no_room(store: BlockStore) -> None:
    large = bytes(990)
    await store.claim(CLAIM, size_bytes=990)
    await store.add(ROOT, [(Cid.of_raw(large), large)])
    await store.complete(ROOT)
    await store.add(ROOT, [(Cid.of_raw(large), large)])
    assert (await store.stats()).bytes == 990


# Calls


async def test_a_closed_store_says_so(store: BlockStore) -> None:
    await store.aclose()
    await store.aclose()
    with pytest.raises(StorageError, match="the store is closed"):
        await store.read(CIDS)


async def test_a_block_that_comes_while_the_store_closes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes: list[str] = []
    store = await BlockStore.open(tmp_path, max_bytes=1000)

    async def add() -> None:
        with pytest.raises(StorageError) as refused:
            await store.add(ROOT, PAIRS[1:])
        outcomes.append(str(refused.value))

    await store.claim(CLAIM, size_bytes=22)
    await store.add(ROOT, PAIRS[:1])
    monkeypatch.setattr(DiskFiles, "sync", lambda *_: trio.from_thread.run(add))
    await store.aclose()
    assert outcomes == [f"{tmp_path}: the store is closed"]
    monkeypatch.undo()
    async with await BlockStore.open(tmp_path, max_bytes=1000) as again:
        assert await again.present(CIDS) == {CIDS[0]}


async def test_a_block_that_was_being_written_when_the_store_closed_is_brought_to_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "UNSYNCED_BYTES", 1)
    write, sync = DiskFiles.write, DiskFiles.sync
    synced: list[bytes] = []

    async def begin_to_close() -> None:
        nursery.start_soon(store.aclose)
        await trio.testing.wait_all_tasks_blocked()

    def write_while_closing(files: DiskFiles, digest: bytes, data: bytes) -> None:
        trio.from_thread.run(begin_to_close)
        write(files, digest, data)

    def note(files: DiskFiles, digests: list[bytes]) -> None:
        synced.extend(digests)
        sync(files, digests)

    store = await BlockStore.open(tmp_path, max_bytes=1000)
    await store.claim(CLAIM, size_bytes=22)
    monkeypatch.setattr(DiskFiles, "write", write_while_closing)
    monkeypatch.setattr(DiskFiles, "sync", note)
    async with trio.open_nursery() as nursery:
        await store.add(ROOT, PAIRS[:1])
    assert synced == [CIDS[0].digest]


async def test_a_draft_that_is_open_when_the_store_closes_becomes_garbage(tmp_path: Path) -> None:
    store = await BlockStore.open(tmp_path, max_bytes=1000)
    async with store.draft() as draft:
        await store.add(draft, PAIRS)
        await store.aclose()
    async with await BlockStore.open(tmp_path, max_bytes=1000) as store:
        assert await collect_all(store) == 3


async def test_a_cancelled_add_is_whole(store: BlockStore) -> None:
    await store.claim(CLAIM, size_bytes=22)
    with trio.CancelScope() as scope:
        scope.cancel()
        await store.add(ROOT, PAIRS)
    status = await store.status(ROOT)
    assert status is not None
    assert status.present_blocks == len(await store.present(CIDS)) in (0, 3)


async def test_many_tasks_may_add_the_same_blocks(store: BlockStore) -> None:
    await store.claim(CLAIM, size_bytes=22)
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(store.add, ROOT, PAIRS)
            nursery.start_soon(store.read, CIDS)
    assert await store.read(CIDS, verify=True) == BLOCKS
    assert (await store.stats()).bytes == 22


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["add", "claim", "release", "collect", "adopt"]),
        st.sampled_from([ROOT, ROOT_2]),
        st.sets(st.sampled_from(CIDS), min_size=1),
    ),
    max_size=30,
)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(STEPS)
def test_whatever_is_done_what_a_claimed_root_uses_is_there_and_all_else_can_be_collected(
    steps: list[tuple[str, Cid, set[Cid]]],
) -> None:
    data_of = dict(PAIRS)

    async def run() -> None:
        uses: dict[Cid, set[Cid]] = {}
        async with BlockStore.in_memory(max_bytes=1000) as store:
            for step, root, cids in steps:
                match step:
                    case "claim":
                        await store.claim(Claim(root=root), size_bytes=22)
                        uses.setdefault(root, set())
                    case "release":
                        await store.release(Claim(root=root))
                        uses.pop(root, None)
                    case "add" if root in uses:
                        await store.add(root, [(cid, data_of[cid]) for cid in cids])
                        uses[root] |= cids
                    case "adopt" if root in uses:
                        uses[root] |= await store.adopt(root, cids)
                    case "collect":
                        await store.collect(limit=1)
                assert set().union(*uses.values()) <= await store.present(CIDS)
                for claimed, its in uses.items():
                    status = await store.status(claimed)
                    assert status is not None
                    assert status.present_blocks == len(its)
                    assert status.present_bytes == sum(len(data_of[cid]) for cid in its)
            await collect_all(store)
            assert await store.present(CIDS) == set().union(*uses.values())
            assert (await store.stats()).blocks == len(await store.present(CIDS))

    trio.run(run)


async def test_a_store_in_memory_makes_no_index_until_something_is_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def make(path: str) -> BlockIndex:
        made.append(path)
        return BlockIndex(path)

    monkeypatch.setattr(blocks, "BlockIndex", make)
    async with BlockStore.in_memory(max_bytes=1000) as store:
        assert await store.roots() == []
        assert await store.collect() == NOTHING
        await store.sync()
        assert made == []
        await store.claim(CLAIM, size_bytes=22)
        assert len(made) == 1
        assert [status.root for status in await store.roots()] == [ROOT]
    async with BlockStore.in_memory(max_bytes=1000) as store:
        pass
    assert len(made) == 1
    with pytest.raises(StorageError, match="closed"):
        await store.roots()


async def test_a_claim_that_is_refused_leaves_nothing_and_one_that_is_there_is_not_asked_about(
    store: BlockStore,
) -> None:
    seen: list[bool] = []

    def refuse(status: RootStatus | None) -> None:
        seen.append(status is not None and status.is_complete)
        raise ValidationError("refused")

    with pytest.raises(ValidationError, match="refused"):
        await store.claim(CLAIM, size_bytes=22, check=refuse)
    assert await store.status(ROOT) is None
    await store.claim(CLAIM, size_bytes=22)
    await store.claim(CLAIM, size_bytes=22, check=refuse)
    await store.add(ROOT, PAIRS)
    await store.complete(ROOT)
    with pytest.raises(ValidationError, match="refused"):
        await store.claim(Claim(root=ROOT, owner=OTHER), size_bytes=22, check=refuse)
    assert seen == [False, True]
    assert await store.claims(ROOT) == [CLAIM]


async def test_only_what_is_claimed_and_complete_is_held(store: BlockStore) -> None:
    partial = Cid.of_raw(b"partial")
    await store.claim(Claim(root=partial), size_bytes=7)
    await store.claim(CLAIM, size_bytes=22)
    await store.add(ROOT, PAIRS)
    assert await store.held([ROOT, partial]) == set()
    assert (await store.complete(ROOT)).is_complete
    assert await store.held([ROOT, partial, Cid.of_raw(b"unknown")]) == {ROOT}
    await store.release(CLAIM)
    assert await store.held([ROOT]) == set()
