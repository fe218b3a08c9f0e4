"""What callers may write, made into what the parts of a node take; a ValidationError says what is wrong with it."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TypeVar

from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from multiaddr import Multiaddr

from prime_dht.errors import ValidationError
from prime_dht.ids import Key, PeerId, is_peer_id, peer_from_text, wire_key
from prime_dht.net.addresses import address_text
from prime_dht.wire.kad import MAX_BATCH

Name = TypeVar("Name", bound=bytes)

PeerLike = PeerId | bytes | str | ID
"""A peer id as multihash bytes, base58 text, or py-libp2p's."""


def bytes_of(what: str, given: object) -> bytes:
    """Bytes, and nothing that ``bytes()`` would make up from something else.

    Raises:
        ValidationError: it is not bytes.
    """
    if not isinstance(given, bytes | bytearray | memoryview):
        raise ValidationError(f"{what} is bytes, not {type(given).__name__}")
    return bytes(given)


def entry_key(key: bytes | str, max_bytes: int) -> Key:
    """An application's key in its wire form.

    Raises:
        ValidationError: it is empty, longer than ``max_bytes``, or neither bytes nor text.
    """
    try:
        wire = wire_key(key if isinstance(key, str) else bytes_of("a key", key))
    except UnicodeEncodeError as error:
        raise ValidationError(f"not a key: {error}") from error
    if len(wire) > max_bytes:
        raise ValidationError(f"a key of {len(wire):,} bytes exceeds the limit of {max_bytes:,}")
    return wire


def peer_id_of(peer: PeerLike) -> PeerId:
    """A peer id.

    Raises:
        ValidationError: it is none.
    """
    if isinstance(peer, ID):
        return PeerId(peer.to_bytes())
    if isinstance(peer, str):
        return peer_from_text(peer)
    raw = bytes_of("a peer id", peer)
    if not is_peer_id(raw):
        raise ValidationError("not the bytes of a peer id")
    return PeerId(raw)


def publishers_of(publisher: PeerLike | None, trusted: Collection[PeerLike] | None) -> frozenset[PeerId] | None:
    """Whose entries are wanted; ``None`` is everybody's.

    Raises:
        ValidationError: both are given, or one is no peer id, or there are too many for a request.
    """
    if publisher is not None and trusted is not None:
        raise ValidationError("give publisher or trusted, not both")
    if publisher is not None:
        return frozenset((peer_id_of(publisher),))
    return selected("publishers", None if trusted is None else map(peer_id_of, trusted))


def selected(what: str, names: Iterable[Name] | None) -> frozenset[Name] | None:
    """Which publishers or subkeys are wanted; ``None`` is all.

    Raises:
        ValidationError: they are too many for a request.
    """
    if names is None:
        return None
    wanted = frozenset(names)
    if len(wanted) > MAX_BATCH:
        raise ValidationError(
            f"one request can name {MAX_BATCH} {what}, not {len(wanted):,}; ask several times, or for all"
        )
    return wanted


def peer_info(peer: PeerId, addresses: Iterable[bytes]) -> PeerInfo:
    """A peer as py-libp2p has it."""
    return PeerInfo(ID(peer), [Multiaddr(address_text(address)) for address in addresses])
