"""Chunking: where the content of a blob is cut into the leaves of its DAG.

A *chunker* is fed the content in pieces of any size and returns *chunks*, whose concatenation is the content. Where it
cuts depends on the content alone, never on the pieces, so that equal content gives equal CIDs; besides the pieces it
holds about a chunk. No chunk is larger than 1 MiB, and none is empty, unless the content is.

The *fixed* chunker cuts every 1 MiB, as the profile ``unixfs-v1-2025`` has it. Bytes inserted near the beginning of a
file change every chunk behind them. The *tensor* chunker cuts safetensors files where tensors begin, so that
checkpoints share the chunks of the tensors that they share; see :mod:`prime_dht.blobs.tensors` for where. Any other
content it cuts as the fixed one does.

>>> chunker = FixedChunker()
>>> [len(chunk) for chunk in chunker.feed(bytes(2_000_000)) + chunker.finish()]
[1048576, 951424]
>>> FixedChunker().finish()
[b'']
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, repeat
from types import MappingProxyType
from typing import Protocol

from prime_dht.blobs.tensors import LENGTH_BYTES, MAX_HEADER_BYTES, spans_of

CHUNK_BYTES = 1 << 20
"""At most, of one chunk."""


class Chunker(Protocol):
    """Cuts one content into chunks. Finish it once; then it is spent."""

    @property
    def name(self) -> str:
        """What a blob's entry says of how the blob was cut."""

    def feed(self, data: bytes) -> list[bytes]:
        """The next bytes of the content; returns the chunks that became complete."""

    def finish(self) -> list[bytes]:
        """The content has ended: what was left. Content without bytes is one empty chunk."""


class _Cutter:
    """Cuts a stream into pieces of lengths that are known beforehand, all above 0 and without end."""

    def __init__(self, lengths: Iterator[int]) -> None:
        self._lengths = lengths
        self._length = next(lengths)
        self._kept = bytearray()
        self._has_cut = False

    def feed(self, data: bytes) -> list[bytes]:
        if not self._kept and len(data) < self._length:
            self._kept += data
            return []
        chunks: list[bytes] = []
        rest = memoryview(data)
        while len(self._kept) + len(rest) >= self._length:
            taken = self._length - len(self._kept)
            chunks.append(b"".join((self._kept, rest[:taken])))
            rest = rest[taken:]
            self._kept.clear()
            self._length = next(self._lengths)
        self._kept += rest
        self._has_cut = self._has_cut or bool(chunks)
        return chunks

    def finish(self) -> list[bytes]:
        return [bytes(self._kept)] if self._kept or not self._has_cut else []


class FixedChunker(_Cutter):
    """Cuts every 1 MiB."""

    name = "size-1048576"

    def __init__(self) -> None:
        super().__init__(repeat(CHUNK_BYTES))


class TensorChunker:
    """Cuts safetensors files where their tensors begin, and other content every 1 MiB.

    Until the header is complete it holds what it was fed: at most ``MAX_HEADER_BYTES`` and a piece.
    """

    name = "safetensors-1"

    def __init__(self) -> None:
        self._head: bytearray | None = bytearray()
        self._cutter = _Cutter(repeat(CHUNK_BYTES))

    def feed(self, data: bytes) -> list[bytes]:
        if self._head is None:
            return self._cutter.feed(data)
        self._head += data
        if len(self._head) < LENGTH_BYTES:
            return []
        header_bytes = int.from_bytes(self._head[:LENGTH_BYTES], "little")
        if header_bytes > MAX_HEADER_BYTES:
            return self._cut_head([])
        if len(self._head) < LENGTH_BYTES + header_bytes:
            return []
        return self._cut_head(spans_of(bytes(self._head[LENGTH_BYTES : LENGTH_BYTES + header_bytes])))

    def finish(self) -> list[bytes]:
        chunks = [] if self._head is None else self._cut_head([])
        return chunks + self._cutter.finish()

    def _cut_head(self, spans: list[int]) -> list[bytes]:
        """What lies in each span is known now, or that there are none: cut what was held back."""
        head, self._head = self._head, None
        self._cutter = _Cutter(chain(_lengths(spans), repeat(CHUNK_BYTES)))
        return self._cutter.feed(bytes(head or b""))


def _lengths(spans: Iterable[int]) -> Iterator[int]:
    """The lengths of the chunks of spans; drawn one by one, for a span may claim to be of any length."""
    for span in spans:
        yield from repeat(CHUNK_BYTES, span // CHUNK_BYTES)
        if span % CHUNK_BYTES:
            yield span % CHUNK_BYTES


CHUNKERS: Mapping[str, Callable[[], Chunker]] = MappingProxyType(
    {FixedChunker.name: FixedChunker, TensorChunker.name: TensorChunker}
)
"""By the name that a blob's entry has of it."""
