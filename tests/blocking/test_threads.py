"""One client, many threads: waiting, futures, event loops, and closing in the middle."""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import linecache
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from types import FrameType

import pytest
import trio

from prime_dht import BlockingDHT, LocalProtocolError, PrimeDHT, QueryError, connect
from prime_dht.blocking import node_thread
from prime_dht.blocking.node_thread import CALLS_AT_ONCE
from prime_dht.ids import wire_key


class Endless:
    """Work that says that it has begun, and that it was cancelled; nothing else ends it."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.cancelled = threading.Event()

    async def __call__(self, _: PrimeDHT) -> None:
        self.begun.set()
        try:
            await trio.sleep_forever()
        finally:
            self.cancelled.set()


class InterruptAfter:
    """A trace function that raises ``KeyboardInterrupt`` after a number of steps: lines, calls and returns."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def __call__(self, frame: FrameType, event: str, arg: object) -> InterruptAfter:
        # A `with` is a step also when its block ends, before it lets go. There Python looks for no signals.
        if not linecache.getline(frame.f_code.co_filename, frame.f_lineno).lstrip().startswith("with "):
            self.steps -= 1
        if self.steps < 0:
            sys.settrace(None)
            raise KeyboardInterrupt
        return self


@pytest.fixture
def short_lived(swarm: tuple[str, ...]) -> Iterator[BlockingDHT]:
    """A client for a test that closes it."""
    with connect(swarm[0]) as dht:
        yield dht


def test_a_thousand_puts_from_sixteen_threads_are_all_there(dht: BlockingDHT) -> None:
    items = {f"threads:{number}": b"%d" % number for number in range(1000)}
    with ThreadPoolExecutor(16) as pool:
        receipts = list(pool.map(lambda key: dht.put(key, items[key]), items))
    assert all(receipt.acknowledged for receipt in receipts)
    found = dht.get_many(items)
    assert {key: None if one is None else one.value for key, one in found.items()} == {
        wire_key(key): value for key, value in items.items()
    }


def test_futures_overlap_and_complete(dht: BlockingDHT) -> None:
    meeting = trio.Event()

    async def come(_: PrimeDHT) -> str:
        await meeting.wait()
        return "met"

    async def call(_: PrimeDHT) -> str:
        meeting.set()
        return "called"

    first: Future[str] = dht.call(come, wait=False)
    assert dht.call(call) == "called"
    assert first.result() == "met"
    puts = {dht.put(f"threads:overlap:{number}", b"value", wait=False): number for number in range(300)}
    assert sorted(puts[future] for future in as_completed(puts) if future.result().acknowledged) == list(range(300))


def test_the_future_of_a_failure_raises_it(dht: BlockingDHT) -> None:
    with pytest.raises(QueryError, match="not done within"):
        dht.call(Endless(), timeout=0.01, wait=False).result()
    error = dht.put("", b"", wait=False).exception()
    assert isinstance(error, ValueError)


def test_cancelling_a_future_cancels_the_call_in_the_node(dht: BlockingDHT) -> None:
    endless = Endless()
    future = dht.call(endless, wait=False)
    endless.begun.wait()
    assert future.cancel()
    assert concurrent.futures.wait([future]).done == {future}
    assert endless.cancelled.is_set()
    assert next(as_completed([future])).cancelled()


def test_a_callback_can_start_a_call_but_not_wait_for_one(dht: BlockingDHT) -> None:
    seen: Future[object] = Future()

    def go_on(_: Future[None]) -> None:
        with pytest.raises(LocalProtocolError, match="wait=False"):
            dht.get("threads:callback")
        dht.put("threads:callback", b"value", wait=False).add_done_callback(seen.set_result)

    dht.call(Endless(), timeout=0.01, wait=False).add_done_callback(go_on)
    assert isinstance(seen.result(), Future)


def test_calls_beyond_the_bound_wait_for_a_place(short_lived: BlockingDHT) -> None:
    under_way = [short_lived.call(Endless(), wait=False) for _ in range(CALLS_AT_ONCE)]
    with pytest.raises(QueryError, match=f"{CALLS_AT_ONCE} calls are under way"):
        short_lived.peers(timeout=0.01)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(short_lived.peers)
        under_way[0].cancel()
        assert len(waiting.result()) == 3
    with ThreadPoolExecutor(1) as pool:
        short_lived.call(Endless(), wait=False)
        waiting = pool.submit(short_lived.peers)
        short_lived.close()
        assert isinstance(waiting.exception(), LocalProtocolError)


def test_closing_ends_the_calls_under_way_with_an_error(short_lived: BlockingDHT) -> None:
    endless, waited, nested = Endless(), Endless(), Endless()

    async def in_a_nursery(dht: PrimeDHT) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(nested, dht)

    future = short_lived.call(endless, wait=False)
    parted = short_lived.call(in_a_nursery, wait=False)
    with ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(short_lived.call, waited)
        with short_lived.subscribe() as events:
            listening = pool.submit(list, events)
            waited.begun.wait()
            nested.begun.wait()
            short_lived.close()
            assert all(event is not None for event in listening.result())
        for ended in (future, waiting, parted):
            with pytest.raises(LocalProtocolError, match="the node ended before this call did"):
                ended.result()
    assert endless.cancelled.is_set()


def test_under_asyncio_a_call_waits_and_a_future_can_be_awaited(dht: BlockingDHT) -> None:
    async def cell() -> bytes:
        dht.put("threads:notebook", b"value")
        found = await asyncio.wrap_future(dht.get("threads:notebook", wait=False))
        assert found is not None
        return found.value

    assert asyncio.run(cell()) == b"value"


async def test_where_trio_runs_a_call_that_would_stall_it_is_refused(dht: BlockingDHT, swarm: tuple[str, ...]) -> None:
    for use in (dht.peers, dht.health, lambda: connect(swarm[0])):
        with pytest.raises(LocalProtocolError, match=r"use prime_dht\.open_node"):
            use()
    assert len(await trio.to_thread.run_sync(dht.peers)) == 3


def test_ctrl_c_at_any_step_of_a_call_leaves_a_client_that_works(
    short_lived: BlockingDHT, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``KeyboardInterrupt`` comes at the first step of a call, then at the second, until a call gets through."""
    monkeypatch.setattr(node_thread, "CALLS_AT_ONCE", 1)  # a place that is not given back is missed at once

    async def work(_: PrimeDHT) -> int:
        return 7

    interrupted = 0
    for wait in (True, False):
        for steps in itertools.count():
            sys.settrace(InterruptAfter(steps))
            try:
                short_lived.call(work, wait=wait)
            except KeyboardInterrupt:
                interrupted += 1
            else:
                break
            finally:
                sys.settrace(None)
            assert short_lived.call(work, timeout=60) == 7
    assert interrupted > 100
