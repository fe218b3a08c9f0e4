"""What a Yamux connection tells of its streams and its end, sends at its end, and keeps while it is idle."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from weakref import ref

import pytest
import trio
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import MuxedConnUnavailable
from trio.testing import MockClock, wait_all_tasks_blocked

from prime_dht.net.yamux import FastYamux
from prime_dht.net.yamux.frames import ACK, DATA, FIN, GO_AWAY, NORMAL, RST, SYN, WINDOW_UPDATE, encode
from prime_dht.testing.memory_conn import MemoryConn, memory_conns

PEER = ID(b"\x00\x01\x00")


@pytest.fixture
def against(nursery: trio.Nursery) -> tuple[FastYamux, MemoryConn]:
    """A listening muxer, and the bare end of a peer that sends it what it likes."""
    dialer, listener = memory_conns()
    muxer = FastYamux(listener, PEER)
    nursery.start_soon(muxer.start)
    return muxer, dialer


async def test_a_stream_that_comes_together_with_go_away_is_accepted(against: tuple[FastYamux, MemoryConn]) -> None:
    muxer, peer = against
    peer.send_now(encode(DATA, SYN | FIN, 1, 5) + b"words" + encode(GO_AWAY, 0, 0, NORMAL))
    await wait_all_tasks_blocked()
    assert muxer.is_closed
    assert await (await muxer.accept_stream()).read() == b"words"
    with pytest.raises(MuxedConnUnavailable):
        await muxer.accept_stream()


async def test_streams_are_handed_over_when_all_that_came_with_them_is_handled(
    against: tuple[FastYamux, MemoryConn],
) -> None:
    muxer, peer = against
    handed: list[tuple[int, int]] = []
    peer.send_now(encode(WINDOW_UPDATE, SYN, 1, 0))
    await wait_all_tasks_blocked()
    muxer.tell(lambda stream: handed.append((stream.stream_id, stream.buffered_bytes)), lambda: None)
    assert handed == [(1, 0)], "one that came before"
    gone = encode(WINDOW_UPDATE, SYN, 3, 0) + encode(WINDOW_UPDATE, RST, 3, 0)
    peer.send_now(encode(WINDOW_UPDATE, SYN, 5, 0) + gone + encode(DATA, 0, 5, 5) + b"words")
    await wait_all_tasks_blocked()
    assert handed == [(1, 0), (5, 5)]


async def test_the_end_is_told_once_when_it_comes_and_not_when_all_is_sent(nursery: trio.Nursery) -> None:
    class Stuck(MemoryConn):
        async def flush(self) -> None:
            flushing.set()
            await trio.sleep_forever()

    flushing = trio.Event()
    told: list[object] = []
    peer, listener = MemoryConn(is_initiator=True), Stuck(is_initiator=False)
    peer.other, listener.other = listener, peer
    muxer = FastYamux(listener, PEER)
    muxer.tell(lambda stream: told.append(stream.stream_id), lambda: told.append("the end"))
    nursery.start_soon(muxer.start)
    peer.send_now(encode(DATA, SYN | FIN, 1, 5) + b"words" + encode(GO_AWAY, 0, 0, NORMAL))
    await flushing.wait()
    assert told == [1, "the end"]
    await muxer.close()
    assert told == [1, "the end"]


async def test_who_asks_late_is_told_the_end_at_once(against: tuple[FastYamux, MemoryConn]) -> None:
    muxer, peer = against
    peer.send_now(encode(DATA, SYN | FIN, 1, 5) + b"words" + encode(GO_AWAY, 0, 0, NORMAL))
    await wait_all_tasks_blocked()
    told: list[object] = []
    muxer.tell(lambda stream: told.append(stream.stream_id), lambda: told.append("the end"))
    assert told == [1, "the end"]


async def test_closing_sends_what_waits_before_it_closes_the_connection(nursery: trio.Nursery) -> None:
    class Noted(MemoryConn):
        async def flush(self) -> None:
            steps.append("flush")

        async def close(self) -> None:
            steps.append("close")
            await super().close()

    steps: list[str] = []
    peer, dialer = MemoryConn(is_initiator=False), Noted(is_initiator=True)
    peer.other, dialer.other = dialer, peer
    muxer = FastYamux(dialer, PEER)
    nursery.start_soon(muxer.start)
    await wait_all_tasks_blocked()
    await muxer.close()
    assert steps[:2] == ["flush", "close"]


async def test_what_was_received_is_not_kept_until_more_is(nursery: trio.Nursery) -> None:
    class Chunks(list[bytes]):
        """A list that can be referred to weakly."""

    class KeepsNothing(MemoryConn):
        async def read_some(self) -> list[bytes]:
            chunks = Chunks(await super().read_some())
            received.append(ref(chunks))
            return chunks

    received: list[ref[Chunks]] = []
    peer, listener = MemoryConn(is_initiator=True), KeepsNothing(is_initiator=False)
    peer.other, listener.other = listener, peer
    nursery.start_soon(FastYamux(listener, PEER).start)
    peer.send_now(encode(DATA, SYN, 1, 5) + b"words")
    await wait_all_tasks_blocked()
    assert peer.received() == [(WINDOW_UPDATE, ACK, 1, 0)]
    assert [chunks() for chunks in received] == [None]


async def test_a_task_flushes_what_the_kernel_did_not_take_and_there_is_none_before(nursery: trio.Nursery) -> None:
    class Slow(MemoryConn):
        flushes = 0

        def send_now(self, data: bytes) -> bool:
            super().send_now(data)
            return False

        async def flush(self) -> None:
            Slow.flushes += 1
            await trio.sleep_forever()

    peer, dialer = MemoryConn(is_initiator=False), Slow(is_initiator=True)
    peer.other, dialer.other = dialer, peer
    muxer = FastYamux(dialer, PEER)
    started: list[object] = []

    def start_soon(task: Callable[[], Awaitable[None]]) -> None:
        started.append(task)
        nursery.start_soon(task)

    nursery.start_soon(muxer.run, start_soon)
    await wait_all_tasks_blocked()
    assert Slow.flushes == len(started) == 0
    for _ in range(3):
        await muxer.open_stream()
    await wait_all_tasks_blocked()
    assert Slow.flushes == len(started) == 1


async def test_what_is_not_flushed_at_the_end_is_not_waited_for(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    class Stuck(MemoryConn):
        def send_now(self, data: bytes) -> bool:
            super().send_now(data)
            return False

        async def flush(self) -> None:
            await trio.sleep_forever()

    peer, dialer = MemoryConn(is_initiator=False), Stuck(is_initiator=True)
    peer.other, dialer.other = dialer, peer
    muxer = FastYamux(dialer, PEER)
    async with trio.open_nursery() as running:
        running.start_soon(muxer.start)
        await wait_all_tasks_blocked()
        await muxer.open_stream()
        await wait_all_tasks_blocked()
        nursery.start_soon(peer.close)
    assert muxer.is_closed
