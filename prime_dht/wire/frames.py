"""Length-prefixed frames: an unsigned varint, then that many bytes.

Source: multiformats unsigned-varint specification (at most 9 bytes, shortest encoding), libp2p kad-dht specification
("RPC messages"). A frame of length zero is legal. :class:`FrameDecoder` takes bytes in whatever pieces a stream gives
them and returns whole frames; it never holds more than one frame's bytes beyond what it was fed.

>>> encode_frame(b"ab")
b'\\x02ab'
>>> decoder = FrameDecoder(max_frame_bytes=1 << 20)
>>> decoder.feed(b"\\x02a"), decoder.feed(b"b\\x00")
([], [b'ab', b''])
"""

from __future__ import annotations

from prime_dht.errors import RemoteProtocolError

MAX_FRAME_BYTES = 4 << 20
"""What go-libp2p and js-libp2p accept; ours is the same."""

_MAX_VARINT_BYTES = 9


def encode_varint(value: int) -> bytes:
    """The unsigned varint of a non-negative integer.

    >>> encode_varint(300)
    b'\\xac\\x02'
    """
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def decode_varint(buffer: bytes | bytearray | memoryview, start: int = 0) -> tuple[int, int] | None:
    """Read a varint at ``start``: its value and the index behind it, or ``None`` if it is not all there.

    Raises:
        RemoteProtocolError: longer than 9 bytes, or not the shortest encoding.
    """
    value = shift = 0
    for index in range(start, min(len(buffer), start + _MAX_VARINT_BYTES)):
        byte = buffer[index]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if byte == 0 and index > start:
                raise RemoteProtocolError("varint is not minimal")
            return value, index + 1
        shift += 7
    if len(buffer) - start >= _MAX_VARINT_BYTES:
        raise RemoteProtocolError("varint is longer than 9 bytes")
    return None


def encode_frame(body: bytes) -> bytes:
    """One frame on the wire."""
    return encode_varint(len(body)) + body


class FrameDecoder:
    """Cuts a byte stream into frames.

    Args:
        max_frame_bytes: a frame that announces more is a :class:`RemoteProtocolError`, before any of it is read.
    """

    __slots__ = ("_buffer", "_max_frame_bytes")

    def __init__(self, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        self._buffer = bytearray()
        self._max_frame_bytes = max_frame_bytes

    @property
    def is_between_frames(self) -> bool:
        """Whether everything fed so far was whole frames: an end of the stream here is a clean one."""
        return not self._buffer

    def feed(self, data: bytes | memoryview) -> list[bytes]:
        """Take the next bytes of the stream; return the frames that are now whole, in order.

        Raises:
            RemoteProtocolError: a malformed length, or one above the limit. The decoder is then of no further use.
        """
        if self._buffer:
            self._buffer += data
            source: bytes | bytearray | memoryview = self._buffer
        else:
            source = data  # the usual case: a read holds whole frames, and nothing need be buffered
        frames: list[bytes] = []
        position = 0
        while position < len(source) and (length := decode_varint(source, position)) is not None:
            size, body = length
            if size > self._max_frame_bytes:
                raise RemoteProtocolError(f"frame of {size} bytes, the limit is {self._max_frame_bytes}")
            if len(source) - body < size:
                break
            frames.append(bytes(memoryview(source)[body : body + size]))
            position = body + size
        if source is self._buffer:
            del self._buffer[:position]
        else:
            self._buffer += memoryview(data)[position:]
        return frames

    @property
    def held_bytes(self) -> int:
        """What there is of the frame that is under way, its length included."""
        return len(self._buffer)

    def announced_bytes(self) -> int:
        """The size of the frame that is under way, once its length is known, else 0."""
        length = decode_varint(self._buffer)
        return 0 if length is None else length[0]
