"""What a command does with a blob on its way: what it shows, how long it waits, where it writes."""

from __future__ import annotations

import os
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from prime_dht.cli.client import Session
from prime_dht.cli.transfer import going_on_later, opened_source, place_for, transfer, write_blob, write_to
from prime_dht.config import NodeConfig
from prime_dht.errors import BlobError, ConfigError, PrimeDHTError, QueryError, StorageError
from prime_dht.node.blobs.progress import BlobProgress, Stage
from prime_dht.node.open import open_node
from prime_dht.storage.blocks_status import NoRoomError
from prime_dht.testing.processes import PRIME_DHT, TIMEOUT_S, prime_dht, running, running_node

MB = 1_000_000

OpenTerminal = Callable[[], AbstractContextManager[Callable[[], list[str]]]]


def session(*, timeout_s: float = 10.0) -> Session:
    return Session(config=NodeConfig(), timeout_s=timeout_s, as_json=False, verbose=0)


def fetching(done_bytes: int, fetched_bytes: int) -> BlobProgress:
    return BlobProgress(
        stage=Stage.FETCHING, cid=None, size_bytes=100 * MB, done_bytes=done_bytes, fetched_bytes=fetched_bytes
    )


async def take(*steps: BlobProgress) -> None:
    """A transfer, of which each step takes a second."""
    asking = session()
    with trio.CancelScope() as waiting:
        asking.patience.begin(waiting)
        async with transfer(asking, is_quiet=False) as progress:
            for step in steps:
                progress(step)
                await trio.sleep(1)


def staying(drawings: list[str]) -> list[str]:
    """The lines that stay."""
    return [drawing.removesuffix("\x1b[K\n") for drawing in drawings if drawing.endswith("\n")]


async def test_what_was_there_before_is_done_but_not_fetched(
    open_terminal: OpenTerminal, autojump_clock: MockClock
) -> None:
    with open_terminal() as shown:
        await take(fetching(60 * MB, 0), fetching(80 * MB, 20 * MB), fetching(100 * MB, 40 * MB))
        assert staying(shown()) == ["fetching  100%  100.0 MB of 100.0 MB  40.0 MB in 3 s, 13.3 MB/s"]


async def test_a_put_first_stores_and_then_spreads(open_terminal: OpenTerminal, autojump_clock: MockClock) -> None:
    storing = BlobProgress(stage=Stage.STORING, cid=None, size_bytes=8 * MB, done_bytes=8 * MB)
    spreading = BlobProgress(stage=Stage.SPREADING, cid=None, size_bytes=8 * MB, done_bytes=4 * MB)
    with open_terminal() as shown:
        await take(storing, spreading)
        assert staying(shown()) == [
            "storing  100%  8.0 MB of 8.0 MB  8.0 MB in 1 s, 8.0 MB/s",
            "spreading  50%  4.0 MB of 8.0 MB  4.0 MB in 1 s, 4.0 MB/s",
        ]


async def test_the_deadline_moves_on_with_what_moves_and_with_nothing_else(autojump_clock: MockClock) -> None:
    asking = session(timeout_s=10)
    with trio.move_on_after(10) as waiting:
        asking.patience.begin(waiting)
        async with transfer(asking, is_quiet=True) as progress:
            began_s = trio.current_time()
            progress(fetching(0, 0))
            await trio.sleep(8)
            progress(fetching(MB, MB))
            await trio.sleep(8)
            progress(fetching(MB, MB))  # again the same
            await trio.sleep(8)
    assert waiting.cancelled_caught
    assert trio.current_time() - began_s == pytest.approx(18)
    assert asking.patience.has_moved


def test_a_file_is_where_its_links_lead_and_a_device_is_none(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "there")
    assert place_for(link) == tmp_path / "there"
    assert place_for(tmp_path / "new") == tmp_path / "new"
    assert place_for(Path(os.devnull)) is None


def test_a_place_where_no_file_can_be_is_refused_before_anything_is_fetched(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Is a directory"):
        place_for(tmp_path)
    with pytest.raises(ConfigError, match="its directory does not exist"):
        place_for(tmp_path / "no" / "such")
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(ConfigError, match="it cannot be reached"):
        place_for(loop)


async def test_a_blob_of_another_size_than_its_entry_says_is_not_written(tmp_path: Path) -> None:
    async with open_node(NodeConfig(listen=("/ip4/127.0.0.1/tcp/0",))) as dht:
        receipt = await dht.blobs.add(b"x" * MB)
        assert receipt.blob is not None
        await dht.put("k", replace(receipt.blob, size=10), wait_s=0)
        found = await dht.get("k", fetch=False)
        assert found is not None
        out = tmp_path / "out"
        with pytest.raises(BlobError, match="bytes where the DAG says 10"):
            await write_blob(dht, found, out, lambda _: None)
        assert await trio.Path(out).read_bytes() == b""


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[Path]:
    """A pipe with a name. Lest a test hangs, somebody comes to its other end if nobody else does, and leaves."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    watchdog = threading.Timer(TIMEOUT_S, lambda: os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK)))
    watchdog.start()
    yield path
    watchdog.cancel()


@pytest.mark.parametrize("use", [partial(opened_source, most_bytes=10), partial(write_to, value=b"data")])
async def test_whoever_waits_for_the_other_end_of_a_pipe_can_give_up(
    use: Callable[[Path], Awaitable[object]], pipe: Path
) -> None:
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def wait() -> None:
                await use(pipe)
                pytest.fail("there is nobody at the other end")

            await wait_all_tasks_blocked()
            scope.cancel()
    assert scope.cancelled_caught


async def test_what_goes_through_a_pipe_waits_for_its_other_end(pipe: Path) -> None:
    with trio.fail_after(TIMEOUT_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write_to, pipe, b"data")
            await wait_all_tasks_blocked()
            assert await opened_source(pipe, 10) == b"data"


def test_a_terminal_gets_a_little_text_and_nothing_else() -> None:
    contents = {b"a line": (0, ""), b"\x1b[2J": (2, "not only text"), b"x" * 100_000: (2, "more than 65,536 bytes")}
    with running_node() as (_, address):
        for data, (status, says) in contents.items():
            cid = prime_dht("add", "-", "--peer", address, stdin=data).out.decode().strip()
            ours, theirs = os.openpty()
            with open(ours, "rb", buffering=0) as terminal, open(theirs, "wb") as stdout:
                with running(*PRIME_DHT, "cat", cid, "--peer", address, stdout=stdout) as command:
                    ended = command.end()
                assert ended.status == status
                assert says in ended.err
                stdout.write(b"the end\n")
                stdout.flush()
                written = b""
                while not written.endswith(b"the end\r\n"):
                    written += terminal.read(1000)
                assert written == (b"a line\r\nthe end\r\n" if status == 0 else b"the end\r\n")


@pytest.mark.parametrize(
    "error", [QueryError("why"), StorageError("why"), NoRoomError(9, 5, 7)], ids=lambda error: type(error).__name__
)
def test_what_a_transfer_that_fails_keeps_is_said_once_something_has_moved(error: PrimeDHTError) -> None:
    for has_moved, says in ((False, ""), (True, "; it is kept: the same command goes on from there")):
        asking = session()
        asking.patience.has_moved = has_moved
        with pytest.raises((QueryError, StorageError)) as raised, going_on_later(asking, "it is kept", is_here=True):
            raise error
        assert (str(raised.value), isinstance(error, raised.type)) == (f"{error}{says}", True)
    with pytest.raises(type(error)) as raised, going_on_later(asking, "nodes keep it"):
        raise error
    assert raised.value is error
