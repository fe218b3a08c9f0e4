"""Of which provider a block is asked: of the one that would deliver it first, as far as that is known.

How fast a provider is shows only when it is asked. Beside one that is fast, and is never asked for more than it brings
in a moment, a *newcomer* with its small first window would always seem to be later, and nobody would ever know. So it
is asked before all others, for one block whenever it is idle, until it has been measured for as long as its first
window counts. It may be silent, or slow: hence no more than ``MAX_TRIED`` at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import methodcaller

from prime_dht.blobs.provider import Provider
from prime_dht.blobs.under_way import BlockUnderWay
from prime_dht.ids import US_PER_S

SECOND_AFTER_US = US_PER_S // 2
"""A block may be asked of a second provider when the first has had it for so long."""

MAX_TRIED = 4


def soonest(providers: Iterable[Provider], block: BlockUnderWay) -> Provider | None:
    """Who would deliver a block first; ``None`` if there are no providers."""
    return min(providers, key=methodcaller("expected_us", block.budget_bytes), default=None)


def newcomers(providers: Iterable[Provider], now_us: int) -> list[Provider]:
    """Those that are to be asked before all others, for one block each."""
    new = [provider for provider in providers if provider.is_new]
    tried = sum(not provider.is_idle for provider in new)
    return [provider for provider in new if provider.is_idle and provider.has_room(now_us)][: max(MAX_TRIED - tried, 0)]


def first_for(block: BlockUnderWay, free: Sequence[Provider], trying: Iterable[Provider]) -> Provider | None:
    """Whom to ask for a block, of those that have room, some of which are to be tried; ``None`` if all lack it."""
    for candidates in (trying, free):
        if found := soonest((each for each in candidates if each.peer not in block.lacking), block):
            return found
    return None


def second_for(block: BlockUnderWay, providers: Iterable[Provider], now_us: int) -> Provider | None:
    """Whom to ask for a block that another does not bring; ``None`` if that has to wait.

    It is one that is idle. As long as there is one that goes on delivering, it is such a one: of the others nobody
    knows whether they are not silent too.
    """
    barred = block.lacking | {*block.asked_of}
    able = [provider for provider in providers if provider.peer not in barred and provider.has_room(now_us)]
    active = [each for each in able if each.delivered and (each.is_idle or now_us < each.answered_us + SECOND_AFTER_US)]
    return soonest((provider for provider in active or able if provider.is_idle), block)
