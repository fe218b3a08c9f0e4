"""Messages of ``/prime/blocks/1.0.0``: asking for blocks, and the blocks themselves, which travel behind their header.

The format, with all bounds, is that of ``protos/blocks.proto``. A block's bytes are outside of protobuf: the sender
writes them from where they lie, and :class:`MessageDecoder` copies them once, into their place.

>>> decoder = MessageDecoder(takes_blocks=True)
>>> decoder.feed(encode_block_header(7, 3) + b"ab")
[]
>>> decoder.feed(b"c" + encode_message(Answer(not_have=(8, 9))))
[Block(number=7, data=bytearray(b'abc')), Answer(have=(), not_have=(8, 9), busy=())]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

from google.protobuf.message import DecodeError

from prime_dht.blobs.cid import Cid
from prime_dht.blobs.memory import Lend, Memory
from prime_dht.errors import RemoteProtocolError, ValidationError
from prime_dht.pb import blocks_pb2
from prime_dht.wire.frames import decode_varint, encode_frame

MAX_BLOCK_BYTES = 2 << 20
"""The largest block there is, in Bitswap as well."""

MAX_MESSAGE_BYTES = 1 << 14
"""Of a message without the block behind it."""

MAX_ASKED_AT_ONCE = 256
"""Blocks that one message may ask for."""

MAX_UNANSWERED = 1024
"""Blocks that one peer may ask for and not be answered yet."""


@dataclass(frozen=True, slots=True)
class Ask:
    """The sender wants blocks, numbered in order, or, with ``presence_only``, to know which of them there are."""

    cids: tuple[Cid, ...]
    presence_only: bool = False


@dataclass(frozen=True, slots=True)
class Cancel:
    """The sender no longer wants what has these numbers."""

    numbers: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What became of some numbers."""

    have: tuple[int, ...] = ()
    not_have: tuple[int, ...] = ()
    busy: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Block:
    """The bytes that came for a number, which nobody has checked yet."""

    number: int
    data: Memory


Message = Ask | Cancel | Answer | Block


def encode_message(message: Ask | Cancel | Answer) -> bytes:
    """The frame of a message without a block."""
    match message:
        case Ask(cids, presence_only):
            ask = blocks_pb2.Ask(cids=map(bytes, cids), presence_only=presence_only)
            body = blocks_pb2.Message(ask=ask)
        case Cancel(numbers):
            body = blocks_pb2.Message(cancel=blocks_pb2.Cancel(numbers=numbers))
        case Answer(have=have, not_have=not_have, busy=busy):
            body = blocks_pb2.Message(answer=blocks_pb2.Answer(have=have, not_have=not_have, busy=busy))
        case _:
            assert_never(message)
    return encode_frame(body.SerializeToString())


def encode_block_header(number: int, size: int) -> bytes:
    """The frame that goes before a block of ``size`` bytes."""
    header = blocks_pb2.BlockHeader(number=number, size=size)
    return encode_frame(blocks_pb2.Message(block=header).SerializeToString())


class MessageDecoder:
    """Cuts a byte stream into messages. It holds at most one message, or one block, that is under way.

    Args:
        takes_blocks: whether this is the side that asks: answers and blocks are for it, the rest for the other side.
        lend: gives memory for a block of so many bytes.
    """

    __slots__ = ("_block", "_filled_bytes", "_frame", "_lend", "_takes_blocks")

    def __init__(self, *, takes_blocks: bool, lend: Lend = bytearray) -> None:
        self._takes_blocks = takes_blocks
        self._lend = lend
        self._frame = bytearray()  # the beginning of a frame whose rest is to come
        self._block: Block | None = None  # the one whose bytes are coming
        self._filled_bytes = 0

    @property
    def is_between_messages(self) -> bool:
        """Whether everything fed so far was whole messages: an end of the stream here is a clean one."""
        return self._block is None and not self._frame

    def feed(self, data: bytes | memoryview) -> list[Message]:
        """Take the next bytes of the stream; return the messages that are now whole, in order.

        Raises:
            RemoteProtocolError: the bytes are no messages for this side. The decoder is then of no further use.
        """
        messages: list[Message] = []
        if self._frame:
            data = b"".join((self._frame, data))
            self._frame.clear()
        rest = memoryview(data)
        while True:
            if self._block is not None:
                piece = rest[: len(self._block.data) - self._filled_bytes]
                self._block.data[self._filled_bytes : self._filled_bytes + len(piece)] = piece
                self._filled_bytes += len(piece)
                rest = rest[len(piece) :]
                if self._filled_bytes < len(self._block.data):
                    return messages
                messages.append(self._block)
                self._block = None
            body, end = _next_frame(rest)
            if body is None:
                self._frame += rest
                return messages
            rest = rest[end:]
            message = self._decode(body)
            if isinstance(message, Block):
                self._block, self._filled_bytes = message, 0
            else:
                messages.append(message)

    def _decode(self, body: bytes) -> Message:
        parsed = blocks_pb2.Message()
        try:
            parsed.ParseFromString(body)
        except DecodeError as error:
            raise RemoteProtocolError("a message that is no protobuf") from error
        kind = parsed.WhichOneof("body")
        if kind is None or (kind in ("answer", "block")) != self._takes_blocks:
            raise RemoteProtocolError(f"a message of kind {kind}, which has no place here")
        match kind:
            case "ask":
                return _ask(parsed.ask)
            case "cancel":
                _check_count("cancels", len(parsed.cancel.numbers), MAX_UNANSWERED)
                return Cancel(tuple(parsed.cancel.numbers))
            case "answer":
                answer = parsed.answer
                _check_count("answers", len(answer.have) + len(answer.not_have) + len(answer.busy), MAX_UNANSWERED)
                return Answer(have=tuple(answer.have), not_have=tuple(answer.not_have), busy=tuple(answer.busy))
            case "block":
                if parsed.block.size > MAX_BLOCK_BYTES:
                    raise RemoteProtocolError(f"a block of {parsed.block.size} bytes, the limit is {MAX_BLOCK_BYTES}")
                return Block(parsed.block.number, self._lend(parsed.block.size))
            case _:
                assert_never(kind)


def _next_frame(data: memoryview) -> tuple[bytes | None, int]:
    """The body of the frame that ``data`` begins with, ``None`` if it is not whole, and the index behind it."""
    length = decode_varint(data)
    if length is None:
        return None, 0
    size, start = length
    if size > MAX_MESSAGE_BYTES:
        raise RemoteProtocolError(f"a message of {size} bytes, the limit is {MAX_MESSAGE_BYTES}")
    if len(data) - start < size:
        return None, 0
    return bytes(data[start : start + size]), start + size


def _ask(ask: blocks_pb2.Ask) -> Ask:
    _check_count("asks for", len(ask.cids), MAX_ASKED_AT_ONCE)
    try:
        return Ask(tuple(map(Cid.from_bytes, ask.cids)), ask.presence_only)
    except ValidationError as error:
        raise RemoteProtocolError(f"a block is asked for by {error}") from error


def _check_count(verb: str, count: int, most: int) -> None:
    if not 1 <= count <= most:
        raise RemoteProtocolError(f"a message {verb} {count} blocks; it may be 1 to {most}")
