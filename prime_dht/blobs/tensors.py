"""Where a safetensors file is cut, so that files that share tensors share chunks.

A safetensors file is the length of its header (8 bytes, little-endian), the header, and the tensors' bytes. The header
is JSON, ``{name: {"dtype": …, "shape": …, "data_offsets": [start, stop]}, …}``, with offsets from the header's end; the
tensors lie there without gaps or overlaps. It is cut into *spans*:

- the header with its length, so that a header of another size moves nothing else;
- each tensor, from its own first byte, so that a tensor has the same chunks wherever it lies in a file;
- but tensors under 4 KiB share a span with the small ones directly before them, up to 64 KiB, because a block of a few
  bytes costs more to name, ask for and keep than it has. Where such a group begins must not depend on how many small
  tensors lie before it, or one that is inserted would change all groups behind it. So one tensor in 16, by the SHA-256
  of its name, begins a new group: what an insertion changes ends there.

A span of more than 1 MiB is cut every 1 MiB from its beginning (:mod:`prime_dht.blobs.chunking`). Two files that differ
in one tensor differ in the chunks of the header and of that tensor; in a tensor of many MiB only in those that differ.

>>> norm, weight = '"norm":{"data_offsets":[0,512]}', '"weight":{"data_offsets":[512,8388608]}'
>>> spans_of(f"{{{norm},{weight}}}".encode())
[81, 512, 8388096]
>>> spans_of(b"no JSON")
[]

**Bounds.** A header of more than 4 MiB (some 40,000 tensors), one that is no such JSON, and offsets that overlap or
leave gaps mean that the content is not a safetensors file, or none to be cut by tensors. That is no error: there are no
spans then. Spans may promise more bytes than there are: a header can say what it likes, and only cuts depend on it.

Source: the format's description in https://github.com/huggingface/safetensors.
"""

from __future__ import annotations

import hashlib
import json
from typing import cast

LENGTH_BYTES = 8
"""Of the header's length, at the beginning of the file."""

MAX_HEADER_BYTES = 4 << 20
"""Longer headers are not read."""

SMALL_BYTES = 4 << 10
"""A tensor under this shares a span with its small neighbours."""

MAX_GROUP_BYTES = 64 << 10
"""What small tensors in one span have together at most."""

_MAX_OFFSET = 1 << 62
_GROUP_BEGINS_BELOW = 256 // 16  # of the first byte of a name's SHA-256: for one name in 16


def spans_of(header: bytes) -> list[int]:
    """The lengths of the spans of a file with this header, in order, all above 0; none if it is no such file."""
    try:
        sizes = _sizes_by_name(json.loads(header.decode()))
        return [LENGTH_BYTES + len(header), *_grouped(sizes)]
    except (ValueError, RecursionError):  # no UTF-8, no JSON, nested too deeply, or not the header of a file
        return []


def _sizes_by_name(header: object) -> list[tuple[str, int]]:
    """Names and sizes of the tensors, in the order of their bytes; ValueError if they do not lie end to end."""
    if not isinstance(header, dict):
        raise ValueError("not an object")
    tensors = [(*_offsets(about), str(name)) for name, about in header.items() if name != "__metadata__"]
    sizes: list[tuple[str, int]] = []
    end = 0
    for start, stop, name in sorted(tensors):
        if start != end or stop < start:
            raise ValueError("a gap or an overlap")
        sizes.append((name, stop - start))
        end = stop
    return sizes


def _offsets(about: object) -> tuple[int, int]:
    if not isinstance(about, dict):
        raise ValueError("not a tensor")
    offsets = about.get("data_offsets")
    if not isinstance(offsets, list) or len(offsets) != 2:
        raise ValueError("no offsets")
    if not all(type(offset) is int and offset < _MAX_OFFSET for offset in offsets):
        raise ValueError("offsets that cannot be")
    return cast("tuple[int, int]", tuple(offsets))


def _grouped(sizes: list[tuple[str, int]]) -> list[int]:
    spans: list[int] = []
    group_bytes = 0
    for name, size in sizes:
        is_small = size < SMALL_BYTES
        if group_bytes and not (is_small and group_bytes + size <= MAX_GROUP_BYTES and not _begins_group(name)):
            spans.append(group_bytes)
            group_bytes = 0
        if is_small:
            group_bytes += size
        else:
            spans.append(size)
    return [*spans, group_bytes] if group_bytes else spans


def _begins_group(name: str) -> bool:
    return hashlib.sha256(name.encode()).digest()[0] < _GROUP_BEGINS_BELOW
