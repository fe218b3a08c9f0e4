"""What to ask next, when a sketch was too short: rules of cost, for whoever leads a round.

A round compares *groups* of sectors, at first one group of all of them, by their first 32 symbols: 704 bytes, which
settle ten differences and often more. Where that is not enough the number of differences can be guessed
(:mod:`prime_dht.partition.estimate`), and with it the cheapest way on:

- *Extend* the group's sketch by more symbols, as long as these are among the ``m`` that are kept per sector.
- Else *split* the group into smaller ones, each with few enough differences for the symbols that are kept. Symbols
  beyond ``m`` must be made from ids, so they are asked for only of a single sector.
- *Confine* a group to those sectors that differ, by their checksums, 4 bytes each: before a split that costs ten times
  as much, before splitting again, and after two extensions in vain. Differences that lie together are found at once,
  where splitting would ask for many symbols of nothing. Where they are scattered it was for nothing, but cheap.
- Ask for the *ids* of a single sector of which half or more differs: 16 bytes an id are then less than 22 a symbol.
  So it ends if all else failed.
- *Salt* a single sector that was extended twice in vain: somebody may have chosen ids to spoil the plain code.

A difference of ``d`` takes some 1.4 d + 4 symbols, more often than not:

>>> symbols_for(10), symbols_for(56), symbols_for(1000)
(18, 83, 1404)

If only some rings differ, drilling down into them beats symbols from about 100 differences.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from prime_dht.partition.sketch import MAX_SYMBOLS, SYMBOL_BYTES

FIRST_SYMBOLS = 32
"""What a round opens with."""

_GROUP_DIFFERENCES = 56
"""A group of so many differences needs 83 of the 128 symbols kept; the guess may be wrong by half."""

_MAX_EXTENSIONS = 2

_CHECKSUM_BYTES = 4
_DEAR = 10
"""A split that costs so many times as much as the sectors' checksums is not made without them."""

_RINGS_FROM = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Sectors that are compared together.

    Attributes:
        sectors: how many.
        ops: how many ops this node has in them.
        symbols: how many symbols were compared.
        extensions: how often more symbols were asked for in vain.
        split: whether it is a part of a greater group.
        confined: whether all of its sectors are known to differ.
        salted: whether its symbols are those of a salted code.
    """

    sectors: int
    ops: int
    symbols: int = FIRST_SYMBOLS
    extensions: int = 0
    split: bool = False
    confined: bool = False
    salted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Extend:
    """Ask for the group's symbols up to ``symbols``."""

    symbols: int


@dataclass(frozen=True, slots=True)
class Confine:
    """Ask for its sectors' checksums, and go on with those that differ, with the symbols there are: the others add
    nothing to them. Extensions begin anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Make so many groups of it, and ask for the first ``symbols`` of each."""

    groups: int
    symbols: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Salt:
    """Draw a salt, and ask for the first ``symbols`` of the code with it."""

    symbols: int


@dataclass(frozen=True, slots=True)
class SendIds:
    """Ask for all ids."""


Step = Extend | Confine | Split | Salt | SendIds


def next_step(group: Group, estimate: int, *, m: int) -> Step:
    """What to do about a group whose symbols do not decode.

    Args:
        estimate: about how many ids differ, as the decoder said; whatever it is, what is asked for stays bounded.
        m: how many symbols are kept per sector.
    """
    # Half as many again where the guess says that what there is should have been enough.
    wanted = max(symbols_for(estimate), group.symbols + group.symbols // 2)
    may_extend = group.extensions < _MAX_EXTENSIONS
    if group.sectors > 1:
        if may_extend and wanted <= m:
            return Extend(symbols=wanted)
        groups = min(group.sectors, max(2, ceil(estimate / _GROUP_DIFFERENCES)))
        symbols = min(m, symbols_for(ceil(estimate / groups)))
        is_dear = groups * symbols * SYMBOL_BYTES >= _DEAR * group.sectors * _CHECKSUM_BYTES
        if not group.confined and (group.split or not may_extend or is_dear):
            return Confine()
        return Split(groups=groups, symbols=symbols)
    if 2 * estimate >= group.ops or wanted > MAX_SYMBOLS:
        return SendIds()
    if may_extend:
        return Extend(symbols=wanted)
    return SendIds() if group.salted else Salt(symbols=symbols_for(estimate))


def symbols_for(differences: int) -> int:
    """About how many symbols decode so many differences."""
    return ceil(1.4 * differences) + 4


def rings_pay(estimate: int) -> bool:
    """Whether drilling down into the rings that differ is cheaper than symbols, if nothing else differs."""
    return estimate >= _RINGS_FROM
