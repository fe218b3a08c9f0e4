"""How time is cut into slices at an instant, and how the slices of one instant become those of a later one.

Slices are intervals [start, end), counted in units from the Unix epoch. From the epoch on there are full slices of
2**factor units; then *rings*, the partial slices, larger before smaller, one or two of each size 2**(factor − 1), …, 2,
1; then the *tail*, which has no end. A :class:`Layout` says which slices there are. It is a function of the time alone:

- There are ⌊(now − 511 U) / 512 U⌋ full slices, so that at least 511 units are left for one ring of each size.
- For each size from the largest down: two rings if *more* time is left than they and one ring of every smaller size
  would take, one if more time is left than it takes, else none. A unit counts once it is past: at its very end it is
  still the tail. So the tail is up to one unit old, and up to all of the future long.

With a factor of 3, a full slice is 8 units. Write f for the number of full slices and list the rings:

>>> tiny = PartitionParameters(unit_us=10, factor=3)
>>> for units in (0, 1, 7, 8, 9, 14, 15, 16):
...     layout = layout_at(units * 10 + 1, tiny)
...     print(f"{units:2} units: f = {layout.full_count},", *layout.ring_sizes)
 0 units: f = 0,
 1 units: f = 0, 1
 7 units: f = 0, 4 2 1
 8 units: f = 0, 4 2 1 1
 9 units: f = 0, 4 2 2 1
14 units: f = 0, 4 4 2 2 1 1
15 units: f = 1, 4 2 1
16 units: f = 1, 4 2 1 1

From 7 to 14 units the rings count in binary with the digits 1 and 2 instead of 0 and 1; that is all there is to the
rule. So between any layout and a later one only three things happen, and a node that keeps something for each slice
which can be combined, such as combined hashes, need never look at an op again:

- :class:`Append`: the first unit of the tail becomes a ring;
- :class:`Merge`: two adjacent rings of equal size become one;
- :class:`Promote`: the first two rings, of the largest size, become a full slice.

>>> every_unit = range(16)
>>> for step in steps_between(layout_at(14 * 10 + 1, tiny), layout_at(15 * 10 + 1, tiny), every_unit):
...     print(step)
Promote(start=0, size=4)
Merge(start=8, size=2)
Merge(start=12, size=1)
Append(unit=14)

**First start.** The reference derives the first layout from the data: the highest slice stored, or the earliest op. An
op that is dated far ahead then makes it fail. Here no op has any say: one dated ahead of now is in the tail.

**Two instants of one tick.** The number of full slices changes *at* a tick, that of rings just *after* one, so at the
one microsecond of a tick at which a full slice appears the layout is neither the old nor the new one. This is as in the
reference, and of no consequence: the steps lead through it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Protocol, Self, TypeVar, assert_never

from prime_dht.errors import LocalProtocolError, ValidationError
from prime_dht.partition.parameters import PartitionParameters, residual_us

END_OF_TIME_US = 1 << 63
"""Where the tail ends: no ``created_at_us`` is as large."""

LAYOUT_BYTES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Which slices there are. Made by :func:`layout_at`.

    Attributes:
        parameters: what unit and factor mean.
        full_count: how many full slices, from the epoch on.
        ring_sizes: how many units each ring lasts, in the order of time: never increasing, powers of two.
        disc_end: the unit at which the disc ends and the rings begin: the disc boundary.
        ring_starts: the unit at which each ring begins.
        tail_start: the unit at which the rings end and the tail begins.
    """

    parameters: PartitionParameters
    full_count: int
    ring_sizes: tuple[int, ...]
    # What follows from these is kept, because it is looked up for every op.
    disc_end: int = field(init=False, repr=False, compare=False)
    ring_starts: tuple[int, ...] = field(init=False, repr=False, compare=False)
    tail_start: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        disc_end = self.full_count << self.parameters.factor
        *ring_starts, tail_start = accumulate(self.ring_sizes, initial=disc_end)
        object.__setattr__(self, "disc_end", disc_end)
        object.__setattr__(self, "ring_starts", tuple(ring_starts))
        object.__setattr__(self, "tail_start", tail_start)

    @property
    def since_us(self) -> int:
        """The layout time: the first instant at which the layout is this one. It identifies the layout.

        It is 0 for the first of all layouts.
        """
        if not self.tail_start:
            return 0
        parameters = self.parameters
        promoted_us = self.full_count * parameters.full_us + parameters.min_recent_us if self.full_count else 0
        return max(self.tail_start * parameters.unit_us + 1, promoted_us)

    @property
    def next_update_us(self) -> int:
        """Until here the layout stays as it is; then the first unit of the tail is past."""
        return (self.tail_start + 1) * self.parameters.unit_us

    def start_of(self, unit: int) -> int:
        """The unit at which the slice that holds a unit begins; in the tail, the unit itself."""
        if unit >= self.tail_start:
            return unit
        if unit < self.disc_end:
            return unit >> self.parameters.factor << self.parameters.factor
        return self.ring_starts[bisect_right(self.ring_starts, unit) - 1]

    def slice_us(self, start: int) -> range:
        """The ``created_at_us`` [start, stop) of the full slice, the ring or the tail that begins at a unit.

        Raises:
            ValidationError: none of them begins there.
        """
        unit_us = self.parameters.unit_us
        if start == self.tail_start:
            return range(start * unit_us, END_OF_TIME_US)
        if 0 <= start < self.disc_end and start % self.parameters.full_units == 0:
            return range(start * unit_us, (start + self.parameters.full_units) * unit_us)
        if start in self.ring_starts:
            return range(start * unit_us, (start + self.ring_sizes[self.ring_starts.index(start)]) * unit_us)
        raise ValidationError(f"no slice begins at unit {start}")

    def has_slices_at(self, starts: Iterable[int]) -> bool:
        """Whether at each of these units a full slice, a ring or the tail begins."""
        recent, disc_end, full_units = {*self.ring_starts, self.tail_start}, self.disc_end, self.parameters.full_units
        return all(start in recent or (0 <= start < disc_end and not start % full_units) for start in starts)

    def encode(self) -> bytes:
        """The layout time as 8 bytes, big-endian."""
        return self.since_us.to_bytes(LAYOUT_BYTES, "big")

    @classmethod
    def decode(cls, raw: bytes, parameters: PartitionParameters) -> Layout:
        """Read an encoded layout.

        Raises:
            ValidationError: it has the wrong length, or no layout begins at that time.
        """
        if len(raw) != LAYOUT_BYTES:
            raise ValidationError(f"a layout time has {LAYOUT_BYTES} bytes, not {len(raw)}")
        since_us = int.from_bytes(raw, "big")
        layout = layout_at(since_us, parameters)
        if since_us >= END_OF_TIME_US or layout.since_us != since_us:
            raise ValidationError(f"no layout begins at {since_us} µs")
        return layout


def layout_at(now_us: int, parameters: PartitionParameters) -> Layout:
    """The layout at an instant, of any sign. Before the first unit is past there is only the tail."""
    full_count = max(0, (now_us - parameters.min_recent_us) // parameters.full_us)
    past = max(0, (now_us - 1) // parameters.unit_us)
    left = past - full_count * parameters.full_units
    ring_sizes: list[int] = []
    for power in reversed(range(parameters.factor)):
        size = 1 << power
        count = 2 if left >= size + residual_us(power, unit_us=1) else 1 if left >= size else 0
        ring_sizes += [size] * count
        left -= size * count
    return Layout(parameters=parameters, full_count=full_count, ring_sizes=tuple(ring_sizes))


@dataclass(frozen=True, slots=True)
class Append:
    """The first unit of the tail becomes a ring."""

    unit: int


@dataclass(frozen=True, slots=True)
class Merge:
    """The ring of ``size`` units that begins at unit ``start``, and the one of the same size after it, become one."""

    start: int
    size: int


@dataclass(frozen=True, slots=True)
class Promote:
    """The first two rings, of ``size`` units each and beginning at unit ``start``, become a full slice."""

    start: int
    size: int


Step = Append | Merge | Promote


def steps_between(before: Layout, after: Layout, held: Iterable[int]) -> list[Step]:
    """The steps that make the slices of ``before`` those of ``after``, in order, as far as they move anything.

    So their number is bounded by what is held, times factor + 1, even if a clock that stood at 1970 is set right.

    Args:
        before, after: the layouts.
        held: the units at which the slices begin that hold something; units of the tail among them.

    Raises:
        LocalProtocolError: ``after`` is the earlier one, or the two are of different parameters.
    """
    if before.parameters != after.parameters or before.since_us > after.since_us:
        raise LocalProtocolError("a layout only moves forward, and only to one of the same parameters")
    steps: list[Step] = []
    sizes = dict(zip(before.ring_starts, before.ring_sizes, strict=True))
    moving = sorted(start for start in held if before.disc_end <= start < after.tail_start)

    def build(start: int, size: int) -> None:
        """Make a ring out of what is there: sizes never increase, so its halves begin and end where rings do."""
        is_there = sizes.get(start) == size
        if is_there or bisect_left(moving, start) == bisect_left(moving, start + size):
            return
        if size == 1:
            steps.append(Append(start))
            return
        half = size // 2
        build(start, half)
        build(start + half, half)
        steps.append(Merge(start, half))

    half = before.parameters.full_units // 2
    for start in sorted({after.start_of(unit) for unit in moving}):
        if start < after.disc_end:
            build(start, half)
            build(start + half, half)
            steps.append(Promote(start, half))
        else:
            build(start, after.ring_sizes[after.ring_starts.index(start)])
    return steps


class Combinable(Protocol):
    """What can be kept for each slice: the sum of two is what would be kept for both as one."""

    def __add__(self, other: Self, /) -> Self: ...


Kept = TypeVar("Kept", bound=Combinable)


def move(steps: Iterable[Step], kept: dict[int, Kept]) -> list[Kept]:
    """Carry out steps on what is kept for each slice, by the unit at which the slice begins.

    Slices for which nothing is kept have no place in ``kept``. For a full slice it keeps that of its first half.

    Returns:
        What is kept now for full slices that are new.
    """
    promoted: list[Kept] = []
    for step in steps:
        match step:
            case Append():
                pass  # the ring begins where the unit did
            case Merge(start=start, size=size):
                _join(kept, start, start + size)
            case Promote(start=start, size=size):
                _join(kept, start, start + size)
                promoted.append(kept[start])
            case _:
                assert_never(step)
    return promoted


def _join(kept: dict[int, Kept], first: int, second: int) -> None:
    if second in kept:
        moved = kept.pop(second)
        kept[first] = kept[first] + moved if first in kept else moved
