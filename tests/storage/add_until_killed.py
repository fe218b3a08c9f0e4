"""Adds blocks to the store named on the command line until it is killed, and prints the digests of those added."""

from __future__ import annotations

import os
import sys
from itertools import count
from pathlib import Path

import trio

from prime_dht.blobs.cid import Cid
from prime_dht.storage.blocks import BlockStore, Claim

BLOCK_BYTES = 64 << 10


async def add_until_killed(path: Path) -> None:
    async with await BlockStore.open(path, max_bytes=1 << 40) as store:
        root = Cid.of_raw(b"root")
        await store.claim(Claim(root=root), size_bytes=0)
        for number in count():
            name = b"%d %d " % (os.getpid(), number)
            data = name * (BLOCK_BYTES // len(name))
            cid = Cid.of_raw(data)
            await store.add(root, [(cid, data)])
            os.write(sys.stdout.fileno(), f"{cid}\n".encode())  # in one write, which SIGKILL cannot cut in two


if __name__ == "__main__":
    trio.run(add_until_killed, Path(sys.argv[1]))
