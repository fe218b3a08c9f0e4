"""The blobs that a node keeps: to look at them any time, and to change them while it does not run."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import trio

from prime_dht.config import NodeConfig
from prime_dht.errors import ConfigError
from prime_dht.node.blobs.blobs import BlobStatus
from prime_dht.node.clock import SystemClock
from prime_dht.node.open import BLOCKS_DIRECTORY, STORE_FILE
from prime_dht.storage.blocks import BlockStore
from prime_dht.storage.blocks_survey import survey_blocks


@asynccontextmanager
async def open_blocks(config: NodeConfig) -> AsyncIterator[BlockStore]:
    """The block store of a node that does not run. None is made.

    Raises:
        ConfigError: the configuration says nothing of where it is, or it is not there.
        StorageError: another process has it open, or it cannot be used.
    """
    async with await BlockStore.open(_directory(config), max_bytes=config.max_blocks_bytes) as blocks:
        yield blocks


async def list_blobs(config: NodeConfig) -> list[BlobStatus]:
    """What a node keeps, and for which of its entries, as far as those are in a file. It may run meanwhile.

    Raises:
        ConfigError: the configuration says nothing of where it is, or it is not there.
        StorageError: it cannot be read.
    """
    store = None if config.data_dir is None else config.data_dir / STORE_FILE
    survey = partial(survey_blocks, _directory(config), store, now_us=SystemClock().now_us())
    return [BlobStatus.of(root.status, root.claims, root.entries) for root in await trio.to_thread.run_sync(survey)]


def _directory(config: NodeConfig) -> Path:
    """Of the block store."""
    directory = config.blocks_dir
    if directory is None:
        if config.data_dir is None:
            raise ConfigError("give --data-dir, where the blobs are kept")
        directory = config.data_dir / BLOCKS_DIRECTORY
    if not directory.is_dir():
        raise ConfigError(f"{directory}: there are no blobs")
    return directory
