"""``/prime/rpc/1.0.0``: the Kademlia messages, many in flight on one stream.

Each frame is an unsigned varint call number and then a message of :mod:`prime_dht.wire.kad`. The side that opened the
stream numbers its calls from 0 upwards; the other answers each of them, ``ADD_PROVIDER`` included, once, with the same
number, in any order. A slow answer therefore holds up none behind it, and a caller that loses interest lets the answer
pass. At most :data:`MAX_CALLS_IN_FLIGHT` calls are unanswered at a time.

>>> encode_call(300, b"message")
b'\\xac\\x02message'
>>> decode_call(b'\\xac\\x02message')
(300, b'message')
"""

from __future__ import annotations

from prime_dht.errors import RemoteProtocolError
from prime_dht.wire.frames import decode_varint, encode_varint

MAX_CALLS_IN_FLIGHT = 64


def encode_call(number: int, message: bytes) -> bytes:
    """A frame's body."""
    return encode_varint(number) + message


def decode_call(body: bytes) -> tuple[int, bytes]:
    """The call number and the message.

    Raises:
        RemoteProtocolError: no call number.
    """
    header = decode_varint(body)
    if header is None:
        raise RemoteProtocolError("a call without a number")
    number, start = header
    return number, body[start:]
