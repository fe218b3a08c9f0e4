"""Walking a blob's DAG: from the root to its leaves, in the order of the content.

A *walk* is told nodes and tells leaves. It says which nodes it :meth:`~Walk.wanted`; whoever walks brings them with
:meth:`~Walk.give`, from a store or from peers, and takes leaves with :meth:`~Walk.next_leaf` until it is
:attr:`~Walk.done`. A *leaf* says which bytes [start, stop) of the blob its block holds. A walk may be of a part of the
blob; then it wants no node and tells no leaf that lies outside.

>>> from prime_dht.blobs.build import BlobBuilder
>>> from prime_dht.blobs.chunking import FixedChunker
>>> builder = BlobBuilder(FixedChunker())
>>> blocks = {block.cid: block.data for block in builder.feed(bytes(range(250)) * 10_000) + builder.finish()}
>>> walk = Walk(builder.root, start=2_000_000, stop=2_200_000)
>>> while not walk.done:
...     for cid in walk.wanted():
...         walk.give(cid, blocks[cid])
...     while leaf := walk.next_leaf():
...         print(range(leaf.start, leaf.stop), len(walk.part(leaf, blocks[leaf.cid])))
range(1048576, 2097152) 97152
range(2097152, 2500000) 102848

It wants the node it is at and, so that nobody waits at the end of each node, up to two further ones on every level. It
holds these, and the links of the nodes above: less than a megabyte for each level of nodes.

**Bounds.** Who made a DAG may be hostile; blocks are verified by their CIDs, but they may say anything. A cycle cannot
be, for a node cannot contain its own hash, but a few blocks can stand for endlessly many. So what a parent says of a
child's size must be what the child says, no link is empty, a leaf has at most 2 MiB, and nodes lie at most 8 deep: then
the number of leaves is bounded by the size that the blob is said to have, which the caller has checked. And, on
average, leaves have at least 256 bytes, but for the first 1,024: no chunker makes smaller ones.

*Each once.* Whoever keeps blocks by their content need not be told again what is under a node that the walk has been
at. Then the work is bounded by the bytes of the nodes, not by what they stand for, as long as there are no more than
``MAX_REMEMBERED`` different ones; to go beyond that, whoever made the DAG has to send that many.
"""

from __future__ import annotations

from dataclasses import dataclass

from prime_dht.blobs.cid import BlockBytes, Cid, Codec
from prime_dht.blobs.unixfs import MAX_BLOCK_BYTES, Node, decode_node
from prime_dht.errors import BlobError, ValidationError

MAX_DEPTH = 8
"""Levels of nodes above the leaves. Three reach 1 PiB with the profile's chunks and links."""

MIN_MEAN_LEAF_BYTES = 256
FREE_LEAVES = 1024
"""So many leaves a blob may have whatever its size, and one more for every ``MIN_MEAN_LEAF_BYTES``."""

MAX_REMEMBERED = 1 << 16
"""Nodes that a walk remembers which tells each block once; with the profile's chunks and links, of 11 TiB."""

_AHEAD = 2


@dataclass(frozen=True, slots=True)
class Piece:
    """A block, a leaf or a node, and the bytes [start, stop) of the blob that it stands for."""

    cid: Cid
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


class Walk:
    """One walk over a blob, or over the bytes [start, stop) of it. See the module.

    Args:
        root: the blob's name.
        size: how many bytes the blob is said to have; it must have them. ``None``: as many as the root says.
        start, stop: which part of it, ``None`` for to the end. There is nothing behind the end.
        each_once: of the whole blob, do not tell again what is under a node that comes several times, nor a leaf that
            a node has several times.

    Attributes:
        repeated_bytes: what was not told again.

    Raises:
        BlobError: the root is a leaf, and of this size no leaf can be.
        ValidationError: there is no such part.
    """

    def __init__(
        self, root: Cid, *, size: int | None = None, start: int = 0, stop: int | None = None, each_once: bool = False
    ) -> None:
        assert not each_once or (start, stop) == (0, None), "a node that a part cuts through was not walked whole"
        if start < 0 or (stop is not None and stop < 0):
            raise ValidationError(f"bytes [{start}, {'' if stop is None else stop}) of a blob: they count from 0")
        self.root = root
        self.size = size
        self.repeated_bytes = 0
        self._start = start
        self._stop = stop
        self._each_once = each_once
        self._walked: dict[tuple[Cid, int], None] = {}  # nodes and their sizes, if each is told once
        self._leaves_told = 0
        self._given: dict[Cid, Node] = {}
        self._levels: list[list[Piece]] = []  # from the root: the siblings still to come, the next one last
        if size is not None:
            self._begin(size)

    @property
    def done(self) -> bool:
        """Whether all leaves have been told."""
        return self.size is not None and not self._levels

    @property
    def part_bytes(self) -> int | None:
        """How many bytes the part has that is walked; ``None`` as long as no size is known."""
        if self.size is None:
            return None
        return self.bytes_of(Piece(self.root, 0, self.size))

    def bytes_of(self, piece: Piece) -> int:
        """How many of its bytes belong to the part of the blob that is walked."""
        stop = piece.stop if self._stop is None else min(piece.stop, self._stop)
        return max(stop - max(piece.start, self._start), 0)

    def wanted(self) -> tuple[Cid, ...]:
        """The blocks to give, the most urgent first: nodes; and the root, also if it is a leaf, if no size was told."""
        if self.size is None:
            return (self.root,)
        near = (piece for siblings in reversed(self._levels) for piece in reversed(siblings[-_AHEAD:]))
        nodes = (piece.cid for piece in near if piece.cid.codec is Codec.DAG_PB and not self._was_walked(piece))
        return tuple(dict.fromkeys(cid for cid in nodes if cid not in self._given))

    def give(self, cid: Cid, block: BlockBytes) -> None:
        """A block that is wanted, verified by its CID; others are ignored.

        Raises:
            BlobError: it is no node of a blob. There is no use in going on.
        """
        if cid not in self.wanted():
            return
        if cid.codec is Codec.DAG_PB:
            self._given[cid] = decode_node(block)
        if self.size is None:
            self.size = self._given[cid].size if cid in self._given else len(block)
            self._begin(self.size)

    def next_leaf(self) -> Piece | None:
        """The next leaf; ``None`` if a node is wanted for it first, or if there are no more.

        Raises:
            BlobError: the DAG breaks a rule (see the module). There is no use in going on.
        """
        while self._levels:
            siblings = self._levels[-1]
            if not siblings:
                self._levels.pop()
                continue
            piece = siblings[-1]
            if piece.cid.codec is Codec.RAW:
                siblings.pop()
                return self._leaf(piece)
            if self._was_walked(piece):
                siblings.pop()
                self.repeated_bytes += piece.size
                continue
            if piece.cid not in self._given:
                return None
            siblings.pop()
            self._descend(piece, self._given.pop(piece.cid))
        return None

    def part(self, leaf: Piece, block: BlockBytes) -> memoryview:
        """Of a leaf's block the bytes that belong to the part of the blob that is walked.

        Raises:
            BlobError: the block has another size than the DAG says.
        """
        if len(block) != leaf.size:
            raise BlobError(f"a leaf of blob {self.root} has {len(block)} bytes where the DAG says {leaf.size}")
        stop = leaf.stop if self._stop is None else min(leaf.stop, self._stop)
        return memoryview(block)[max(self._start - leaf.start, 0) : stop - leaf.start]

    def _begin(self, size: int) -> None:
        self._levels.append(self._checked([Piece(self.root, 0, size)]))

    def _descend(self, piece: Piece, node: Node) -> None:
        if node.size != piece.size:
            raise BlobError(f"a node of blob {self.root} has {node.size} bytes where {piece.size} were said")
        if len(self._levels) > MAX_DEPTH:
            raise BlobError(f"blob {self.root} has more than {MAX_DEPTH} levels of nodes")
        children: list[Piece] = []
        start = piece.start
        for link in node.links:
            children.append(Piece(link.cid, start, start + link.size))
            start += link.size
        if self._each_once:
            self._remember(piece)
            children = self._once(children)
        children.reverse()
        self._levels.append(self._checked(children))

    def _was_walked(self, piece: Piece) -> bool:
        return self._each_once and (piece.cid, piece.size) in self._walked

    def _remember(self, node: Piece) -> None:
        self._walked[node.cid, node.size] = None
        if len(self._walked) > MAX_REMEMBERED:
            del self._walked[next(iter(self._walked))]

    def _once(self, children: list[Piece]) -> list[Piece]:
        """Of children that are the same the first."""
        first: dict[tuple[Cid, int], Piece] = {}
        for child in children:
            if first.setdefault((child.cid, child.size), child) is not child:
                self.repeated_bytes += child.size
        return list(first.values())

    def _checked(self, pieces: list[Piece]) -> list[Piece]:
        """Those that are walked."""
        for piece in pieces:
            if piece.cid.codec is Codec.RAW and piece.size > MAX_BLOCK_BYTES:
                raise BlobError(f"blob {self.root} has a leaf of {piece.size} bytes; it is at most {MAX_BLOCK_BYTES}")
        return [piece for piece in pieces if self._is_in_part(piece)]

    def _is_in_part(self, piece: Piece) -> bool:
        if not piece.size:  # only of empty content, which is one empty leaf
            return True
        return self._start < piece.stop and (self._stop is None or piece.start < self._stop)

    def _leaf(self, leaf: Piece) -> Piece:
        self._leaves_told += 1
        if self._leaves_told > FREE_LEAVES + (self.size or 0) // MIN_MEAN_LEAF_BYTES:
            raise BlobError(f"blob {self.root} has too many leaves for its {self.size} bytes")
        return leaf
