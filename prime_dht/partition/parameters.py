"""What two nodes must agree on before they can compare: unit, factor and sector bits.

Time is measured in *units*, 15 minutes by default, from the Unix epoch. Slices last a power of two of units: a full
slice 2**factor, and partial ones 2**(factor − 1), …, 2, 1. One partial slice of each size up to 2**power together last
``residual_us(power)``:

>>> PARAMETERS.full_us // 1_000_000, "seconds, which is 5.33 days"
(460800, 'seconds, which is 5.33 days')
>>> [residual_us(power, unit_us=1) for power in (0, 1, 2, 5)]
[1, 3, 7, 63]

There are 2**sector_bits sectors. A node's arc is never smaller than one sector, so this number bounds the size of a
swarm in which nodes still share the load: with n nodes and r replicas, arcs come to about log2(n / 2r) bits of prefix.
At r = 3, 9 bits serve 3,000 nodes, and 12 bits 25,000. Each sector costs memory: 40 bytes in every slice that holds an
op, and 3 KiB for its sketch.

The reference says full slices in whole seconds. Here time is exact, in integer microseconds; with a unit of whole
seconds both are the same, because ⌊⌊x⌋ / n⌋ = ⌊x / n⌋ for every whole n.
"""

from __future__ import annotations

from dataclasses import dataclass

from prime_dht.errors import ConfigError

MAX_FACTOR = 53
"""The reference's: with the default unit, the seconds of anything larger do not fit into 64 bits."""

MAX_UNIT_US = (1 << 63) - 1
"""The last time there is. Arrays of times are 64 bits wide."""

MIN_SECTOR_BITS, MAX_SECTOR_BITS = 5, 12
"""From one 32-bit word of an encoded arc set, to 12 MiB of sketches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionParameters:
    """The parameters of a network's partition. Nodes whose parameters differ cannot compare.

    Attributes:
        unit_us: how long the smallest slice lasts, in microseconds, in [1, 2**63); ops also retire at multiples of
            it.
        factor: a full slice lasts 2**factor units; in [1, 53].
        sector_bits: there are 2**sector_bits sectors; in [5, 12].

    Raises:
        ConfigError: a number is out of range.
    """

    unit_us: int = 15 * 60 * 1_000_000
    factor: int = 9
    sector_bits: int = 9

    def __post_init__(self) -> None:
        if not 1 <= self.unit_us <= MAX_UNIT_US:
            raise ConfigError(f"unit_us is in [1, {MAX_UNIT_US}], not {self.unit_us}")
        if not 1 <= self.factor <= MAX_FACTOR:
            raise ConfigError(f"factor is in [1, {MAX_FACTOR}], not {self.factor}")
        if not MIN_SECTOR_BITS <= self.sector_bits <= MAX_SECTOR_BITS:
            raise ConfigError(f"sector_bits is in [{MIN_SECTOR_BITS}, {MAX_SECTOR_BITS}], not {self.sector_bits}")

    @property
    def full_units(self) -> int:
        """How many units a full slice lasts."""
        return 1 << self.factor

    @property
    def full_us(self) -> int:
        """How long a full slice lasts."""
        return self.full_units * self.unit_us

    @property
    def min_recent_us(self) -> int:
        """How much of the time before now partial slices cover at least: one of each size, 511 units by default."""
        return residual_us(self.factor - 1, unit_us=self.unit_us)

    @property
    def sector_count(self) -> int:
        return 1 << self.sector_bits


def residual_us(power: int, *, unit_us: int) -> int:
    """How long one slice of each of the sizes 1, 2, …, 2**power units last together.

    Raises:
        ConfigError: ``power`` is not in [0, 53].
    """
    if not 0 <= power <= MAX_FACTOR:
        raise ConfigError(f"the power of a slice's size is in [0, {MAX_FACTOR}], not {power}")
    return ((2 << power) - 1) * unit_us


PARAMETERS = PartitionParameters()
"""The defaults."""
