"""What callers may write, made into what the parts of a node take; a ValidationError says what is wrong with it."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from numbers import Integral
from pathlib import Path
from typing import TypeVar

from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from multiaddr import Multiaddr

from prime_dht.entries.entry import NO_METADATA
from prime_dht.errors import ValidationError
from prime_dht.ids import EMPTY_KEY, Key, PeerId, is_peer_id, peer_from_text, wire_key
from prime_dht.wire.kad import MAX_BATCH

Name = TypeVar("Name")

PeerLike = PeerId | bytes | str | ID
"""A peer id as multihash bytes, base58 text, or py-libp2p's."""

PathLike = str | os.PathLike[str]
"""Where a file is."""


def bytes_of(what: str, given: object, *, or_else: str = "") -> bytes:
    """Bytes, and nothing that ``bytes()`` would make up from something else.

    Args:
        or_else: what else the caller takes, for the message.

    Raises:
        ValidationError: it is not bytes.
    """
    if not isinstance(given, bytes | bytearray | memoryview):
        raise ValidationError(f"{what} is bytes{or_else}, not {type(given).__name__}")
    return bytes(given)


def path_of(what: str, given: PathLike) -> Path:
    """A path.

    Raises:
        ValidationError: it is none, or that of nothing.
    """
    if not isinstance(given, str | os.PathLike):
        raise ValidationError(f"{what} is a path, as text or a pathlib.Path, not {type(given).__name__}")
    if not os.fspath(given):
        raise ValidationError(f"{what} is a path, and not empty")
    return Path(given)


def several(what: str, given: Iterable[Name]) -> Iterable[Name]:
    """What there may be any number of. A single text would be taken for its letters.

    Raises:
        ValidationError: it is a single one, or none at all.
    """
    if isinstance(given, str | bytes | bytearray | memoryview) or not isinstance(given, Iterable):
        raise ValidationError(f"{what} are to be in a list or the like, not {type(given).__name__}")
    return given


def entry_key(key: bytes | str, max_bytes: int) -> Key:
    """An application's key in its wire form.

    Raises:
        ValidationError: it is empty, longer than ``max_bytes``, or neither bytes nor text.
    """
    try:
        wire = wire_key(key if isinstance(key, str) else bytes_of("a key", key, or_else=" or text"))
    except UnicodeEncodeError as error:
        raise ValidationError(f"not a key: {error}") from error
    if wire == EMPTY_KEY:
        raise ValidationError("a key cannot be empty behind /prime/")
    if len(wire) > max_bytes:
        raise ValidationError(f"a key of {len(wire):,} bytes exceeds the limit of {max_bytes:,}")
    return wire


def subkey_of(subkey: bytes, max_bytes: int) -> bytes:
    """A subkey.

    Raises:
        ValidationError: it is longer than ``max_bytes``, or not bytes.
    """
    raw = bytes_of("a subkey", subkey)
    if len(raw) > max_bytes:
        raise ValidationError(f"a subkey of {len(raw):,} bytes exceeds the limit of {max_bytes:,}")
    return raw


def subkeys_of(subkeys: Iterable[bytes] | None, max_bytes: int) -> Iterable[bytes] | None:
    """Subkeys, if they are given.

    Raises:
        ValidationError: they are a single one, or one of them is none.
    """
    return None if subkeys is None else [subkey_of(subkey, max_bytes) for subkey in several("subkeys", subkeys)]


def metadata_of(given: Mapping[str, str] | None) -> Mapping[str, str]:
    """Metadata, if there is any; that names and values are text is seen when they are signed.

    Raises:
        ValidationError: it does not map names to values.
    """
    if given is None:
        return NO_METADATA
    if not isinstance(given, Mapping):
        raise ValidationError(f"metadata maps names to texts, as a dict does; it is not {type(given).__name__}")
    return given or NO_METADATA


def whole_number_of(what: str, given: object) -> int:
    """A whole number, numpy's too.

    Raises:
        ValidationError: it is none.
    """
    if not isinstance(given, Integral):
        raise ValidationError(f"{what} is a whole number, not {type(given).__name__}")
    return int(given)


def pairs_of(
    items: Mapping[str, bytes] | Mapping[bytes, bytes] | Iterable[tuple[bytes | str, bytes]],
) -> Iterator[tuple[bytes | str, bytes]]:
    """Keys with their values.

    Raises:
        ValidationError: they are neither a mapping nor pairs.
    """
    pairs: Iterable[tuple[bytes | str, bytes]] = items.items() if isinstance(items, Mapping) else items
    for pair in several("items", pairs):
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise ValidationError("each of the items is a pair of a key and a value")
        yield pair[0], pair[1]


def peer_id_of(peer: PeerLike) -> PeerId:
    """A peer id.

    Raises:
        ValidationError: it is none.
    """
    if isinstance(peer, ID):
        return PeerId(peer.to_bytes())
    if isinstance(peer, str):
        return peer_from_text(peer)
    raw = bytes_of("a peer id", peer, or_else=" or text")
    if not is_peer_id(raw):
        raise ValidationError("not the bytes of a peer id")
    return PeerId(raw)


def peer_ids_of(what: str, peers: Iterable[PeerLike] | None) -> Iterable[PeerId] | None:
    """Peer ids, if they are given.

    Raises:
        ValidationError: they are a single one, or one of them is none.
    """
    return None if peers is None else map(peer_id_of, several(what, peers))


def publishers_of(publisher: PeerLike | None, trusted: Collection[PeerLike] | None) -> frozenset[PeerId] | None:
    """Whose entries are wanted; ``None`` is everybody's.

    Raises:
        ValidationError: both are given, or one is no peer id, or there are too many for a request.
    """
    if publisher is not None and trusted is not None:
        raise ValidationError("give publisher or trusted, not both")
    if publisher is not None:
        return frozenset((peer_id_of(publisher),))
    return selected("publishers", peer_ids_of("trusted peers", trusted))


def selected(what: str, names: Iterable[Name] | None) -> frozenset[Name] | None:
    """Which publishers or subkeys are wanted; ``None`` is all.

    Raises:
        ValidationError: they are too many for a request.
    """
    if names is None:
        return None
    wanted = frozenset(several(what, names))
    if len(wanted) > MAX_BATCH:
        raise ValidationError(
            f"one request can name {MAX_BATCH} {what}, not {len(wanted):,}; ask several times, or for all"
        )
    return wanted


def peer_info(peer: PeerId, addresses: Iterable[bytes]) -> PeerInfo:
    """A peer as py-libp2p has it; the addresses are binary multiaddrs."""
    return PeerInfo(ID(peer), [Multiaddr(address) for address in addresses])
