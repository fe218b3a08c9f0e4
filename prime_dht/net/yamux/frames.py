"""Yamux on the wire, without I/O.

A frame is a header of 12 bytes, big-endian, and, for DATA alone, as many bytes of payload as its *value* says:

    version (1, always 0) | kind (1) | flags (2) | stream id (4) | value (4)

For WINDOW_UPDATE the value is the credit that is added to the receiver's send window, for PING an opaque number that
comes back, for GO_AWAY the reason. SYN, ACK, FIN and RST ride on DATA or WINDOW_UPDATE; a ping is SYN, its answer ACK.

:class:`FrameParser` yields a DATA frame in the pieces in which it arrives, so that a frame of any length is held by
nobody but the stream it belongs to, within that stream's window. The pieces are DATA frames that together mean what
the one on the wire does: the first carries its SYN and ACK, the last its FIN and RST.

Source: https://github.com/hashicorp/yamux/blob/master/spec.md.

>>> [frame] = FrameParser().feed(encode(WINDOW_UPDATE, SYN, 1, 0))
>>> frame.kind == WINDOW_UPDATE, frame.flags == SYN, frame.stream_id
(True, True, 1)
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from prime_dht.errors import RemoteProtocolError

DATA: Final = 0
WINDOW_UPDATE: Final = 1
PING: Final = 2
GO_AWAY: Final = 3

SYN: Final = 1
ACK: Final = 2
FIN: Final = 4
RST: Final = 8

NORMAL: Final = 0
PROTOCOL_ERROR: Final = 1

HEADER_BYTES: Final = 12

INITIAL_WINDOW_BYTES: Final = 256 << 10
"""What either end may send on a new stream before it is given credit."""

_VERSION = 0
_HEADER = struct.Struct("!BBHII")
_NO_PAYLOAD = memoryview(b"")


class Frame(NamedTuple):
    """A frame, or a piece of a DATA frame. (A named tuple: one is made for every frame, and it costs the least.)"""

    kind: int
    flags: int
    stream_id: int
    value: int
    """Credit in bytes, ping number or reason; for DATA, how many bytes of payload are in this piece."""
    payload: memoryview


def encode(kind: int, flags: int, stream_id: int, value: int) -> bytes:
    """A frame without payload, or the header of a DATA frame with ``value`` bytes of payload."""
    return _HEADER.pack(_VERSION, kind, flags, stream_id, value)


class FrameParser:
    """Finds the frames in a byte stream that arrives in chunks of any size. Holds at most a part of one header."""

    __slots__ = ("_closing", "_header", "_missing", "_opening", "_stream_id")

    def __init__(self) -> None:
        self._header = b""  # the beginning of a header whose rest is to come
        self._missing = 0  # bytes of payload that are to come
        self._stream_id = 0  # where that payload belongs
        self._opening = 0  # flags of its first piece
        self._closing = 0  # flags of its last piece

    def feed(self, chunk: bytes) -> Iterator[Frame]:
        """Yield the frames and pieces that ``chunk`` completes; their payloads are views of it.

        Iterate to the end, or not at all from then on.

        Raises:
            RemoteProtocolError: the version or the kind of a frame is unknown.
        """
        if self._header:
            chunk = self._header + chunk
            self._header = b""
        view = memoryview(chunk)
        at, end = 0, len(chunk)
        while at < end:
            if self._missing:
                payload = view[at : at + self._missing]
                at += len(payload)
                self._missing -= len(payload)
                flags = self._opening if self._missing else self._opening | self._closing
                self._opening = 0
                yield Frame(DATA, flags, self._stream_id, len(payload), payload)
                continue
            if end - at < HEADER_BYTES:
                self._header = chunk[at:]
                return
            version, kind, flags, stream_id, value = _HEADER.unpack_from(chunk, at)
            at += HEADER_BYTES
            if version != _VERSION or kind > GO_AWAY:
                raise RemoteProtocolError(f"Yamux has no frame of version {version} and kind {kind}")
            if kind == DATA and value:
                self._missing, self._stream_id = value, stream_id
                self._opening, self._closing = flags & (SYN | ACK), flags & (FIN | RST)
            else:
                yield Frame(kind, flags, stream_id, value, _NO_PAYLOAD)
