"""What two checkpoints that differ in little share, with each chunker: what a node fetches that has the first of them.

A checkpoint is a safetensors file of ten tensors of 5 MB, none a whole number of blocks. The second differs from the
first in one tensor; or in that and a header that has grown; or by a tensor more in the middle. One node adds them, and
another, which has the first, pins the second. The least that could be moved is one tensor. Bytes are counted as they
come, nodes of the DAG included; none of them depends on the machine.
"""

from __future__ import annotations

from collections import deque
from random import Random

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from prime_dht import DhtConfig, Mode, NodeConfig, PrimeDHT, open_node
from prime_dht.blobs.chunking import FixedChunker, TensorChunker
from prime_dht.node.blobs.progress import BlobProgress

from .swarm import LOOPBACK
from .tables import Row, Table

TENSORS = 10
TENSOR_BYTES = 5_000_004
CHANGED = "layer.4.weight"
INSERTED = "layer.4.zweight"
LONG_NOTE = "x" * 10_000


async def measure_checkpoints(*, quick: bool) -> Table:
    """The table of bytes that are fetched of a second checkpoint."""
    tensor_bytes = TENSOR_BYTES // 10 if quick else TENSOR_BYTES
    rows = [row for name in (TensorChunker.name, FixedChunker.name) for row in await _rows(name, tensor_bytes)]
    title = f"A checkpoint of {TENSORS} tensors of {tensor_bytes / 1e6:g} MB, fetched by a node that has an older one"
    return Table(name="blobs_checkpoints", title=title, rows=rows)


async def _rows(chunker: str, tensor_bytes: int) -> list[Row]:
    first = {f"layer.{index}.weight": _tensor(index, tensor_bytes) for index in range(TENSORS)}
    changed = {**first, CHANGED: _tensor(TENSORS, tensor_bytes)}
    inserted = {**first, INSERTED: _tensor(TENSORS, tensor_bytes)}
    second = {
        "one tensor changed": save(changed),
        "one tensor changed, header grown": save(changed, {"note": LONG_NOTE}),
        "one tensor inserted": save(inserted),
    }
    return [await _row(chunker, what, save(first), content, tensor_bytes) for what, content in second.items()]


async def _row(chunker: str, what: str, first: bytes, second: bytes, tensor_bytes: int) -> Row:
    async with (
        open_node(NodeConfig(listen=(LOOPBACK,))) as adder,
        open_node(NodeConfig(listen=(), peers=tuple(adder.addresses()), dht=DhtConfig(mode=Mode.CLIENT))) as fetcher,
    ):
        await fetcher.bootstrap()
        await _moved(adder, fetcher, first, chunker)
        moved = await _moved(adder, fetcher, second, chunker)
    return {
        "second": what,
        "chunker": chunker,
        "moved_blocks": moved.fetched_blocks,
        "moved_MB": moved.fetched_bytes / 1e6,
        "of_least": moved.fetched_bytes / tensor_bytes,
        "of_all": moved.fetched_bytes / len(second),
    }


async def _moved(adder: PrimeDHT, fetcher: PrimeDHT, content: bytes, chunker: str) -> BlobProgress:
    """What was fetched of some content when it had come."""
    receipt = await adder.blobs.add(content, chunker=chunker)
    assert receipt.blob is not None
    progress: deque[BlobProgress] = deque(maxlen=1)
    await fetcher.blobs.pin(receipt.blob.cid, progress=progress.append)
    assert progress[0].done_bytes == len(content)
    return progress[0]


def _tensor(seed: int, size_bytes: int) -> NDArray[np.float32]:
    return np.frombuffer(Random(seed).randbytes(size_bytes), dtype=np.float32)
