"""Share a file of any size: one node adds it, others fetch it by its CID.

    python examples/share_file.py add weights.safetensors
    python examples/share_file.py fetch ADDRESS CID copy.safetensors

The first prints its address and the CID, and hands the file out until Ctrl-C. The second shows how far it is; if it is
interrupted, the same command goes on from there.
"""

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import trio

from prime_dht import DhtConfig, Mode, NodeConfig, PrimeDHTError, open_node
from prime_dht.blobs.cid import Cid
from prime_dht.node.blobs.progress import BlobProgress


async def add(file: Path, listen: str) -> None:
    with TemporaryDirectory() as directory:  # a node with a data directory keeps blocks there
        async with open_node(NodeConfig(listen=(listen,), blocks_dir=Path(directory))) as dht:
            receipt = await dht.blobs.add(file, pin=True)
            assert receipt.blob is not None
            print(dht.addresses()[0], Cid.from_bytes(receipt.blob.cid), flush=True)
            await trio.sleep_forever()


async def fetch(peer: str, cid: str, file: Path) -> None:
    # A client listens nowhere and stores nothing for others.
    async with open_node(NodeConfig(listen=(), peers=(peer,), dht=DhtConfig(mode=Mode.CLIENT))) as dht:
        await dht.bootstrap()
        await dht.blobs.fetch(cid, to=file, progress=show)
    print(file=sys.stderr)


def show(progress: BlobProgress) -> None:
    size = f"{progress.size_bytes:,}" if progress.size_bytes is not None else "?"
    rate = f"{progress.bytes_per_s / 1e6:.1f} MB/s from {progress.providers} providers"
    print(f"\r{progress.done_bytes:,} of {size} bytes, {rate}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_subparsers(dest="what", required=True)
    adding, fetching = what.add_parser("add"), what.add_parser("fetch")
    adding.add_argument("file", type=Path)
    adding.add_argument("--listen", default="/ip4/0.0.0.0/tcp/0", help="where to listen; port 0 is any free port")
    fetching.add_argument("peer")
    fetching.add_argument("cid")
    fetching.add_argument("file", type=Path)
    given = parser.parse_args()
    try:
        if given.what == "add":
            trio.run(add, given.file, given.listen)
        else:
            trio.run(fetch, given.peer, given.cid, given.file)
            print(f"{given.file}: {given.file.stat().st_size:,} bytes")
    except* KeyboardInterrupt:
        pass
    except* PrimeDHTError as failed:
        sys.exit(str(failed.exceptions[0]))
