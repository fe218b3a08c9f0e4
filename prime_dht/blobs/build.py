"""Building a blob's DAG: chunks in, blocks out, the root at the end.

The leaves come in order. Every 1,024 of them make a node, as many of these a node of the level above, and so on; the
last node of each level has what is left. The level with a single block is the root::

    level 2                         root
    level 1          node(1,024)            node(76)
    level 0      leaf  leaf  …  leaf     leaf  …  leaf        1,100 leaves of 1 MiB

This is the *balanced* layout of the profile: all leaves lie equally deep, so that a node may have a single link: 1,025
leaves make a root over a node of 1,024 and a node of 1. A node leaves as soon as it is complete, so that a builder
holds at most 1,023 links of each level, whatever the size of the blob; with chunks of 1 MiB three levels of nodes reach
1 PiB.

Blocks come out of :class:`BlobBuilder` in the order in which they are complete, each node behind all that is under it.
If they are stored in that order, whatever is found in a store has all its children there, even after a crash.

>>> from prime_dht.blobs.chunking import FixedChunker
>>> builder = BlobBuilder(FixedChunker())
>>> blocks = builder.feed(bytes(1_500_000)) + builder.finish()
>>> [(block.cid.codec.name, len(block.data)) for block in blocks]
[('RAW', 1048576), ('RAW', 451424), ('DAG_PB', 108)]
>>> builder.root == blocks[-1].cid, builder.size
(True, 1500000)
"""

from __future__ import annotations

from dataclasses import dataclass, field

from prime_dht.blobs.chunking import Chunker
from prime_dht.blobs.cid import Cid
from prime_dht.blobs.unixfs import MAX_LINKS, Link, encode_node
from prime_dht.errors import BlobError


@dataclass(frozen=True, slots=True)
class Block:
    """A block and its name."""

    cid: Cid
    data: bytes = field(repr=False)


class DagBuilder:
    """The nodes over leaves that are told one after the other."""

    def __init__(self, links_per_node: int = MAX_LINKS) -> None:
        self._links_per_node = links_per_node
        self._levels: list[list[Link]] = [[]]

    def add(self, leaf: Cid, size: int) -> list[Block]:
        """The next leaf, and how many bytes it has; returns the nodes that became complete, the lowest first."""
        nodes: list[Block] = []
        self._add(0, Link(cid=leaf, size=size, tsize=size), nodes)
        return nodes

    def finish(self) -> tuple[Cid, list[Block]]:
        """There are no more leaves: the root, and the nodes that were left, the root last if it is a node.

        Raises:
            BlobError: there was no leaf at all; even empty content has one.
        """
        nodes: list[Block] = []
        level = 0
        while level < len(self._levels) - 1 or len(self._levels[level]) > 1:
            if self._levels[level]:
                self._close(level, nodes)
            level += 1
        if not self._levels[level]:
            raise BlobError("a DAG has at least one leaf")
        return self._levels[level][0].cid, nodes

    def _add(self, level: int, link: Link, nodes: list[Block]) -> None:
        if level == len(self._levels):
            self._levels.append([])
        self._levels[level].append(link)
        if len(self._levels[level]) == self._links_per_node:
            self._close(level, nodes)

    def _close(self, level: int, nodes: list[Block]) -> None:
        links, self._levels[level] = self._levels[level], []
        data = encode_node(links)
        node = Block(Cid.of_dag_pb(data), data)
        nodes.append(node)
        size = sum(link.size for link in links)
        tsize = len(data) + sum(link.tsize for link in links)
        self._add(level + 1, Link(cid=node.cid, size=size, tsize=tsize), nodes)


class BlobBuilder:
    """From content to blocks. Feed it, store the blocks it returns, finish it; then it has a root and a size."""

    def __init__(self, chunker: Chunker) -> None:
        self.chunker = chunker.name
        self.size = 0
        self.root: Cid | None = None
        self._chunker = chunker
        self._dag = DagBuilder()

    def feed(self, data: bytes) -> list[Block]:
        """The next bytes of the content, in pieces of any size; returns the blocks that became complete.

        It hashes what it returns, at about 1 GB/s: for megabytes call it in a worker thread.
        """
        self.size += len(data)
        return self._add(self._chunker.feed(data))

    def finish(self) -> list[Block]:
        """The content has ended: the blocks that were left. The last block of all is :attr:`root`."""
        blocks = self._add(self._chunker.finish())
        self.root, nodes = self._dag.finish()
        return blocks + nodes

    def _add(self, chunks: list[bytes]) -> list[Block]:
        blocks: list[Block] = []
        for chunk in chunks:
            leaf = Block(Cid.of_raw(chunk), chunk)
            blocks.append(leaf)
            blocks += self._dag.add(leaf.cid, len(chunk))
        return blocks
