"""Counting a protobuf message's fields before it is parsed.

The parser makes an object of every submessage, however small: 4 MiB of empty ones, two bytes each, take it a third of a
second and 110 MiB. No honest message has nearly as many fields, so a message is looked at first, as far as needed.

Source: protobuf's encoding (tags, varints, wire types). Only the fields at the top are counted; what lies within a
submessage and is repeated costs a tenth. Groups, which nobody uses, count as the fields they consist of.

>>> from prime_dht.pb.kad_pb2 import Message
>>> message = Message(key=b"key", closerPeers=[Message.Peer(id=b"a"), Message.Peer(id=b"b")]).SerializeToString()
>>> has_more_fields(message, 2), has_more_fields(message, 3)
(True, False)
"""

from __future__ import annotations

_MAX_VARINT_BYTES = 10


def has_more_fields(message: bytes, limit: int) -> bool:
    """Whether a message has more than ``limit`` fields at its top; the work is bounded by ``limit``.

    Of what is malformed it may say anything: the parser refuses that in any case.
    """
    at = 0
    try:
        for _ in range(limit):
            if at >= len(message):
                return False
            tag, at = _varint(message, at)
            wire_type = tag & 7
            if wire_type == 0:
                _, at = _varint(message, at)
            elif wire_type == 1:
                at += 8
            elif wire_type == 2:
                size, at = _varint(message, at)
                at += size
            elif wire_type == 5:
                at += 4
    except IndexError:  # it ends in the middle of a number, or the number does not end
        return False
    return at < len(message)


def _varint(message: bytes, start: int) -> tuple[int, int]:
    """A number and the index behind it. Unlike a frame's length it may have ten bytes, and more than it needs."""
    value = 0
    for shift in range(_MAX_VARINT_BYTES):
        byte = message[start + shift]
        value |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            return value, start + shift + 1
    raise IndexError
