"""The law of fetch plans: one honest provider is enough, whatever all others do."""

from __future__ import annotations

from functools import partial
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from prime_dht.blobs.actions import Finished
from prime_dht.blobs.plan import FetchLimits, FetchPlan
from prime_dht.blobs.walk import Walk
from prime_dht.ids import US_PER_S, PeerId
from prime_dht.testing.blob_fetch import FetchWorld, Temper, blocks_of

HONEST_PEER = PeerId(b"honest")


@st.composite
def tempers(draw: st.DrawFn) -> Temper:
    """A provider that fails in some ways, now and then or always."""
    lies, lacks, is_silent, leaves, is_busy = (draw(st.sampled_from([0.0, 0.0, 0.1, 0.5, 1.0])) for _ in range(5))
    return Temper(
        block_us=draw(st.sampled_from([0, 100, 10_000, 3 * US_PER_S])),
        lies=lies,
        lacks=lacks,
        is_silent=is_silent,
        leaves=leaves,
        is_busy=is_busy,
    )


@given(
    rng=st.randoms(use_true_random=False),
    chunk_count=st.integers(1, 60),
    links_per_node=st.integers(2, 9),
    others=st.lists(st.tuples(tempers(), st.sampled_from([0, 300_000, 3 * US_PER_S])), max_size=5),
    honest_block_us=st.sampled_from([0, 1_000, US_PER_S]),
    honest_comes_at_us=st.sampled_from([0, US_PER_S, 20 * US_PER_S]),
    max_bytes=st.sampled_from([1, 40, 1 << 20]),
    max_blocks=st.sampled_from([1, 5, 512]),
    knows_size=st.booleans(),
    share_present=st.sampled_from([0.0, 0.5, 1.0]),
)
@settings(derandomize=True, deadline=None, max_examples=200)
def test_with_one_honest_provider_a_fetch_completes_whatever_the_others_do(
    rng: Random,
    chunk_count: int,
    links_per_node: int,
    others: list[tuple[Temper, int]],
    honest_block_us: int,
    honest_comes_at_us: int,
    max_bytes: int,
    max_blocks: int,
    knows_size: bool,
    share_present: float,
) -> None:
    """The world itself checks that nothing unverified is stored, nothing twice, and what is asked for twice."""
    chunks = [bytes([rng.randrange(40)]) * rng.randrange(1, 20) for _ in range(chunk_count)]
    root, blocks = blocks_of(chunks, links_per_node)
    size = sum(map(len, chunks))
    store = {cid: data for cid, data in blocks.items() if rng.random() < share_present}
    present = set(store)
    limits = FetchLimits(
        max_bytes=max_bytes, max_blocks=max_blocks, max_providers=3, max_searches=20, max_searches_midway=20
    )
    plan = FetchPlan(Walk(root, size=size if knows_size else None), now_us=0, limits=limits)
    world = FetchWorld(plan, blocks, {}, rng, store=store)

    def come(peer: PeerId, temper: Temper) -> None:
        world.providers[peer] = temper
        plan.on_provider(peer)

    for index, (temper, comes_at_us) in enumerate(others):
        world.after(comes_at_us, partial(come, PeerId(bytes([index])), temper))
    world.after(honest_comes_at_us, partial(come, HONEST_PEER, Temper(block_us=honest_block_us)))
    assert world.run() == Finished()
    assert world.store == blocks
    assert sorted(world.log.stored, key=bytes) == sorted(blocks.keys() - present, key=bytes)
    assert not {cid for asked in world.log.asks.values() for cid in asked} & present
    assert HONEST_PEER not in world.log.dropped
    assert plan.progress.settled_bytes == plan.progress.size_bytes == size
