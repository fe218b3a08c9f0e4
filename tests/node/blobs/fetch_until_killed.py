"""Fetches a blob from a node to a file, and kills itself when so many leaves of it are written.

Arguments: the node's address, the CID, the file, and after how many leaves; 0 for never.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import trio

from prime_dht import DhtConfig, Mode, NodeConfig, open_node
from prime_dht.node.blobs.progress import BlobProgress


async def fetch(address: str, cid: str, path: Path, kill_after: int) -> None:
    def note(progress: BlobProgress) -> None:
        if kill_after and progress.done_bytes >= kill_after << 20:
            os.kill(os.getpid(), signal.SIGKILL)

    config = NodeConfig(listen=(), peers=(address,), dht=DhtConfig(mode=Mode.CLIENT))
    async with open_node(config) as dht:
        await dht.bootstrap()
        await dht.blobs.fetch(cid, to=path, progress=note)


if __name__ == "__main__":
    trio.run(fetch, sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
