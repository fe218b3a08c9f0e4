"""Gradients' entries as a look finds them, good and bad, without a swarm; and members to publish them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from prime_dht.entries.entry import BlobRef
from prime_dht.ids import Key, OpId, PeerId, TimestampUs
from prime_dht.ml.codecs import CONTENT_TYPE, Codec, codec_named, encode
from prime_dht.ml.gradients.announcement import Announcement, gradient_key, subkey_of
from prime_dht.ml.tensors import Tensors, size_bytes_of, spec_of
from prime_dht.node.results import Found

ROUND = 7
TENSORS: Tensors = {"w": np.arange(12, dtype=np.float32).reshape(3, 4), "b": np.ones(3, np.float32)}


def member(number: int) -> PeerId:
    """One of as many members as are wanted."""
    return PeerId(b"\x00\x24\x08\x01\x12\x20" + number.to_bytes(32, "big"))


def announced(tensors: Tensors = TENSORS, codec: Codec | None = None, *, round_number: int = ROUND) -> Announcement:
    """What is said of tensors."""
    return Announcement(
        round=round_number,
        codec=codec or codec_named("none"),
        weight=2.0,
        tensor_bytes=size_bytes_of(spec_of(tensors)),
        metrics={"loss": 0.5},
    )


def found(
    publisher: PeerId,
    tensors: Tensors = TENSORS,
    codec: Codec | None = None,
    *,
    created_at_us: int = 1,
    round_number: int = ROUND,
    changes: Mapping[str, str] | None = None,
    value: bytes | None = None,
    is_blob: bool = False,
) -> Found:
    """The entry of a gradient.

    Args:
        changes: to its metadata; they are made after the subkey was.
        value: instead of the encoded tensors; likewise.
        is_blob: whether it refers to its value only.
    """
    announcement = announced(tensors, codec, round_number=round_number)
    encoded = encode(tensors, announcement.codec)
    content = encoded if value is None else value
    return Found(
        key=Key(gradient_key(ROUND)),
        subkey=subkey_of(announcement, encoded),
        value=b"" if is_blob else content,
        blob=BlobRef(b"cid", len(content), "size-1048576") if is_blob else None,
        publisher=publisher,
        op_id=OpId(publisher[-16:] + created_at_us.to_bytes(16, "big")),
        created_at_us=TimestampUs(created_at_us),
        expires_at_us=TimestampUs(created_at_us + 1),
        content_type=CONTENT_TYPE,
        metadata={**announcement.metadata(), **(changes or {})},
        envelope=b"",
        answered=2,
    )
