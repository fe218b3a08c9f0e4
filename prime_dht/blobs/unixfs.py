"""Nodes: the blocks of a blob that hold links, as UnixFS files in dag-pb.

A blob is a tree of blocks. Its *leaves* are raw blocks: the content, cut into chunks, nothing added. A *node* is a
block of codec dag-pb that lists its children in order; for each, its CID, its *size*, which is how many bytes of the
blob it stands for, and its *Tsize*, which is how many bytes it and all blocks under it have together. Nodes hold no
content. A blob of one chunk is that leaf, without any node.

A node is two protobuf messages, one within the other. dag-pb has the CIDs and Tsizes, UnixFS the sizes::

    PBNode { 2: PBLink { 1: CID, 2: name (empty), 3: Tsize } ...,
             1: Data { 1: 2 (a file), 3: size, 4: child's size ... } }

dag-pb puts the links before the data, against the order of field numbers, and so every byte of a node is fixed by its
links, as is its CID. A full node of 1,024 chunks of 1 MiB is about 51 kB and stands for 1 GiB:

>>> chunk = Link(cid=Cid.of_raw(b"..."), size=1 << 20, tsize=1 << 20)
>>> full = encode_node([chunk] * MAX_LINKS)
>>> len(full)
51211
>>> decode_node(full).size
1073741824

**Bounds.** What a peer sends is decoded only if it is exactly what :func:`encode_node` makes of the same links, of
which there are 1 to 1,024, none of them empty. This refuses what UnixFS has and blobs have not (directories, names,
modes and times, content beside links) and every other way to write the same thing. The size of a node is the sum of
its children's; that its parent says the same is for whoever has both to check (:mod:`prime_dht.blobs.walk`). Nothing
relies on a Tsize, so a lie in it does no harm.

Source: the dag-pb and UnixFS specifications of IPFS, and IPIP-499, whose profile ``unixfs-v1-2025`` this is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prime_dht.blobs.cid import CID_BYTES, BlockBytes, Cid
from prime_dht.errors import BlobError, ValidationError

MAX_BLOCK_BYTES = 2 << 20
"""No block is larger, leaf or node; bitswap has the same bound."""

MAX_LINKS = 1024
"""Of one node. The profile's width; DAGs made with fewer, like the 174 of older importers, can be read as well."""

_LINK = 0x12
_DATA = 0x0A
_LINK_HASH = bytes((0x0A, CID_BYTES))
_LINK_NAME_TSIZE = b"\x12\x00\x18"
_FILE_SIZE = b"\x08\x02\x18"
_CHILD_SIZE = 0x20

_MAX_VARINT = (1 << 63) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A child of a node: its CID, how many bytes of the blob it stands for, and how many its blocks have together."""

    cid: Cid
    size: int
    tsize: int


@dataclass(frozen=True, slots=True)
class Node:
    """A block that lists its children, in the order of the content."""

    links: tuple[Link, ...]

    @property
    def size(self) -> int:
        """How many bytes of the blob it stands for."""
        return sum(link.size for link in self.links)


def encode_node(links: Sequence[Link]) -> bytes:
    """The block with these links: the only one."""
    out = bytearray()
    for link in links:
        body = _LINK_HASH + bytes(link.cid) + _LINK_NAME_TSIZE + _varint(link.tsize)
        out += bytes((_LINK, len(body))) + body
    data = bytearray(_FILE_SIZE + _varint(sum(link.size for link in links)))
    for link in links:
        data += bytes((_CHILD_SIZE,)) + _varint(link.size)
    return bytes(out + bytes((_DATA,)) + _varint(len(data)) + data)


def decode_node(block: BlockBytes) -> Node:
    """Read a node. See the module for what is refused.

    Raises:
        BlobError: the block is no node of a blob.
    """
    if len(block) > MAX_BLOCK_BYTES:
        raise BlobError(f"a node of {len(block)} bytes; a block has at most {MAX_BLOCK_BYTES}")
    try:
        links = _read_links(block)
    except (IndexError, ValidationError) as error:
        raise BlobError(f"not a node of a blob: {error}") from error
    if encode_node(links) != block:
        raise BlobError("not a node of a blob: something other than links and sizes of a file, or written another way")
    return Node(tuple(links))


def _read_links(block: BlockBytes) -> list[Link]:
    """Read what is expected where it is expected; that nothing else was there shows when it is encoded again."""
    found: list[tuple[Cid, int]] = []
    at = 0
    while block[at] == _LINK:
        if len(found) == MAX_LINKS:
            raise ValidationError(f"a node with more than {MAX_LINKS} links")
        at += 2 + len(_LINK_HASH)
        cid = Cid.from_bytes(block[at : at + CID_BYTES])
        tsize, at = _read_varint(block, at + CID_BYTES + len(_LINK_NAME_TSIZE))
        found.append((cid, tsize))
    if not found:
        raise ValidationError("no links")
    _, at = _read_varint(block, at + 1)
    _, at = _read_varint(block, at + len(_FILE_SIZE))
    links: list[Link] = []
    for cid, tsize in found:
        size, at = _read_varint(block, at + 1)
        if size == 0:
            raise ValidationError("a link to nothing")
        links.append(Link(cid=cid, size=size, tsize=tsize))
    return links


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(block: BlockBytes, at: int) -> tuple[int, int]:
    """The number at a place, and the place behind it; IndexError where the block ends within."""
    value = shift = 0
    while True:
        byte = block[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            break
        shift += 7
        if shift > 63:
            raise ValidationError("a number of more than 9 bytes")
    if value > _MAX_VARINT:
        raise ValidationError("a number of more than 63 bits")
    return value, at
