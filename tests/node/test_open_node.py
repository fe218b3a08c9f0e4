"""A node of its own: what it keeps, and what it cannot use."""

from __future__ import annotations

import socket
import stat
from pathlib import Path

import pytest
import trio

from prime_dht import ConfigError, DhtConfig, NodeConfig, StorageError, ValidationError, open_node
from prime_dht.blobs.cid import Cid
from prime_dht.net.identity import IDENTITY_FILE
from prime_dht.node.open import BLOCKS_DIRECTORY, STORE_FILE
from prime_dht.storage.blocks import BlockStore

LISTEN = ("/ip4/127.0.0.1/tcp/0",)


def config(
    data_dir: Path | None = None, *, listen: tuple[str, ...] = LISTEN, peers: list[str] | None = None
) -> NodeConfig:
    return NodeConfig(listen=listen, data_dir=data_dir, peers=tuple(peers or ()))


async def test_the_data_directory_is_its_owners_alone(tmp_path: Path) -> None:
    data_dir = tmp_path / "a" / "data"
    async with open_node(config(data_dir)):
        assert stat.S_IMODE(data_dir.stat().st_mode) == 0o700
        assert stat.S_IMODE((data_dir / IDENTITY_FILE).stat().st_mode) == 0o600


async def test_identity_entries_and_own_slots_outlive_a_restart(tmp_path: Path) -> None:
    async with open_node(config(tmp_path / "data")) as node:
        peer_id = node.peer_id
        receipt = await node.put("k", b"value", metadata={"a": "b"})
    async with open_node(config(tmp_path / "data")) as node:
        assert node.peer_id == peer_id
        found = await node.get("k")
        assert found is not None
        assert (found.value, found.op_id, dict(found.metadata)) == (b"value", receipt.op_id, {"a": "b"})
        assert (await node.put("k", b"newer")).created_at_us > receipt.created_at_us


async def test_peers_outlive_a_restart(tmp_path: Path) -> None:
    async with open_node(config()) as other:
        async with open_node(config(tmp_path / "data", peers=other.addresses())) as node:
            assert await node.bootstrap() == 1
        async with open_node(config(tmp_path / "data")) as node:
            assert await node.bootstrap() == 1


async def test_what_nothing_claims_is_collected_at_the_next_start(tmp_path: Path) -> None:
    directory = tmp_path / BLOCKS_DIRECTORY
    async with await BlockStore.open(directory, max_bytes=1000) as blocks, blocks.draft() as draft:
        await blocks.add(draft, [(Cid.of_raw(b"left"), b"left")])
    (left,) = directory.glob(f"*/{Cid.of_raw(b'left').digest.hex()}")
    async with open_node(config(tmp_path)):
        with trio.fail_after(60):
            while left.exists():
                await trio.lowlevel.checkpoint()


async def test_paths_may_be_text(tmp_path: Path) -> None:
    directory, out = str(tmp_path / "data"), str(tmp_path / "out")
    settings = NodeConfig(listen=LISTEN, data_dir=directory, blocks_dir=directory)  # type: ignore[arg-type]
    assert settings.data_dir == settings.blocks_dir == tmp_path / "data"
    async with open_node(settings) as node:
        await node.put("k", b"value")
        await node.get("k", to=out)
        receipt = await node.blobs.add(b"blob", ttl=60.0)
        assert receipt.blob is not None
        await node.blobs.fetch(receipt.blob.cid, to=f"{out}2")
    assert [(tmp_path / name).read_bytes() for name in ("out", "out2")] == [b"value", b"blob"]


@pytest.mark.parametrize("wrong", [5, "", b"data"])
def test_what_is_no_path_is_no_setting(wrong: object) -> None:
    with pytest.raises(ConfigError, match="blocks_dir is a path"):
        NodeConfig(blocks_dir=wrong)  # type: ignore[arg-type]


async def test_arguments_of_the_wrong_type_are_named() -> None:
    async with open_node(config()) as node:
        await node.put("k", b"value")
        for operation, said in (
            (node.put("k", b"", ttl="1h"), "ttl is a number, not str"),  # type: ignore[arg-type]
            (node.put("k", b"", expires_at="now"), "expires_at is a number, not str"),  # type: ignore[arg-type]
            (node.put_many({"k": b""}, ttl="1h"), "ttl is a number, not str"),  # type: ignore[arg-type]
            (node.blobs.add(b"", ttl="1h"), "ttl is a number, not str"),  # type: ignore[arg-type]
            (node.blobs.add(b"", wait_s="1"), "wait_s is a number, not str"),  # type: ignore[arg-type]
            (node.get_many("greeting"), "keys are to be in a list or the like, not str"),
            (node.get("k", trusted=node.peer_id), "trusted peers are to be in a list"),  # type: ignore[arg-type]
            (node.get_all("k", subkeys=b"ab"), "subkeys are to be in a list"),  # type: ignore[arg-type]
            (node.get_all("k", publishers="12D3"), "publishers are to be in a list"),
            (node.get("k", to=5), "to is a path, as text or a pathlib.Path, not int"),  # type: ignore[arg-type]
        ):
            with pytest.raises(ValidationError, match=said):
                await operation


async def test_without_a_data_directory_each_start_is_a_new_node() -> None:
    async with open_node(config()) as one, open_node(config()) as other:
        assert one.peer_id != other.peer_id


async def test_a_second_node_in_the_same_directory_is_refused(tmp_path: Path) -> None:
    async with open_node(config(tmp_path)):
        with pytest.raises(StorageError):
            async with open_node(config(tmp_path)):
                pass


async def test_a_directory_that_is_none_or_an_identity_that_is_none_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="data directory"):
        async with open_node(config(tmp_path / "file")):
            pass
    (tmp_path / "data").mkdir(0o700)
    (tmp_path / "data" / IDENTITY_FILE).touch(0o600)
    with pytest.raises(ConfigError, match="identity file"):
        async with open_node(config(tmp_path / "data")):
            pass


async def test_a_store_that_is_none_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / STORE_FILE).write_bytes(b"not a database" * 1000)
    for _ in range(2):
        with pytest.raises(StorageError):
            async with open_node(config(tmp_path)):
                pass


async def test_a_configuration_of_another_kind_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="config is a NodeConfig, not DhtConfig; a DhtConfig is its dht"):
        async with open_node(DhtConfig()):  # type: ignore[arg-type]
            pass


async def test_a_port_in_use_and_a_peer_that_has_no_id_are_config_errors() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError, match="already in use"):
            async with open_node(config(listen=(f"/ip4/127.0.0.1/tcp/{taken.getsockname()[1]}",))):
                pass
    with pytest.raises(ConfigError, match=r"peers: .* does not end in /p2p/"):
        async with open_node(NodeConfig(listen=LISTEN, peers=("/ip4/127.0.0.1/tcp/1",))):
            pass


async def test_a_node_that_cannot_reach_its_peers_runs_all_the_same() -> None:
    async with open_node(config()) as gone:
        addresses = gone.addresses()
    async with open_node(config(peers=addresses)) as node:
        receipt = await node.put("k", b"value")
        assert receipt.stored_by == (node.peer_id,)
        assert not receipt.acknowledged, "it cannot know who else is a replica"


class OwnError(Exception):
    """An application's."""


@pytest.mark.parametrize("error", [OwnError(), ValueError("of the block")])
async def test_an_exception_in_the_block_leaves_as_itself(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(type(error)) as raised:
        async with open_node(config(tmp_path)):
            raise error
    assert raised.value is error


async def test_a_node_that_is_cancelled_has_closed_its_store(tmp_path: Path) -> None:
    with trio.CancelScope() as scope:
        async with open_node(config(tmp_path)) as node:
            await node.put("k", b"value")
            scope.cancel()
            await trio.lowlevel.checkpoint()
    async with open_node(config(tmp_path)) as node:
        assert await node.get("k") is not None
