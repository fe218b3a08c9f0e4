"""``prime-dht get-all``: read what every publisher keeps under a key."""

from __future__ import annotations

import base64
import hashlib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote_from_bytes

import click

from prime_dht.cli import options
from prime_dht.cli.commands.put import blob_as_json
from prime_dht.cli.ending import STDOUT, Status, complain, json_line
from prime_dht.cli.progress import quiet
from prime_dht.cli.render import preview, span, table, visible
from prime_dht.cli.targets import PEER_NAME
from prime_dht.errors import BlobError, ConfigError, ValidationError
from prime_dht.ids import US_PER_S, PeerId, peer_text

if TYPE_CHECKING:
    from prime_dht.cli.client import Session
    from prime_dht.node.dht import PrimeDHT
    from prime_dht.node.results import Found

SUBKEY_CHARS = 20

MAX_NAME_CHARS = 200
"""Of a file; file systems take 255 bytes."""


@click.command("get-all")
@click.argument("key", type=options.Raw())
@click.option(
    "--subkey", "subkeys", type=options.Raw(), multiple=True, help="Only values of this subkey; repeat for several."
)
@click.option(
    "--publisher",
    "publishers",
    type=PEER_NAME,
    multiple=True,
    metavar="PEER-ID",
    help="Only values that this peer has signed; repeat for several.",
)
@click.option(
    "--limit", type=options.Count(), default=1000, metavar="N", help="At most so many values. [default: 1000]"
)
@click.option(
    "--out",
    type=options.Directory(),
    metavar="DIR",
    help="Write each value, blobs too, to a file in this directory, named <publisher> or <publisher>.<subkey>.",
)
@options.max_size
@quiet
@options.asking
def command(
    session: Session,
    key: bytes,
    subkeys: tuple[bytes, ...],
    publishers: tuple[PeerId, ...],
    limit: int,
    out: Path | None,
    max_bytes: int | None,
    quiet: bool,
) -> int:
    """List the live values under KEY, of every publisher and subkey.

    The table shows how values begin, made fit to print; --out saves them whole. With --json each value is a line, with
    key, subkey and value in base64 and times in microseconds since 1970; of a blob it has the CID, and no value. A file
    is there when it is whole; what an interrupted command has fetched of a blob is not fetched again. Exits with 1 if
    there is no value, and with 2 if a blob could not be saved; the others are.

    \b
    Examples:
      prime-dht get-all gradient:7 --peer /ip4/192.0.2.1/tcp/4001/p2p/12D3Koo...
      prime-dht get-all gradient:7 --out ./round-7
      prime-dht get-all gradient:7 --json | jq -r .publisher
    """
    from prime_dht.cli.life import run_until_done
    from prime_dht.cli.transfer import going_on_later

    if out is not None:
        _make(out)
    saving = None if out is None else _Saving(session, out, max_bytes, is_quiet=quiet)
    with going_on_later(session, None if out is None else f"what has come is kept in {out}", is_here=True):
        rows = run_until_done(partial(_get_all, session, key, frozenset(subkeys), frozenset(publishers), limit, saving))
    if not rows:
        complain(f"not found: {visible(key)}")
        return Status.NOT_FOUND
    if not session.as_json:
        columns = ("publisher", "subkey", "bytes", "age", "ends in", "file" if out is not None else "value")
        session.show({}, table(columns, rows, right=("bytes",)))
    return Status.FAILED if saving is not None and saving.has_failed else Status.DONE


class _Saving:
    """Writes values to files in a directory.

    Attributes:
        has_failed: whether one of them is not there: others' can be had all the same.
    """

    def __init__(self, session: Session, directory: Path, max_bytes: int | None, *, is_quiet: bool) -> None:
        self.has_failed = False
        self._session = session
        self._directory = directory
        self._max_bytes = max_bytes
        self._is_quiet = is_quiet

    async def save(self, dht: PrimeDHT, found: Found) -> Path | None:
        """Where the value was written; ``None`` if it is a blob that is too large, or that cannot be had.

        Raises:
            ConfigError, StorageError: the file cannot be written.
        """
        from prime_dht.cli.transfer import check_size, place_for, transfer

        path = self._directory / file_name(found.publisher, found.subkey)
        place = place_for(path)
        if place is None:
            raise ConfigError(f"{path}: it is there, and no file")
        try:
            check_size(found, self._max_bytes)
            async with transfer(self._session, is_quiet=self._is_quiet) as progress:
                await dht.blobs.resolve(found, to=place, progress=progress)
        except (BlobError, ValidationError) as error:
            complain(f"not saved: {path}: {error}")
            self.has_failed = True
            return None
        return path


async def _get_all(
    session: Session,
    key: bytes,
    subkeys: frozenset[bytes],
    publishers: frozenset[PeerId],
    limit: int,
    saving: _Saving | None,
) -> list[tuple[str, ...]]:
    """Read, write to files what is to be there, print what is for programs; what is for people is returned.

    So no more of the values than a page is in memory at a time.
    """
    from prime_dht.cli.transfer import write_to
    from prime_dht.node.clock import SystemClock

    rows: list[tuple[str, ...]] = []
    async with session.joined() as dht:
        cursor: bytes | None = None
        while True:
            page = await dht.get_all(
                key, subkeys=subkeys or None, publishers=publishers or None, limit=limit - len(rows), cursor=cursor
            )
            for found in page:
                path = None if saving is None else await saving.save(dht, found)
                if session.as_json:
                    await write_to(STDOUT, json_line(found_as_json(found, path)))
                shown = _shown(found) if saving is None else str(path or "not saved")
                rows.append(_row(found, shown, SystemClock().now_us()))
            cursor = page.next_cursor
            if cursor is None:
                return rows
            if len(rows) == limit:
                complain(f"there are more than {limit:,} values: --limit shows more")
                return rows


def file_name(publisher: PeerId, subkey: bytes) -> str:
    """The name of a value's file: one name for each slot, and none that means anything to a shell or a file system.

    >>> from prime_dht.ids import peer_from_text
    >>> peer = peer_from_text("12D3KooWK99VoVxNE7XzyBwXEzW7xhK7Gpv85r9F3V3fyKSUKPH5")
    >>> file_name(peer, b"../layer 1")[53:]
    '..%2Flayer%201'
    """
    if not subkey:
        return peer_text(publisher)
    name = f"{peer_text(publisher)}.{quote_from_bytes(subkey, safe='')}"
    if len(name) <= MAX_NAME_CHARS:
        return name
    return f"{peer_text(publisher)}.sha256-{hashlib.sha256(subkey).hexdigest()}"


def _make(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{directory}: {error.strerror}") from error


def _row(found: Found, shown: str, now_us: int) -> tuple[str, ...]:
    return (
        peer_text(found.publisher),
        preview(found.subkey, SUBKEY_CHARS) or "-",
        f"{_size_bytes(found):,}",
        span(max(0, now_us - found.created_at_us) / US_PER_S),
        span(max(0, found.expires_at_us - now_us) / US_PER_S),
        shown,
    )


def _shown(found: Found) -> str:
    return preview(found.value) if found.blob is None else f"blob of {found.blob.size:,} bytes"


def _size_bytes(found: Found) -> int:
    return len(found.value) if found.blob is None else found.blob.size


def found_as_json(found: Found, path: Path | None) -> dict[str, object]:
    """A value for programs, or where it was written; times are in microseconds since the Unix epoch."""
    item: dict[str, object] = {
        "key": base64.b64encode(found.key).decode(),
        "publisher": peer_text(found.publisher),
        "subkey": base64.b64encode(found.subkey).decode(),
        "created_at_us": found.created_at_us,
        "expires_at_us": found.expires_at_us,
        "content_type": found.content_type,
        "metadata": dict(found.metadata),
    }
    if path is not None:
        item["file"] = str(path)
    item["size"] = _size_bytes(found)
    if found.blob is not None:
        return {**item, "blob": blob_as_json(found.blob)}
    if path is not None:
        return item
    return {**item, "value": base64.b64encode(found.value).decode()}
