"""Sources of content: what they give, and what is no source."""

from __future__ import annotations

import os
import select
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio
from trio.testing import memory_stream_one_way_pair, wait_all_tasks_blocked

from prime_dht.errors import StorageError, ValidationError
from prime_dht.node.blobs.putting import (
    SLICE_BYTES,
    Source,
    chained,
    chunker_for,
    media_type_of,
    opened,
    read_ahead,
    size_of,
)

CONTENT = bytes(range(256)) * 2000


async def content_of(source: Source) -> bytes:
    async with opened(source) as pieces:
        return b"".join([piece async for piece in pieces])


async def test_bytes_files_and_readers_give_their_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    send, receive = memory_stream_one_way_pair()
    async with trio.open_nursery() as nursery:

        async def write() -> None:
            await send.send_all(CONTENT)
            await send.aclose()

        nursery.start_soon(write)
        assert await content_of(receive) == CONTENT
    assert await content_of(path) == CONTENT
    assert await content_of(CONTENT) == CONTENT
    assert await content_of(b"") == b""


@pytest.mark.parametrize("wrong", ["text", 5, None, [b"bytes"]])
async def test_what_is_no_source_is_refused(wrong: object) -> None:
    with pytest.raises(ValidationError, match="a value is bytes"):
        await content_of(wrong)  # type: ignore[arg-type]


async def test_a_reader_of_anything_but_bytes_is_refused() -> None:
    async def texts() -> AsyncIterator[bytes]:
        await trio.lowlevel.checkpoint()
        yield "text"  # type: ignore[misc]

    with pytest.raises(ValidationError, match="a reader gives bytes, not str"):
        await content_of(texts())


async def test_a_file_that_is_not_there_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=f"{tmp_path}/nothing: No such file"):
        await content_of(tmp_path / "nothing")


async def test_whoever_waits_for_a_pipe_can_give_up(tmp_path: Path) -> None:
    pipe, scope, has_given_up = tmp_path / "pipe", trio.CancelScope(), False
    os.mkfifo(pipe)
    writer = os.open(pipe, os.O_RDWR)
    os.write(writer, b"some")

    async def read() -> None:
        nonlocal has_given_up
        with scope:
            async with opened(pipe) as pieces:
                async for _ in pieces:
                    pass
        has_given_up = True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        while select.select([writer], [], [], 0)[0]:  # noqa: ASYNC110 - a pipe tells nobody that it was read
            await trio.sleep(0.001)
        await wait_all_tasks_blocked()  # it waits for more
        scope.cancel()
        await wait_all_tasks_blocked()
        had_given_up = has_given_up
        os.close(writer)
    assert had_given_up


async def test_however_many_have_given_up_waiting_for_a_pipe_others_are_read(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_bytes(CONTENT)
    with ExitStack() as at_the_end:
        for number in range(int(trio.to_thread.current_default_thread_limiter().total_tokens)):
            pipe = tmp_path / f"pipe {number}"
            os.mkfifo(pipe)
            writer = os.open(pipe, os.O_RDWR)
            at_the_end.callback(os.close, writer)
            os.write(writer, b"some")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(content_of, pipe)
                while select.select([writer], [], [], 0)[0]:  # noqa: ASYNC110 - a pipe tells nobody that it was read
                    await trio.sleep(0.001)
                await wait_all_tasks_blocked()  # it waits for more
                nursery.cancel_scope.cancel()
        with trio.fail_after(60):
            assert await content_of(plain) == CONTENT


async def test_how_much_comes_out_of_a_pipe_nobody_knows(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert await size_of(tmp_path / "pipe") is None
    (tmp_path / "file").write_bytes(b"12345")
    assert await size_of(tmp_path / "file") == 5


@pytest.mark.parametrize("limit", [0, SLICE_BYTES - 1, SLICE_BYTES, len(CONTENT) - 1, len(CONTENT), len(CONTENT) + 1])
async def test_reading_ahead_tells_whether_that_was_all_and_loses_nothing(limit: int) -> None:
    async with opened(CONTENT) as pieces:
        head, is_all = await read_ahead(pieces, limit)
        assert is_all == (len(CONTENT) <= limit)
        assert b"".join([piece async for piece in chained(head, pieces)]) == CONTENT


def test_a_chunker_goes_with_the_name_of_a_file_unless_one_is_asked_for() -> None:
    assert chunker_for(None, Path("a.safetensors")) == "safetensors-1"
    assert chunker_for(None, Path("a.bin")) == "size-1048576"
    assert chunker_for("size-1048576", Path("a.safetensors")) == "size-1048576"
    with pytest.raises(ValidationError, match="there is no chunker 'buzhash'"):
        chunker_for("buzhash", b"")


def test_a_media_type_goes_with_the_name_of_a_file() -> None:
    assert media_type_of(Path("a.json")) == "application/json"
    assert media_type_of(Path("a")) == media_type_of(b"") == ""
