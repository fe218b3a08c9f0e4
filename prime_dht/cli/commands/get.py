"""``prime-dht get``: read one value."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from prime_dht.cli import options
from prime_dht.cli.ending import Status, complain, emit
from prime_dht.cli.logs import log_to_stderr
from prime_dht.errors import ConfigError
from prime_dht.ids import peer_text

if TYPE_CHECKING:
    from prime_dht.node.results import Found

logger = logging.getLogger(__name__)


@click.command("get")
@click.argument("key", type=options.Raw())
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="Write the value to this file.")
@options.subkey
@options.peers
@options.identity_dir
@options.timeout
@options.verbose
def command(
    key: bytes,
    out: Path | None,
    subkey: bytes,
    peers: tuple[str, ...],
    data_dir: Path | None,
    timeout_s: float,
    verbose: int,
) -> int:
    """Write the newest value under KEY to standard output.

    Its bytes, nothing else. Exits with 1 if there is none.

    \b
    Examples:
      prime-dht get greeting --peer /ip4/192.0.2.1/tcp/4001/p2p/12D3Koo...
      prime-dht get model:digits --out weights.safetensors
    """
    from prime_dht.cli.life import run_until_done

    log_to_stderr(logging.WARNING, verbose=verbose)
    found = run_until_done(partial(_get, key, subkey=subkey, peers=peers, data_dir=data_dir, timeout_s=timeout_s))
    if found is None:
        complain(f"not found: {key.decode(errors='backslashreplace')}")
        return Status.NOT_FOUND
    logger.info("%d bytes by %s, from %d replicas", len(found.value), peer_text(found.publisher), found.answered)
    if out is None:
        emit(found.value)
        return Status.DONE
    try:
        out.write_bytes(found.value)
    except OSError as error:
        raise ConfigError(f"{out}: {error.strerror}") from error
    return Status.DONE


async def _get(
    key: bytes, *, subkey: bytes, peers: tuple[str, ...], data_dir: Path | None, timeout_s: float
) -> Found | None:
    from prime_dht.cli.client import joined_client

    async with joined_client(peers, data_dir=data_dir, timeout_s=timeout_s) as dht:
        return await dht.get(key, subkey=subkey)
