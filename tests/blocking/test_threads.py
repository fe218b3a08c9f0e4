"""One client, many threads: waiting, futures, event loops, and closing in the middle."""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import linecache
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from types import FrameType

import pytest
import trio

from prime_dht import BlockingDHT, LocalProtocolError, PrimeDHT, QueryError, connect
from prime_dht.blocking import life, node_thread
from prime_dht.blocking.node_thread import CALLS_AT_ONCE, NodeThread
from prime_dht.config import DhtConfig, Mode, NodeConfig
from prime_dht.entries.validators import Validator
from prime_dht.ids import wire_key

PROMPTLY_S = 60.0
"""Ends a test that would hang."""


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


class After:
    """A trace function that calls another function after a number of steps: lines, calls and returns."""

    def __init__(self, steps: int, then: Callable[[], object]) -> None:
        self.steps = steps
        self.then = then

    def __call__(self, frame: FrameType, event: str, arg: object) -> After:
        # A `with` is a step also when its block ends, before it lets go. There Python looks for no signals.
        if not linecache.getline(frame.f_code.co_filename, frame.f_lineno).lstrip().startswith("with "):
            self.steps -= 1
        if self.steps < 0:
            sys.settrace(None)
            self.then()
        return self


def interrupt() -> None:
    raise KeyboardInterrupt


async def seven(_: PrimeDHT) -> int:
    return 7


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


@pytest.mark.parametrize("error", [SystemExit(3), asyncio.CancelledError()])
def test_a_callback_that_exits_does_not_end_the_node(
    short_lived: BlockingDHT, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    def fail(_: Future[None]) -> None:
        raise error

    ending = trio.Event()

    async def last(_: PrimeDHT) -> None:
        await ending.wait()

    async def end(_: PrimeDHT) -> None:
        ending.set()

    future: Future[None] = short_lived.call(last, wait=False)
    future.add_done_callback(fail)
    short_lived.call(end)
    future.result()
    assert len(short_lived.peers()) == 3
    assert "a callback of a future failed; the node goes on" in caplog.text


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
    ways: list[Callable[[], object]] = [
        lambda: short_lived.call(seven),
        lambda: short_lived.call(seven, wait=False),
        lambda: short_lived._begin_aside(seven, None),
    ]
    interrupted = 0
    for way in ways:
        for steps in itertools.count():
            sys.settrace(After(steps, interrupt))
            try:
                way()
            except KeyboardInterrupt:
                interrupted += 1
            else:
                break
            finally:
                sys.settrace(None)
            assert short_lived.call(seven, timeout=60) == 7
    assert interrupted > 150


@pytest.mark.parametrize("way", ["waits", "has a future", "is aside"])
def test_the_handler_of_a_signal_may_make_a_call_at_any_step_of_another(
    short_lived: BlockingDHT, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    if way == "is aside":  # what takes no place leaves the only one to the handler
        monkeypatch.setattr(node_thread, "CALLS_AT_ONCE", 1)
    handled: list[object] = []

    def call_after(steps: int) -> None:
        # A future has a lock of its own, which whoever waits for it may hold.
        sys.settrace(After(steps, lambda: handled.append(short_lived.call(seven, wait=way != "has a future"))))
        try:
            if way == "waits":
                assert short_lived.call(seven) == 7
            elif way == "has a future":
                assert short_lived.call(seven, wait=False).result() == 7
            else:
                short_lived._begin_aside(seven, None)
        finally:
            sys.settrace(None)

    for steps in itertools.count():
        thread = threading.Thread(target=call_after, args=(steps,), daemon=True)  # which a deadlock would leave behind
        thread.start()
        thread.join(PROMPTLY_S)
        assert not thread.is_alive()
        if len(handled) == steps:
            break
    assert [each.result() if isinstance(each, Future) else each for each in handled] == [7] * steps
    assert steps > 50


@pytest.mark.parametrize("closes", [False, True])
def test_the_handler_of_a_signal_may_open_or_close_a_client_that_is_being_opened(
    swarm: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, closes: bool
) -> None:
    nodes: list[NodeThread] = []

    def opened(config: NodeConfig, *, validators: Mapping[str, Validator] | None, joining_s: float) -> NodeThread:
        nodes.append(node := NodeThread(config, validators=validators, joining_s=joining_s))
        if nodes == [node] and closes:
            dht.close()
        elif nodes == [node]:
            assert dht.call(seven) == 7
        return node

    monkeypatch.setattr(life, "NodeThread", opened)
    config = NodeConfig(peers=swarm[:1], listen=(), dht=DhtConfig(mode=Mode.CLIENT))
    with BlockingDHT(config, None, PROMPTLY_S) as dht:
        if closes:
            with pytest.raises(LocalProtocolError, match="closed"):
                dht.call(seven)
        else:
            assert dht.call(seven) == 7
    for node in nodes:
        node._thread.join(PROMPTLY_S)
        assert not node._thread.is_alive()
    assert len(nodes) == (1 if closes else 2)
