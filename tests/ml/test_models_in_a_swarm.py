"""What of a model goes over the network, counted: to replicas, from them, and when a publisher dies in the middle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import trio
from trio.testing import MockClock

from prime_dht import BlobProgress, DhtConfig, PrimeDHT
from prime_dht.errors import QueryError, ValidationError
from prime_dht.ml.models.listing import versions_of
from prime_dht.ml.models.outgoing import Outgoing
from prime_dht.ml.models.pushing import push
from prime_dht.ml.models.version import ModelVersion, description_key, weights_key
from prime_dht.ml.tensors import Array
from prime_dht.ml.weights import from_safetensors, to_safetensors
from prime_dht.node.blobs.progress import Stage
from prime_dht.node.core import Node
from prime_dht.testing.swarm import open_swarm

OnProgress = Callable[[BlobProgress], None] | None

LAYER_BYTES = 64 << 10


def layers(seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {f"layer{number}": rng.standard_normal((64, 256)).astype(np.float32) for number in range(10)}


async def pushed(
    node: Node,
    weights: dict[str, Array],
    folder: Path,
    *,
    taken: dict[str, int] | None = None,
    progress: OnProgress = None,
) -> ModelVersion:
    outgoing = Outgoing.of(weights, folder)
    try:
        return await push(
            cast(PrimeDHT, node),
            "m",
            outgoing,
            taken={} if taken is None else taken,
            metadata={},
            architecture="",
            ttl=None,
            progress=progress,
        )
    finally:
        outgoing.close()


async def listed(node: Node) -> list[ModelVersion]:
    return await versions_of(cast(PrimeDHT, node), "m")


async def test_of_a_version_that_differs_in_one_tensor_of_ten_only_that_goes_to_the_replicas(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_swarm(seed=1, size=3) as swarm:
        client = await swarm.join_client()
        first = await pushed(client, layers(), tmp_path)
        await trio.sleep(30)  # until the third replica, for which a push does not wait, has it as well
        assert swarm.world.blocks_sent.total() == 3 * (1 + 1 + 10)  # root, header, tensors
        root_bytes = swarm.world.block_bytes_sent.total() // 3 - first.size_bytes
        swarm.world.blocks_sent.clear()
        swarm.world.block_bytes_sent.clear()
        await pushed(client, layers() | {"layer3": layers(1)["layer3"]}, tmp_path)
        await trio.sleep(30)
        assert swarm.world.blocks_sent.total() == 3 * (1 + 1)
        assert swarm.world.block_bytes_sent.total() == 3 * (root_bytes + LAYER_BYTES)


async def test_tensors_that_share_memory_are_sent_once(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with open_swarm(seed=1, size=3) as swarm:
        client = await swarm.join_client()
        shared = layers()["layer0"]
        await pushed(client, {"embed": shared, "head": shared, "more": shared}, tmp_path)
        await trio.sleep(30)
        assert swarm.world.blocks_sent.total() == 3 * (1 + 1 + 1)


async def test_what_is_listed_can_be_pulled_whenever_the_publisher_goes(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_swarm(seed=1, size=4) as swarm:
        client = await swarm.join_client()
        first = await pushed(client, layers(), tmp_path)
        with trio.CancelScope() as scope:

            def go(told: BlobProgress) -> None:
                if told.stage is Stage.SPREADING:
                    scope.cancel()

            await pushed(client, layers(1), tmp_path, progress=go)
        assert scope.cancelled_caught
        await swarm.stop(client)
        await trio.sleep(30)
        reader = swarm.nodes[0]
        assert await listed(reader) == [first]
        found = await reader.get(weights_key("m"), subkey=first.subkey)
        assert found is not None
        assert from_safetensors(found.value).keys() == layers().keys()


async def test_a_push_takes_the_place_of_one_that_was_broken_off_so_that_replicas_let_go_of_it(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_swarm(seed=1, size=3) as swarm:
        client = await swarm.join_client()
        taken: dict[str, int] = {}
        with trio.CancelScope() as scope:

            def go(told: BlobProgress) -> None:
                if told.stage is Stage.SPREADING:
                    scope.cancel()

            await pushed(client, layers(1), tmp_path, taken=taken, progress=go)
        assert scope.cancelled_caught
        version = await pushed(client, layers(), tmp_path, taken=taken)
        assert (version.version, taken) == (1, {"m": 1})
        found = await swarm.nodes[0].get_all(weights_key("m"))
        assert [one.blob.cid for one in found if one.blob] == [bytes(version.cid)]


async def test_what_is_said_of_weights_ends_with_them_however_long_they_took(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_swarm(seed=1, size=3) as swarm:
        client = await swarm.join_client()
        version = await pushed(client, layers(), tmp_path)
        weights, description = [
            await client.get(key, subkey=version.subkey, fetch=False)
            for key in (weights_key("m"), description_key("m"))
        ]
        assert weights is not None
        assert description is not None
        assert description.created_at_us > weights.created_at_us
        assert description.expires_at_us == weights.expires_at_us


@pytest.mark.parametrize("count", [1, 10])  # in an entry, and as a blob
async def test_a_file_that_is_written_to_meanwhile_is_no_version(
    count: int, autojump_clock: MockClock, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(to_safetensors({f"layer{number}": np.zeros(2000) for number in range(count)}))
    outgoing = Outgoing.of(path, tmp_path)
    with path.open("ab") as file:
        file.write(b"more")
    async with open_swarm(seed=1, size=3) as swarm:
        client = await swarm.join_client()
        with pytest.raises(ValidationError, match="the weights of model 'm', version 1: the file was written to"):
            await push(cast(PrimeDHT, client), "m", outgoing, taken={}, metadata={}, architecture="", ttl=None)
        assert await listed(client) == []
    outgoing.close()


async def test_weights_that_no_replica_can_get_are_not_listed(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with open_swarm(seed=1, size=3, config=DhtConfig(blob_wait_s=1)) as swarm:
        client = await swarm.join_client()
        swarm.world.block_lies[client.peer_id] = lambda *_: None
        with pytest.raises(QueryError, match=r"the weights of model 'm', version 1: not acknowledged: .* Push again"):
            await pushed(client, layers(), tmp_path)
        assert await listed(swarm.nodes[0]) == []
        del swarm.world.block_lies[client.peer_id]
        assert (await pushed(client, layers(), tmp_path)).version == 1
