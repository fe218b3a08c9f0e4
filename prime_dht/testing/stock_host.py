"""A host of unmodified py-libp2p, to stand for other implementations of libp2p."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from libp2p import new_host
from libp2p.abc import IHost
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.network.config import ConnectionConfig
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport
from multiaddr import Multiaddr

ANY_PORT = Multiaddr("/ip4/127.0.0.1/tcp/0")


@asynccontextmanager
async def stock_host() -> AsyncIterator[IHost]:
    """Runs within the block, listening on loopback: TCP, Noise and Yamux, all py-libp2p's own."""
    keys = create_new_key_pair()
    host = new_host(
        key_pair=keys,
        listen_addrs=[ANY_PORT],
        sec_opt={NOISE: Transport(keys, noise_privkey=create_noise_key_pair().private_key)},
        connection_config=ConnectionConfig(low_watermark=0, min_connections=0),
        disable_identify_address_discovery=True,
    )
    async with host.run(listen_addrs=[ANY_PORT]):
        try:
            yield host
        finally:
            # py-libp2p's own muxer leaves its socket open when it is cancelled.
            with trio.move_on_after(1) as scope:
                scope.shield = True
                for peer in list(host.get_connected_peers()):
                    await host.disconnect(peer)
