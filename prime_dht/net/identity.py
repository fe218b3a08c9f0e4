"""The node's identity: an Ed25519 key pair in a file that only its owner can read.

The file holds libp2p's ``PrivateKey`` protobuf, nothing else: what py-libp2p's ``load_identity`` reads. Its
``save_identity`` is not used, because it truncates whatever file is there and a crash in the middle leaves half a key.

Invariants: the file has mode 0600 from its first byte; it is there whole or not at all, also after power loss; a file
that exists is never overwritten, so of two nodes that start at once on one path, both run with the same key.
"""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.keys import KeyPair, KeyType
from libp2p.identity_utils import load_identity
from libp2p.peer.id import ID

from prime_dht.durability import make_directory, sync_path
from prime_dht.errors import ConfigError
from prime_dht.ids import PeerId

IDENTITY_FILE = "identity.key"
"""Where it is in a node's data directory."""


def new_identity() -> KeyPair:
    """A new random Ed25519 key pair."""
    return create_new_key_pair()


def peer_id_of(key_pair: KeyPair) -> PeerId:
    """The peer id of a key pair's public key."""
    return PeerId(ID.from_pubkey(key_pair.public_key).to_bytes())


def load_or_create_identity(path: Path, *, name: str = "identity file") -> KeyPair:
    """Read the identity file, or make it, and its directory with mode 0700, where there is none.

    Args:
        name: what it is to those who read an error.

    Raises:
        ConfigError: the file is empty, corrupt, not an Ed25519 key, readable by others, or cannot be read or written.
    """
    try:
        if not os.path.lexists(path):
            make_directory(path.parent)
            _create(path, new_identity().private_key.serialize())
        return _load(path, name)
    except OSError as error:
        raise ConfigError(f"{name} {path}: {error.strerror}") from error


def _load(path: Path, name: str) -> KeyPair:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ConfigError(f"{name} {path} is not a regular file")
    if status.st_size == 0:
        raise ConfigError(f"{name} {path} is empty")
    try:
        key_pair = load_identity(path)
    except ValueError as error:
        raise ConfigError(f"{name} {path} is corrupt: it holds no libp2p private key") from error
    if key_pair.private_key.get_type() is not KeyType.Ed25519:
        raise ConfigError(f"{name} {path} holds a key that is not Ed25519")
    if status.st_mode & 0o077:  # last, so that nobody is told to close a file that is no identity
        raise ConfigError(f"{name} {path} is open to others: run chmod 600 {path}")
    return key_pair


def _create(path: Path, secret: bytes) -> None:
    """Put a complete, durable file at ``path``, unless one has appeared there in the meantime."""
    # mkstemp opens with mode 0600 and O_EXCL; link, unlike rename, refuses to replace a file.
    descriptor, temporary = tempfile.mkstemp(prefix=".identity-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secret)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)
        except FileExistsError:
            return
    finally:
        os.unlink(temporary)
    sync_path(path.parent)
