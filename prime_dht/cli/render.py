"""What people see: tables, times and sizes in words, and other people's bytes made harmless.

Keys, subkeys, values and reasons come from anybody. Written to a terminal as they are, they could move its cursor,
rename its window or hide what comes after them; so all that a peer has a say in goes through :func:`visible`, and each
cell of a :func:`table` does.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime

from prime_dht.ids import US_PER_S, PeerId, peer_text

PREVIEW_CHARS = 40

_YEAR_10000_US = 253_402_214_400 * US_PER_S
"""Or rather a day before, for those who live east of Greenwich."""

_UNITS_S = (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1))

_UNITS_BYTES = (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3))


def visible(given: str | bytes) -> str:
    r"""Text, or bytes taken for UTF-8, with everything escaped that does not print; what is visible already stays.

    >>> print(visible(b"caf\xc3\xa9\n\x1b[31m\xff"))
    café\n\x1b[31m\xff
    """
    text = given if isinstance(given, str) else given.decode(errors="surrogateescape")
    return "".join(char if char.isprintable() else _escaped(char) for char in text)


def preview(value: bytes, most_chars: int = PREVIEW_CHARS) -> str:
    r"""The beginning of a value, in at most so many characters.

    >>> print(preview(b"loss=0.25"), preview(bytes(1000), 10))
    loss=0.25 \x00\x00\…
    """
    return cut(visible(value[: most_chars + 1]), most_chars)


def cut(text: str, most_chars: int) -> str:
    """A text, cut if it is longer.

    >>> cut("abcdef", 6), cut("abcdefg", 6)
    ('abcdef', 'abcde…')
    """
    return text if len(text) <= most_chars else f"{text[: most_chars - 1]}…"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Collection[str] = ()) -> str:
    """Lines of aligned cells under the names of their columns.

    Args:
        right: names of the columns that are aligned to the right, as numbers should be.

    >>> print(table(("peer", "ms"), [("a", "9.5"), ("bcdef", "10.0")], right=("ms",)))
    peer     ms
    a       9.5
    bcdef  10.0
    """
    lines = [tuple(columns), *(tuple(map(visible, row)) for row in rows)]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if name in right else cell.ljust(width)
            for name, cell, width in zip(columns, line, widths, strict=True)
        ).rstrip()
        for line in lines
    )


def span(seconds: float) -> str:
    """A length of time in its two largest units.

    >>> span(0.4), span(59.6), span(90), span(3600), span(200_000)
    ('0 s', '1 min', '1 min 30 s', '1 h', '2 d 7 h')
    """
    left_s = round(seconds)
    parts: list[str] = []
    for unit, unit_s in _UNITS_S:
        count, left_s = divmod(left_s, unit_s)
        if count or parts:
            parts.append(f"{count} {unit}" if count else "")
        if len(parts) == 2:
            break
    return " ".join(filter(None, parts)) or "0 s"


def amount(size_bytes: int) -> str:
    """A number of bytes, in the unit that people read it in.

    >>> amount(999), amount(1_500), amount(1 << 20), amount(24_000_000_000)
    ('999 B', '1.5 kB', '1.0 MB', '24.0 GB')
    """
    for unit, unit_bytes in _UNITS_BYTES:
        if size_bytes >= unit_bytes:
            return f"{size_bytes / unit_bytes:.1f} {unit}"
    return f"{size_bytes} B"


def milliseconds(seconds: float | None) -> str:
    """A round-trip time; a dash if it is not known.

    >>> milliseconds(0.01234), milliseconds(None)
    ('12.3', '-')
    """
    return "-" if seconds is None else f"{seconds * 1000:.1f}"


def moment(time_us: int) -> str:
    """A time, in microseconds since the Unix epoch, by the clock on the wall."""
    if time_us >= _YEAR_10000_US:
        return "after the year 9999"
    return f"{datetime.fromtimestamp(time_us / US_PER_S).astimezone():%Y-%m-%d %H:%M:%S %Z}"


def brief(peer: PeerId) -> str:
    """A peer id as far as it takes to tell a swarm's members apart, where there is no room for all of it.

    >>> from prime_dht.ids import peer_from_text
    >>> brief(peer_from_text("12D3KooWK99VoVxNE7XzyBwXEzW7xhK7Gpv85r9F3V3fyKSUKPH5"))
    '…yKSUKPH5'
    """
    return f"…{peer_text(peer)[-8:]}"


def _escaped(char: str) -> str:
    is_raw_byte = 0xDC80 <= ord(char) <= 0xDCFF  # where the bytes were no UTF-8
    return f"\\x{ord(char) - 0xDC00:02x}" if is_raw_byte else char.encode("unicode_escape").decode()
