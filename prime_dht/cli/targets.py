"""The arguments of commands that ask for, or about, a peer or a blob."""

from __future__ import annotations

import os
from dataclasses import dataclass

from prime_dht.blobs.cid import Cid
from prime_dht.cli.options import Parsed
from prime_dht.errors import ValidationError
from prime_dht.ids import PeerId, peer_from_text, wire_key


@dataclass(frozen=True, slots=True)
class Target:
    """A peer, and the full multiaddr by which it was named, if it was."""

    peer: PeerId
    address: str | None = None


def _peer_or_address(text: str) -> Target:
    if not text.startswith("/"):
        return Target(peer_from_text(text))
    from prime_dht.net.address_book import split_peer_address

    return Target(split_peer_address(text)[0], text)


def _key_or_peer(text: str) -> bytes:
    try:
        return peer_from_text(text)
    except ValidationError:  # then it is a key
        return wire_key(os.fsencode(text))


PEER_NAME = Parsed("peer id", bytes, peer_from_text)
"""A peer id in base58."""

PEER_OR_ADDRESS = Parsed("peer", Target, _peer_or_address)
"""A peer id, or a full multiaddr, which ends in ``/p2p/<peer id>``."""

CID = Parsed("cid", Cid, Cid.from_text)
"""The CID of a blob."""

KEY_OR_PEER = Parsed("key", bytes, _key_or_peer)
"""A peer id as its bytes, or else a key in its wire form: both are hashed to a point of the keyspace."""
