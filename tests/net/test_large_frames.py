"""Room for large frames: who keeps it and who loses it while others wait."""

from __future__ import annotations

import math
import tracemalloc
from contextlib import suppress

import pytest
import trio
from libp2p.network.stream.exceptions import StreamReset
from trio.testing import MockClock, wait_all_tasks_blocked

from prime_dht.ids import Key, PeerId
from prime_dht.net.rpc_server import RpcServer, ServerLimits
from prime_dht.net.streams import FrameBudget, FrameStream
from prime_dht.testing.rpc import CLIENT, SERVER
from prime_dht.testing.streams import MemoryStream, stream_pair
from prime_dht.wire.calls import encode_call
from prime_dht.wire.frames import encode_frame
from prime_dht.wire.kad import Ping, PutValue, Record, Reply, Request, decode_reply, encode_request

LARGE = 1 << 20


def pair(budget: FrameBudget) -> tuple[FrameStream, MemoryStream]:
    here, there = stream_pair(CLIENT, SERVER, window_bytes=2 * LARGE)
    return FrameStream(here, budget=budget, frame_timeout_s=10.0), there


async def read_at(frames: FrameStream) -> tuple[bool, float]:
    """Whether a frame came, and when it had or was given up; then the stream is done with."""
    try:
        has_come = await frames.read_frame(idle_timeout_s=math.inf) is not None
    except trio.TooSlowError:
        has_come = False
    at_s = trio.current_time()
    await frames.reset()
    return has_come, at_s


class Reads:
    """Reads a frame each of several streams, as nursery tasks."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self.ends: dict[str, tuple[bool, float]] = {}

    def begin(self, name: str, frames: FrameStream) -> None:
        async def read() -> None:
            self.ends[name] = await read_at(frames)

        self._nursery.start_soon(read)


@pytest.mark.parametrize("sent", [100_000, LARGE - 1], ids=["at its beginning", "at its end"])
async def test_a_frame_that_stands_still_gives_its_room_to_one_that_waits(sent: int, autojump_clock: MockClock) -> None:
    budget = FrameBudget(LARGE)
    still, still_peer = pair(budget)
    await still_peer.write(encode_frame(bytes(LARGE))[:sent])
    async with trio.open_nursery() as nursery:
        reads = Reads(nursery)
        reads.begin("still", still)
        await trio.sleep(1.0)
        whole, whole_peer = pair(budget)
        await whole_peer.write(encode_frame(bytes(LARGE)))
        reads.begin("whole", whole)
    assert not reads.ends["still"][0]
    assert reads.ends["whole"][0]
    assert reads.ends["whole"][1] <= 1.0 + 2.5


async def test_a_frame_that_trickles_gives_its_room_to_one_that_waits(autojump_clock: MockClock) -> None:
    budget = FrameBudget(LARGE)
    slow, slow_peer = pair(budget)
    await slow_peer.write(encode_frame(bytes(LARGE))[:100_000])
    async with trio.open_nursery() as nursery:
        reads = Reads(nursery)
        reads.begin("slow", slow)
        await trio.sleep(0.1)
        whole, whole_peer = pair(budget)
        await whole_peer.write(encode_frame(bytes(LARGE)))
        reads.begin("whole", whole)
        with suppress(StreamReset):
            while True:
                await trio.sleep(0.1)
                await slow_peer.write(bytes(100))
    assert not reads.ends["slow"][0]
    assert reads.ends["slow"][1] <= 0.1 + 2.5
    assert reads.ends["whole"][0]


async def test_a_frame_that_stands_still_is_seen_to_do_so_however_often_others_ask_for_room_and_give_it_back(
    autojump_clock: MockClock,
) -> None:
    budget = FrameBudget(2 * LARGE)
    still, still_peer = pair(budget)
    await still_peer.write(encode_frame(bytes(LARGE))[:100_000])
    async with trio.open_nursery() as nursery:
        reads = Reads(nursery)
        reads.begin("still", still)
        await trio.sleep(1.0)
        await budget.take(LARGE - 1)
        whole, whole_peer = pair(budget)
        await whole_peer.write(encode_frame(bytes(LARGE)))
        reads.begin("whole", whole)
        while "whole" not in reads.ends:
            await trio.sleep(0.2)
            budget.give_back(100)
            await budget.take(0)
    assert not reads.ends["still"][0]
    assert reads.ends["whole"] == (True, reads.ends["still"][1])
    assert reads.ends["whole"][1] <= 1.0 + 2.5


async def takes(budget: FrameBudget, size: int, name: str, order: list[str]) -> None:
    await budget.take(size)
    order.append(name)


async def test_of_the_parts_of_a_budget_the_one_that_has_least_gets_room_first(autojump_clock: MockClock) -> None:
    budget = FrameBudget(4 * LARGE)
    much, little = FrameBudget(8 * LARGE, within=budget), FrameBudget(8 * LARGE, within=budget)
    order: list[str] = []
    await much.take(3 * LARGE)
    await little.take(LARGE)
    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(takes, much, LARGE, f"much {number}", order)
            await wait_all_tasks_blocked()
        nursery.start_soon(takes, little, LARGE, "little", order)
        await wait_all_tasks_blocked()
        assert order == []
        much.give_back(LARGE)
        await wait_all_tasks_blocked()
        assert order == ["little"]
        nursery.start_soon(takes, little, LARGE, "little again", order)
        await wait_all_tasks_blocked()
        much.give_back(LARGE)
        await wait_all_tasks_blocked()
        assert order == ["little", "much 0"]
        nursery.cancel_scope.cancel()


async def test_who_asks_a_shared_budget_for_little_need_not_wait_until_there_is_room_for_much(
    autojump_clock: MockClock,
) -> None:
    budget = FrameBudget(4 * LARGE)
    order: list[str] = []
    await budget.take(3 * LARGE)
    async with trio.open_nursery() as nursery:
        for name, size in (("much", 2 * LARGE), ("little", LARGE)):
            nursery.start_soon(takes, FrameBudget(4 * LARGE, within=budget), size, name, order)
            await wait_all_tasks_blocked()
        assert order == ["little"]
        nursery.cancel_scope.cancel()


async def test_a_large_frame_gets_room_though_small_ones_keep_coming(autojump_clock: MockClock) -> None:
    budget = FrameBudget(LARGE)
    order: list[str] = []
    for _ in range(8):
        await budget.take(LARGE // 8)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(takes, budget, LARGE, "large", order)
        for number in range(8):
            await wait_all_tasks_blocked()
            nursery.start_soon(takes, budget, LARGE // 8, f"small {number}", order)
            await wait_all_tasks_blocked()
            budget.give_back(LARGE // 8)
        await wait_all_tasks_blocked()
        assert order == ["large"]
        budget.give_back(LARGE)
    assert len(order) == 9


@pytest.mark.parametrize("is_given_back", [False, True], ids=["and there is none", "as there is some"])
async def test_a_wait_for_room_that_is_cancelled_takes_none_and_lets_in_who_waits_behind_it(
    is_given_back: bool, autojump_clock: MockClock
) -> None:
    budget = FrameBudget(LARGE)
    part, other = FrameBudget(LARGE, within=budget), FrameBudget(2 * LARGE, within=budget)
    order: list[str] = []
    await other.take(LARGE // 2)
    async with trio.open_nursery() as nursery, trio.open_nursery() as cancelled:
        cancelled.start_soon(takes, part, LARGE, "cancelled", order)
        await wait_all_tasks_blocked()
        nursery.start_soon(takes, other, LARGE if is_given_back else LARGE // 2, "behind", order)
        await wait_all_tasks_blocked()
        assert order == []
        cancelled.cancel_scope.cancel()
        if is_given_back:
            other.give_back(LARGE // 2)
    assert order == ["behind"]
    other.give_back(LARGE)
    for _ in range(2):  # what both have given back is for either again
        with trio.fail_after(0):
            await part.take(LARGE)
        part.give_back(LARGE)


async def test_a_frame_that_comes_slowly_but_steadily_keeps_its_room_while_another_waits(
    autojump_clock: MockClock,
) -> None:
    budget = FrameBudget(LARGE)
    slow, slow_peer = pair(budget)
    wire = encode_frame(bytes(LARGE))
    piece = LARGE // 9
    await slow_peer.write(wire[:piece])
    async with trio.open_nursery() as nursery:
        reads = Reads(nursery)
        reads.begin("slow", slow)
        await trio.sleep(0.0)
        other, other_peer = pair(budget)
        await other_peer.write(wire)
        reads.begin("other", other)
        for start in range(piece, len(wire), piece):
            await trio.sleep(1.0)
            await slow_peer.write(wire[start : start + piece])
    assert reads.ends["slow"][0]
    assert reads.ends["other"][0]


async def test_a_frame_that_stands_still_is_waited_for_as_usual_where_nobody_waits_for_its_room(
    autojump_clock: MockClock,
) -> None:
    still, peer = pair(FrameBudget(LARGE))
    await peer.write(encode_frame(bytes(LARGE))[:-1])
    assert await read_at(still) == (False, 10.0)


async def test_large_requests_of_many_peers_have_a_bound_together_and_who_stalls_does_not_keep_others_out(
    autojump_clock: MockClock,
) -> None:
    async def answer(_peer: PeerId, _request: Request) -> Reply:
        await trio.lowlevel.checkpoint()
        return Reply()

    request = PutValue((Record(Key(b"/x/k"), bytes(LARGE)),))
    message = encode_frame(encode_request(request))
    server = RpcServer(answer, ServerLimits(frame_bytes=3 * len(message)))
    unread: list[MemoryStream] = []
    async with trio.open_nursery() as nursery:
        for number in range(6):
            here, there = stream_pair(PeerId(b"\x00\x01%d" % number), SERVER, window_bytes=2 * LARGE)
            nursery.start_soon(server.serve_classical, there)
            await here.write(message[:-1])
            unread.append(there)
        await trio.sleep(0.1)
        # Of each that has no room one read, of 64 KiB, was made to see how large the frame is.
        assert sum(there.unread_bytes > 0 for there in unread) == 3
        here, there = stream_pair(CLIENT, SERVER, window_bytes=2 * LARGE)
        nursery.start_soon(server.serve_classical, there)
        frames = FrameStream(here, budget=FrameBudget(0))
        await frames.write_frame(message[3:])
        body = await frames.read_frame(idle_timeout_s=math.inf)
        assert body is not None
        decode_reply(request, body)
        assert trio.current_time() < 10.0
        nursery.cancel_scope.cancel()
    assert not server.offenders.offences


@pytest.mark.parametrize("kind", ["classical", "pipelined"])
async def test_of_large_requests_and_answers_that_are_over_nothing_is_kept_while_their_streams_idle(kind: str) -> None:
    may_answer = trio.Event()

    async def answer(_peer: PeerId, request: Request) -> Reply:
        await may_answer.wait()
        return Reply() if isinstance(request, PutValue) else Reply(record=Record(Key(b"/x/k"), bytes(LARGE)))

    server = RpcServer(answer, ServerLimits(calls_per_peer=1))
    put, ping = encode_request(PutValue((Record(Key(b"/x/k"), bytes(LARGE)),))), encode_request(Ping())
    streams: list[FrameStream] = []
    async with trio.open_nursery() as nursery:
        for _ in range(8):
            here, there = stream_pair(CLIENT, SERVER, window_bytes=2 * LARGE)
            nursery.start_soon(server.serve_classical if kind == "classical" else server.serve_pipelined, there)
            streams.append(FrameStream(here, budget=FrameBudget(2 * LARGE)))
        tracemalloc.start()
        try:
            for frames in streams:
                await frames.write_frame(ping if kind == "classical" else encode_call(0, put))
            await wait_all_tasks_blocked()  # one is being answered, and others wait for its place
            may_answer.set()
            for frames in streams:
                body = await frames.read_frame(idle_timeout_s=math.inf)
                assert body is not None
                frames.done_with(body)
                del body
            await wait_all_tasks_blocked()
            kept_bytes, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert kept_bytes < LARGE
        nursery.cancel_scope.cancel()
