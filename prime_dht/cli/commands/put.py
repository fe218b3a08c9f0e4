"""``prime-dht put``: store one value."""

from __future__ import annotations

import base64
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from prime_dht.cli import capability, options
from prime_dht.cli.ending import complain
from prime_dht.cli.render import moment
from prime_dht.errors import QueryError, ValidationError
from prime_dht.ids import peer_text

if TYPE_CHECKING:
    from prime_dht.cli.client import Session
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
@capability.option
@options.asking
def command(
    session: Session,
    key: bytes,
    value: bytes | None,
    file: Path | None,
    ttl_s: float | None,
    subkey: bytes,
    capability: bytes,
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

    if (value is None) == (file is None):
        raise click.UsageError("give one of VALUE, --file FILE, or - for standard input")
    source = file if file is not None else STDIN if value == b"-" else value
    assert source is not None
    receipt = run_until_done(partial(_put, session, key, source, ttl_s=ttl_s, subkey=subkey, capability=capability))
    if receipt.superseded:
        raise QueryError("a newer value by this identity stands under the key: this one will not be seen")
    session.show(receipt_as_json(receipt), f"stored until {moment(receipt.expires_at_us)}")
    for line in shortfalls(receipt):
        complain(f"warning: {line}")


def shortfalls(receipt: PutReceipt) -> list[str]:
    """What a person should know of a put that fewer replicas took than were asked for; nothing if all is well."""
    if receipt.warning is None:
        return []
    return [receipt.warning, *(f"{peer_text(peer)}: {why}" for peer, why in (*receipt.refused, *receipt.failed))]


def receipt_as_json(receipt: PutReceipt) -> dict[str, object]:
    """A receipt for programs; times are in microseconds since the Unix epoch, key and subkey base64."""
    return {
        "key": base64.b64encode(receipt.key).decode(),
        "subkey": base64.b64encode(receipt.subkey).decode(),
        "op_id": receipt.op_id.hex(),
        "created_at_us": receipt.created_at_us,
        "expires_at_us": receipt.expires_at_us,
        "stored_by": [peer_text(peer) for peer in receipt.stored_by],
        "refused": {peer_text(peer): why for peer, why in receipt.refused},
        "failed": {peer_text(peer): why for peer, why in receipt.failed},
        "wanted": receipt.wanted,
        "needed": receipt.needed,
        "acknowledged": receipt.acknowledged,
        "superseded": receipt.superseded,
        "warning": receipt.warning,
    }


async def _put(
    session: Session,
    key: bytes,
    source: bytes | Path | int,
    *,
    ttl_s: float | None,
    subkey: bytes,
    capability: bytes,
) -> PutReceipt:
    import trio

    # In a thread, which Ctrl-C can leave alone with a terminal or a pipe that says nothing.
    most = session.config.dht.limits.max_inline_bytes
    content = await trio.to_thread.run_sync(_read, source, most, abandon_on_cancel=True)  # type: ignore[call-arg]  # old stubs
    async with session.joined() as dht:
        return await dht.put(key, content, subkey=subkey, ttl=ttl_s, capability=capability)


def _read(source: bytes | Path | int, most: int) -> bytes:
    if isinstance(source, bytes):
        return source
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
