"""Capabilities as files: one line of base64, which can be sent in a mail or a chat. It is no secret to the network."""

from __future__ import annotations

import base64
import binascii
from pathlib import Path

import click

from prime_dht.cli.options import Parsed
from prime_dht.errors import ConfigError, ValidationError

MAX_TOKEN_CHARS = 4096
"""A capability has some 200 bytes; nobody is to have a disk read in by mistake."""


def token_text(capability: bytes) -> str:
    """A capability as its file has it, without the newline."""
    return base64.b64encode(capability).decode()


def write_token(path: Path, capability: bytes) -> None:
    """Write a capability to a file, whole or not at all, or to a pipe or a device.

    What is there already it replaces only if it is a capability, too, or empty.

    Raises:
        ConfigError: there is another file; or the pipe or device cannot be written.
        StorageError: the file cannot be written.
    """
    from prime_dht.node.blobs.file import write_small

    line = f"{token_text(capability)}\n"
    try:
        if path.is_file() and path.stat().st_size:
            read_token(path)
        if path.exists() and not path.is_file():
            path.write_text(line)
        else:
            write_small(path, line.encode())
    except ValidationError as error:
        raise ConfigError(f"{path}: it exists, is no capability, and is not replaced") from error
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error


def read_token(path: Path) -> bytes:
    """The capability in a file; whether it is genuine is for those to check to whom it is shown.

    Raises:
        ValidationError: the file cannot be read, or holds no capability.
    """
    from prime_dht.entries.capability import decode_capability

    try:
        with path.open("rb") as file:
            text = file.read(MAX_TOKEN_CHARS + 1)
    except OSError as error:
        raise ValidationError(f"{path}: {error.strerror}") from error
    try:
        capability = base64.b64decode(text.strip(), validate=True)
        decode_capability(capability)
    except (binascii.Error, ValidationError) as error:
        raise ValidationError(f"{path} holds no capability, as `prime-dht group invite` makes them") from error
    return capability


option = click.option(
    "--capability",
    type=Parsed("file", bytes, lambda name: read_token(Path(name))),
    default=b"",
    metavar="FILE",
    help="For a group's key: the capability that `prime-dht group invite` made for the identity in --data-dir.",
)
