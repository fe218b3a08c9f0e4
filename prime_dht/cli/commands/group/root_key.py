"""A group's root key: a file like a node's identity, which only its owner can read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from prime_dht.errors import ConfigError

if TYPE_CHECKING:
    from libp2p.crypto.keys import KeyPair


NAME = "root key"
"""What the file is called in errors."""


def create_root_key(path: Path) -> KeyPair:
    """Make a root key where there is no file yet.

    Raises:
        ConfigError: there is a file, or it cannot be written.
    """
    from prime_dht.net.identity import load_or_create_identity

    if os.path.lexists(path):
        raise ConfigError(f"{path}: it exists already, and is not replaced: a lost root key cannot be made again")
    return load_or_create_identity(path, name=NAME)


def load_root_key(path: Path) -> KeyPair:
    """Read a root key.

    Raises:
        ConfigError: there is none, or it cannot be used.
    """
    from prime_dht.net.identity import load_or_create_identity

    if not os.path.lexists(path):
        raise ConfigError(f"{path}: there is no such file; `prime-dht group create` makes a root key")
    return load_or_create_identity(path, name=NAME)


def group_prefix(root: bytes) -> str:
    """What the keys of a group begin with; ``root`` is the SHA-256 that names it."""
    return f"/prime/group/{root.hex()}/"
