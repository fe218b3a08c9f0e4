"""``/prime/rpc/1.0.0``: the Kademlia messages, many in flight on one stream.

The side that opened the stream sends *calls*: a frame is an unsigned varint call number, then a message of
:mod:`prime_dht.wire.kad`. It numbers its calls from 0 upwards. The other side sends *answers*: a frame is the number of
the call, a byte that says how it went, and then the message, or, for a call that was refused, why in UTF-8. Each call
is answered once, ``ADD_PROVIDER`` included, in any order. A slow answer therefore holds up none behind it, a caller
that loses interest lets the answer pass, and a request that cannot be answered takes no other down with it. At most
:data:`MAX_CALLS_IN_FLIGHT` calls are unanswered at a time.

>>> encode_call(300, b"message")
b'\\xac\\x02message'
>>> decode_call(b'\\xac\\x02message')
(300, b'message')
>>> decode_answer(encode_answer(300, b"message"))
(300, b'message')
>>> decode_answer(encode_answer(300, Refusal("the disk is full")))
(300, Refusal(reason='the disk is full'))
"""

from __future__ import annotations

from dataclasses import dataclass

from prime_dht.errors import RemoteProtocolError
from prime_dht.wire.frames import decode_varint, encode_varint

MAX_CALLS_IN_FLIGHT = 64
MAX_REASON_BYTES = 200

_ANSWERED, _REFUSED = b"\x00", b"\x01"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A call was understood and not carried out."""

    reason: str


def encode_call(number: int, message: bytes) -> bytes:
    """The body of a call's frame."""
    return encode_varint(number) + message


def decode_call(body: bytes) -> tuple[int, bytes]:
    """The call number and the message.

    Raises:
        RemoteProtocolError: no call number.
    """
    number, start = _number(body)
    return number, body[start:]


def encode_answer(number: int, answer: bytes | Refusal) -> bytes:
    """The body of an answer's frame; a long reason is cut."""
    if isinstance(answer, Refusal):
        return encode_varint(number) + _REFUSED + answer.reason.encode()[:MAX_REASON_BYTES]
    return encode_varint(number) + _ANSWERED + answer


def decode_answer(body: bytes) -> tuple[int, bytes | Refusal]:
    """The call number, and the message or why there is none.

    Raises:
        RemoteProtocolError: no call number, or the byte behind it is missing or unknown.
    """
    number, start = _number(body)
    outcome, rest = body[start : start + 1], body[start + 1 :]
    if outcome == _ANSWERED:
        return number, rest
    if outcome == _REFUSED:
        return number, Refusal(rest[:MAX_REASON_BYTES].decode(errors="replace"))
    raise RemoteProtocolError("an answer that is neither a message nor a refusal")


def _number(body: bytes) -> tuple[int, int]:
    """The number a frame begins with, and the index behind it."""
    number = decode_varint(body)
    if number is None:
        raise RemoteProtocolError("a frame without a call number")
    return number
