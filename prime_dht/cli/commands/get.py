"""``prime-dht get``: read one value."""

from __future__ import annotations

import logging
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from prime_dht.cli import options
from prime_dht.cli.commands.get_all import found_as_json
from prime_dht.cli.ending import Status, complain, emit
from prime_dht.cli.render import visible
from prime_dht.errors import ConfigError
from prime_dht.ids import peer_text

if TYPE_CHECKING:
    from prime_dht.cli.client import Session
    from prime_dht.node.results import Found

logger = logging.getLogger(__name__)

STDOUT = 1


@click.command("get")
@click.argument("key", type=options.Raw())
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="Write the value to this file.")
@options.subkey
@options.asking
def command(session: Session, key: bytes, out: Path | None, subkey: bytes) -> int:
    """Write the newest value under KEY to standard output.

    Its bytes, nothing else; a terminal gets text alone, and with a newline. With --json, a line with the value in
    base64 and all that is known of it. Exits with 1 if there is none.

    \b
    Examples:
      prime-dht get greeting --peer /ip4/192.0.2.1/tcp/4001/p2p/12D3Koo...
      prime-dht get model:digits --out weights.safetensors
    """
    from prime_dht.cli.life import run_until_done

    found = run_until_done(partial(_get, session, key, subkey=subkey))
    if found is None:
        complain(f"not found: {visible(key)}")
        return Status.NOT_FOUND
    logger.info("%d bytes by %s, from %d replicas", len(found.value), peer_text(found.publisher), found.answered)
    if out is not None:
        try:
            out.write_bytes(found.value)
        except OSError as error:
            raise ConfigError(f"{out}: {error.strerror}") from error
    if session.as_json:
        session.show(found_as_json(found, out), "")
    elif out is None:
        emit(_for_terminal(found.value) if os.isatty(STDOUT) else found.value)
    return Status.DONE


def _for_terminal(value: bytes) -> bytes:
    """A value as lines of text. What else somebody may have put there could do things to a terminal."""
    text = value.decode(errors="surrogateescape")
    if not all(char.isprintable() or char in "\n\t" for char in text):
        raise ConfigError(f"{len(value):,} bytes, and not only text: send them elsewhere, or write them to --out FILE")
    return value if value.endswith(b"\n") else value + b"\n"


async def _get(session: Session, key: bytes, *, subkey: bytes) -> Found | None:
    async with session.joined() as dht:
        return await dht.get(key, subkey=subkey)
