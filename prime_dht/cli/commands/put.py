"""``prime-dht put``: store one value."""

from __future__ import annotations

import logging
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from prime_dht.cli import options
from prime_dht.cli.ending import complain, emit
from prime_dht.cli.logs import log_to_stderr
from prime_dht.errors import QueryError, ValidationError
from prime_dht.ids import US_PER_S, peer_text

if TYPE_CHECKING:
    from prime_dht.node.results import PutReceipt

STDIN = 0


@click.command("put")
@click.argument("key", type=options.Raw())
@click.argument("value", type=options.Raw(), required=False)
@click.option("--file", type=click.Path(path_type=Path), metavar="FILE", help="Take the value from this file.")
@click.option(
    "--ttl",
    "ttl_s",
    type=options.Duration(),
    metavar="DURATION",
    help="How long the value lives: seconds, or 30m, 12h, 7d. [default: 1d]",
)
@options.subkey
@options.peers
@options.identity_dir
@options.timeout
@options.verbose
def command(
    key: bytes,
    value: bytes | None,
    file: Path | None,
    ttl_s: float | None,
    subkey: bytes,
    peers: tuple[str, ...],
    data_dir: Path | None,
    timeout_s: float,
    verbose: int,
) -> None:
    """Store VALUE, at most 64 KiB, under KEY.

    VALUE may be - for standard input. Anybody can put a value under a key; a reader gets the newest. With --data-dir
    the value is signed by an identity that you keep, so that readers can know it is yours.

    \b
    Examples:
      prime-dht put greeting "hello, swarm" --peer /ip4/192.0.2.1/tcp/4001/p2p/12D3Koo...
      prime-dht put model:digits --file weights.safetensors --ttl 7d
      date | prime-dht put now -
    """
    from prime_dht.cli.life import run_until_done

    log_to_stderr(logging.WARNING, verbose=verbose)
    if (value is None) == (file is None):
        raise click.UsageError("give one of VALUE, --file FILE, or - for standard input")
    source = file if file is not None else STDIN if value == b"-" else value
    assert source is not None
    receipt = run_until_done(
        partial(_put, key, source, ttl_s=ttl_s, subkey=subkey, peers=peers, data_dir=data_dir, timeout_s=timeout_s)
    )
    if receipt.superseded:
        raise QueryError("a newer value by this identity stands under the key: this one will not be seen")
    until = datetime.fromtimestamp(receipt.expires_at_us / US_PER_S).astimezone()
    emit(f"stored until {until:%Y-%m-%d %H:%M:%S %Z}\n".encode())
    for line in shortfalls(receipt):
        complain(f"warning: {line}")


def shortfalls(receipt: PutReceipt) -> list[str]:
    """What a person should know of a put that fewer replicas took than were asked for; nothing if all is well."""
    if receipt.warning is None:
        return []
    return [receipt.warning, *(f"{peer_text(peer)}: {why}" for peer, why in (*receipt.refused, *receipt.failed))]


async def _put(
    key: bytes,
    source: bytes | Path | int,
    *,
    ttl_s: float | None,
    subkey: bytes,
    peers: tuple[str, ...],
    data_dir: Path | None,
    timeout_s: float,
) -> PutReceipt:
    import trio

    from prime_dht.cli.client import joined_client

    # In a thread, which Ctrl-C can leave alone with a terminal or a pipe that says nothing.
    content = await trio.to_thread.run_sync(_read, source, abandon_on_cancel=True)  # type: ignore[call-arg]  # old stubs
    async with joined_client(peers, data_dir=data_dir, timeout_s=timeout_s) as dht:
        return await dht.put(key, content, subkey=subkey, ttl=ttl_s)


def _read(source: bytes | Path | int) -> bytes:
    if isinstance(source, bytes):
        return source
    from prime_dht.entries.limits import DEFAULT_LIMITS

    most = DEFAULT_LIMITS.max_inline_bytes
    name = "standard input" if source == STDIN else str(source)
    try:
        with open(source, "rb", closefd=source != STDIN) as stream:
            # Whoever pipes in a disk by mistake is told so before the memory is full.
            content = stream.read(most + 1)
    except OSError as error:
        raise ValidationError(f"{name}: {error.strerror}") from error
    if len(content) > most:
        raise ValidationError(f"{name}: more than {most:,} bytes, the most that a value can have")
    return content
