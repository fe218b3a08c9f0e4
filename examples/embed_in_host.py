"""A DHT on a py-libp2p host that has a protocol of its own, here an echo.

python examples/embed_in_host.py                the first: prints its address and serves until Ctrl-C
python examples/embed_in_host.py ADDRESS        another: asks the first for an echo, and shares a value with it

A host of py-libp2p's own making lacks some guards that `prime_dht.open_node` gives its own; the log says which.
"""

import sys

import trio
from libp2p import new_host
from libp2p.abc import INetStream
from libp2p.custom_types import TProtocol
from libp2p.peer.peerinfo import info_from_p2p_addr
from multiaddr import Multiaddr

from prime_dht import PrimeDHT

ECHO = TProtocol("/echo/1.0.0")


async def echo(stream: INetStream) -> None:
    await stream.write(await stream.read(1024))
    await stream.close()


async def main(*peers: str) -> None:
    listen = [Multiaddr("/ip4/127.0.0.1/tcp/0")]
    host = new_host(listen_addrs=listen)
    host.set_stream_handler(ECHO, echo)
    async with host.run(listen), PrimeDHT(host, bootstrap_peers=peers) as dht:
        if not peers:
            print(*dht.addresses(), flush=True)
            await trio.sleep_forever()
        await dht.bootstrap()
        stream = await host.new_stream(info_from_p2p_addr(Multiaddr(peers[0])).peer_id, [ECHO])
        await stream.write(b"echo, echo")
        print((await stream.read(1024)).decode())
        receipt = await dht.put("shared", b"known to both")
        found = await dht.get("shared", latest=True)
        assert found is not None
        print(f"{found.value.decode()}, stored by {len(receipt.stored_by)}")


if __name__ == "__main__":
    try:
        trio.run(main, *sys.argv[1:])
    except* KeyboardInterrupt:
        pass
