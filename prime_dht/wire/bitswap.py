"""Messages of Bitswap 1.2.0, as far as a node needs that only answers. The format is that of ``protos/bitswap.proto``.

CIDs are bytes here, as they came: a peer may want any kind of content, and hears in its own words that it is not here.

>>> from prime_dht.blobs.cid import Cid
>>> cid = bytes(Cid.of_raw(b"a block"))
>>> encode_presences({cid: False}).hex(" ", 16)[:8], len(encode_block(Cid.of_raw(b"a block"), b"a block"))
('22280a24', 17)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from prime_dht.blobs.cid import DIGEST_BYTES, Cid
from prime_dht.errors import RemoteProtocolError
from prime_dht.pb.bitswap_pb2 import Message

MAX_WANTLIST_BYTES = 1 << 18
"""Of a message that we take: 5,000 wants. go-bitswap sends 2,000 at a time."""

MAX_WANTS_READ = 8192
"""Of a message; more fit in only if they name nothing, and each takes a microsecond."""

MAX_CID_BYTES = 128
"""Of a CID that we answer: a longer one is nobody's."""


@dataclass(frozen=True, slots=True)
class Want:
    """One thing that a peer wants, or no longer wants."""

    cid: bytes
    is_cancelled: bool
    presence_only: bool
    tell_absence: bool


@dataclass(frozen=True, slots=True)
class Wantlist:
    """What a peer wants; with ``is_full``, all that it wants."""

    wants: tuple[Want, ...]
    is_full: bool


def decode_wantlist(body: bytes) -> Wantlist:
    """What a message says that its sender wants; whatever else it holds is ignored.

    Raises:
        RemoteProtocolError: it is no protobuf.
    """
    message = Message()
    try:
        message.ParseFromString(body)
    except DecodeError as error:
        raise RemoteProtocolError("a Bitswap message that is no protobuf") from error
    wants = tuple(
        Want(entry.block, entry.cancel, entry.wantType == Message.Wantlist.Have, entry.sendDontHave)
        for entry in message.wantlist.entries[:MAX_WANTS_READ]
        if len(entry.block) <= MAX_CID_BYTES
    )
    return Wantlist(wants, message.wantlist.full)


def encode_presences(presences: Mapping[bytes, bool]) -> bytes:
    """The body of a message that says of some CIDs whether their blocks are here."""
    return Message(
        blockPresences=[
            Message.BlockPresence(cid=cid, type=Message.Have if is_here else Message.DontHave)
            for cid, is_here in presences.items()
        ]
    ).SerializeToString()


def encode_block(cid: Cid, data: bytes) -> bytes:
    """The body of a message that holds one block."""
    return Message(payload=[Message.Block(prefix=bytes(cid)[:-DIGEST_BYTES], data=data)]).SerializeToString()
