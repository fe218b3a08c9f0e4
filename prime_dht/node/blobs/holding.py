"""Asking a peer which blobs it holds: keeps whole, so that a loss of power takes none of their blocks."""

from __future__ import annotations

import logging
from collections.abc import Collection

import trio

from prime_dht.blobs.cid import Cid
from prime_dht.errors import QueryError, RemoteProtocolError
from prime_dht.ids import PeerId, short
from prime_dht.net.block_streams import HasBlock
from prime_dht.net.network import Network

TIMEOUT_S = 10.0
"""For a stream, and then for all answers."""

logger = logging.getLogger(__name__)


async def held_by(network: Network, peer: PeerId, roots: Collection[Cid]) -> set[Cid]:
    """Those of some blobs that a peer says it holds; none if it does not answer. At most 1,024 can be asked for."""
    held: set[Cid] = set()
    try:
        async with network.ask_blocks(peer, timeout_s=TIMEOUT_S) as stream:
            await stream.ask(list(roots), presence_only=True)
            with trio.fail_after(TIMEOUT_S):
                for _ in roots:
                    outcome = await stream.receive()
                    if isinstance(outcome, HasBlock):
                        held.add(outcome.cid)
    except (QueryError, RemoteProtocolError, trio.TooSlowError) as error:
        logger.debug("peer %s does not say what it holds: %s", short(peer), error)
    return held
