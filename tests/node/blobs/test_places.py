"""Where files may be written: what is no file is left as it is, and links are followed."""

from __future__ import annotations

import os
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from prime_dht.blobs.cid import Cid
from prime_dht.errors import StorageError, ValidationError
from prime_dht.node.blobs.file import FileDestination, place_of, write_small
from prime_dht.node.core import Node
from prime_dht.testing.swarm import open_swarm

VALUE = bytes(range(256)) * 1000


def write(path: Path) -> None:
    write_small(path, b"small")


async def fetch(node: Node, cid: Cid, to: str | Path) -> None:
    await node.blobs.fetch(cid, to=to)


async def get_small(node: Node, _: Cid, to: str | Path) -> None:
    await node.get("small", to=to)


async def get_large(node: Node, _: Cid, to: str | Path) -> None:
    await node.get("large", to=to)


@pytest.mark.parametrize("name", [".", "/", "a\0b", "\ud800"])
@pytest.mark.parametrize("take", [place_of, write])
def test_what_is_no_name_of_a_file_is_refused(take: Callable[[Path], object], name: str) -> None:
    with pytest.raises(ValidationError, match="not the name of a file"):
        take(Path(name))


@pytest.mark.parametrize("take", [place_of, write])
def test_what_is_there_and_no_file_is_left_as_it_is(take: Callable[[Path], object], tmp_path: Path) -> None:
    pipe, link, loop = tmp_path / "pipe", tmp_path / "link", tmp_path / "loop"
    os.mkfifo(pipe)
    link.symlink_to("pipe")
    loop.symlink_to("loop")
    for path in (pipe, link, loop):
        with pytest.raises(StorageError, match=str(path.parent)):
            take(path)
    with pytest.raises(StorageError, match="directory"):
        take(tmp_path / "..")
    assert stat.S_ISFIFO(pipe.lstat().st_mode)
    assert sorted(tmp_path.iterdir()) == [link, loop, pipe]


def test_a_link_is_followed_also_to_what_is_not_there_yet(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    target, link = tmp_path / "elsewhere" / "target", tmp_path / "link"
    link.symlink_to(Path("elsewhere", "target"))
    for value in (b"one", b"other"):
        write_small(link, value)
        assert link.is_symlink()
        assert target.read_bytes() == value
    assert list(target.parent.iterdir()) == [target]


async def test_what_takes_the_place_of_the_file_while_it_is_fetched_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "out"
    root = Cid.of_raw(b"it")
    destination = FileDestination(path, root)
    await destination.open()
    await destination.take(root, b"it")
    destination.walk.give(root, b"it")
    assert destination.walk.next_leaf() is not None
    await destination.held([root])
    os.mkfifo(path)
    with pytest.raises(StorageError, match="no file"):
        await destination.finish()
    await destination.aclose()
    assert path.is_fifo()


@pytest.mark.parametrize("take", [fetch, get_small, get_large])
async def test_a_node_writes_values_of_any_size_where_links_lead_and_nowhere_else(
    take: Callable[[Node, Cid, str | Path], Awaitable[None]], autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_swarm(seed=1, size=2) as swarm:
        writer, reader = swarm.nodes[0], await swarm.join_client()
        await writer.put("small", b"small")
        blob = (await writer.put("large", VALUE)).blob
        assert blob is not None
        cid = Cid.from_bytes(blob.cid)
        os.mkfifo(tmp_path / "pipe")
        swarm.world.blocks_sent.clear()
        for wrong, error in ((".", ValidationError), ("a\0b", ValidationError), (tmp_path / "pipe", StorageError)):
            with pytest.raises(error):
                await take(reader, cid, wrong)
        assert not swarm.world.blocks_sent
        (tmp_path / "link").symlink_to("target")
        await take(reader, cid, tmp_path / "link")
        assert await trio.Path(tmp_path / "link").is_symlink()
        assert await trio.Path(tmp_path / "target").read_bytes() in (b"small", VALUE)
