"""``make bitswap-interop``: Helia, from npm, fetches blocks from a host of prime_dht by Bitswap."""

from __future__ import annotations

import sys
from pathlib import Path

import trio
from libp2p.abc import INetStream
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID

from prime_dht.blobs.cid import Cid
from prime_dht.ids import PeerId
from prime_dht.net.bitswap import PROTOCOL, BitswapServer
from prime_dht.net.host import HostSettings, open_host
from prime_dht.net.offenders import Offenders
from prime_dht.storage.blocks import BlockStore, Claim

HERE = Path(__file__).parent
NODE = Cid.of_dag_pb(b"\x0a\x02\x08\x01")  # an empty UnixFS directory
BLOCKS = {Cid.of_raw(data): data for data in (b"", b"a small one", bytes(1 << 20), b"\xff" * (1 << 20))}


async def check() -> None:
    """Raises :class:`SystemExit` if Helia does not get every block."""
    settings = HostSettings(key_pair=create_new_key_pair(), listen=("/ip4/127.0.0.1/tcp/0",))
    async with BlockStore.in_memory(max_bytes=4 << 20) as store, open_host(settings) as host:

        async def open_stream(peer: PeerId) -> INetStream:
            return await host.new_stream(ID(peer), [TProtocol(PROTOCOL)])

        await store.claim(Claim(root=NODE), size_bytes=0)
        await store.add(NODE, [(NODE, b"\x0a\x02\x08\x01"), *BLOCKS.items()])
        host.set_stream_handler(TProtocol(PROTOCOL), BitswapServer(store, open_stream, Offenders()).serve)
        cids = [str(cid) for cid in (NODE, *BLOCKS)]
        command = ["node", str(HERE / "fetch_blocks.mjs"), str(host.get_addrs()[0]), *cids]
        with trio.fail_after(120):
            done = await trio.run_process(command, capture_stdout=True, check=False)
    expected = [f"{cid} {size}" for cid, size in zip(cids, (4, *map(len, BLOCKS.values())), strict=True)]
    fetched = done.stdout.decode().splitlines()
    print(*fetched, sep="\n")
    if fetched != expected:
        sys.exit("Helia did not get every block")


if __name__ == "__main__":
    trio.run(check)
