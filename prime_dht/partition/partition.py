"""The partition: what a node keeps in memory to compare its data with another's, in step with its store.

A partition never looks at the store. It is told of every op that comes and goes, *once*, which makes it idempotent
although XOR is not: the store says what really happened, and only that counts.

==========================================================  ==================================
the store says                                              tell the partition
==========================================================  ==================================
an entry was inserted, and it is an op                      :meth:`Partition.insert` it
a duplicate, superseded, refused                            nothing
an op was displaced from its slot, or evicted, or removed   :meth:`Partition.remove` it
ops retired at a tick                                       :meth:`Partition.remove_batch` them
==========================================================  ==================================

What a partition holds is derived data. It is never stored, but made anew from all ops at start, so an error cannot
outlive the process, and slices need not be computed before they can be used.

**The clock** is right, give or take some minutes. One that is set back by more leaves the layout ahead of that of every
other node until the time has come, and nobody can compare with it: better make the partition anew. And before data of a
year are loaded under a clock that still stands at 1970, better wait for the clock: all of them would be in the tail,
which is kept by unit, and take 700 MB instead of 2.

>>> from prime_dht.partition.parameters import PARAMETERS
>>> partition = Partition(PARAMETERS, now_us=1_800_000_001_000_000)
>>> partition.layout.full_count, partition.layout.ring_sizes
(3905, (256, 128, 128, 64, 32, 16, 8, 4, 2, 1, 1))
>>> partition.insert(bytes(31) + b"\\x05", 0x818FA957, 1_799_999_999_000_000)
>>> partition.insert(bytes(31) + b"\\x03", 0x818FA957, 1_799_990_000_000_000)
>>> partition.advance(1_800_000_901_000_000), partition.op_count, partition.layout.ring_sizes
(True, 2, (256, 128, 128, 64, 32, 16, 8, 4, 2, 2, 1))
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from prime_dht.partition.cells import Cells
from prime_dht.partition.location import LOCATION_BITS, sector_of
from prime_dht.partition.parameters import PartitionParameters
from prime_dht.partition.sketch import SectorSketches
from prime_dht.partition.slices import Layout, layout_at


class Partition:
    """The cells and sketches of a set of ops, at a layout that only moves forward. See the module.

    Args:
        parameters: those of the network.
        now_us: the time; it alone decides the layout.

    Attributes:
        parameters: those of the network.
        cells: the combined hashes. Moving on replaces them.
        sketches: the coded symbols of each sector.
    """

    def __init__(self, parameters: PartitionParameters, *, now_us: int) -> None:
        self.parameters = parameters
        self.cells = Cells(layout_at(now_us, parameters))
        self.sketches = SectorSketches(parameters.sector_count)

    @property
    def layout(self) -> Layout:
        """Which slices there are."""
        return self.cells.layout

    @property
    def op_count(self) -> int:
        """How many ops are in it."""
        return self.cells.op_count

    @property
    def nbytes(self) -> int:
        """What its arrays take."""
        return self.cells.nbytes + self.sketches.nbytes

    def insert(self, op_id: bytes, location: int, created_at_us: int) -> None:
        """Add an op that is not in yet.

        Raises:
            ValidationError: the op id does not have 32 bytes, the location is none, or the time is not in [0, 2**63).
        """
        sector = sector_of(location, sector_bits=self.parameters.sector_bits)
        self.cells.insert(op_id, sector, created_at_us)
        self.sketches.insert(op_id, sector)

    def remove(self, op_id: bytes, location: int, created_at_us: int) -> None:
        """Take away an op that is in.

        Raises:
            ValidationError: as :meth:`insert`.
            LocalProtocolError: its cell is empty, so it was not in. Not every such mistake shows.
        """
        sector = sector_of(location, sector_bits=self.parameters.sector_bits)
        self.cells.remove(op_id, sector, created_at_us)
        self.sketches.remove(op_id, sector)

    def insert_batch(
        self, op_ids: NDArray[np.uint8], locations: NDArray[np.uint32], created_at_us: NDArray[np.int64]
    ) -> None:
        """Add ops that are not in yet, each once: a handful, or a page of all ops at start.

        Args:
            op_ids: of shape (n, 32).
            locations, created_at_us: of shape (n,).

        Raises:
            ValidationError: an array has another shape, or a time is negative.
        """
        sectors = self._sectors_of(locations)
        self.cells.insert_batch(op_ids, sectors, created_at_us)
        self.sketches.insert_batch(op_ids, sectors)

    def remove_batch(
        self, op_ids: NDArray[np.uint8], locations: NDArray[np.uint32], created_at_us: NDArray[np.int64]
    ) -> None:
        """Take away ops that are in, each once.

        Raises:
            ValidationError: as :meth:`insert_batch`.
            LocalProtocolError: a cell has fewer ops than are taken away; then none is.
        """
        sectors = self._sectors_of(locations)
        self.cells.remove_batch(op_ids, sectors, created_at_us)
        self.sketches.remove_batch(op_ids, sectors)

    def advance(self, now_us: int) -> bool:
        """Move on to the layout at ``now_us``; returns whether that is another one. See ``layout.next_update_us``.

        A clock that was set back changes nothing: the layout waits for it to catch up. See the module.
        """
        layout = layout_at(now_us, self.parameters)
        if layout.since_us <= self.layout.since_us:
            return False
        self.cells = self.cells.moved_to(layout)
        return True

    def _sectors_of(self, locations: NDArray[np.uint32]) -> NDArray[np.int64]:
        return (locations >> (LOCATION_BITS - self.parameters.sector_bits)).astype(np.int64)
