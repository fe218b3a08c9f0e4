"""Strangers: how swarms that were separate become one when any two of their members meet.

A *stranger* is a peer without a place in this node's routing table that made itself heard: it sent a request, or
somebody *vouches* for it (the node's owner gave its address, or mDNS found it). It may be of this node's swarm, or of
another of the same network, which knows of this node as little as this one of it. To find out, the node *looks through*
the stranger: it looks itself up from there, starting with what the stranger knows.

- In its own swarm it finds those nearest to it, whom it knows. That costs a handful of requests.
- In another swarm it finds those nearest to it *there*, and knows none of them: news. They have heard from it now, and
  from there the two neighbourhoods become one by themselves (:mod:`prime_dht.node.neighbourhood`). Then it looks up a
  target in each farther bucket, through the stranger too, so that some there hear from a stranger and do the same. So
  it spreads from neighbourhood to neighbourhood, over the whole circle.

**Bounds.** One look at a time, at a pace: the pause after each doubles up to ``LOOK_AT_MOST_S`` as long as there is no
news, and begins anew with news. Before a look through a stranger whom nobody vouches for it is ``UNVOUCHED_TIMES`` as
long, up to the same bound. So neither a crowd that joins at one moment nor a flood of made-up strangers causes a storm.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from random import Random

import trio

from prime_dht.errors import QueryError, RemoteProtocolError
from prime_dht.ids import PeerId, short
from prime_dht.kad.contact import Contact
from prime_dht.node.lookups import REFRESH_DEPTH, Explorer, raw_target
from prime_dht.node.neighbourhood import Neighbourhood

logger = logging.getLogger(__name__)

LOOK_FIRST_S = 1.0
LOOK_AT_MOST_S = 240.0

UNVOUCHED_TIMES = 30.0
"""How much longer than usual the pause before a look is through a peer that only sent a request."""

VOUCHED_AT_MOST = 64
"""Peers vouched for that wait; of more, who has waited longest goes."""

TRIES = 3
"""Strangers that are tried at each turn until one answers: many who ask are clients, which answer nobody."""

LOOK_K = 3
"""Servers found by a look: a few that are nearest to this node tell whether the stranger's swarm is its own."""

SPREAD_K = 6
"""Servers found in each farther bucket when it is not."""


class Strangers:
    """See the module."""

    def __init__(self, local: PeerId, neighbourhood: Neighbourhood, explorer: Explorer, rng: Random) -> None:
        self._local = local
        self._neighbourhood = neighbourhood
        self._explorer = explorer
        self._rng = rng
        self._vouched: OrderedDict[PeerId, None] = OrderedDict()
        self._more_vouched = trio.Event()
        self._pause_s = LOOK_FIRST_S

    def vouch(self, peer: PeerId, *, is_urgent: bool = False) -> None:
        """Have a look through a peer, when its turn has come or, if it is urgent, at once."""
        self._vouched[peer] = None
        self._vouched.move_to_end(peer)
        if len(self._vouched) > VOUCHED_AT_MOST:
            self._vouched.popitem(last=False)
        if is_urgent:
            self._pause_s = LOOK_FIRST_S
        self._more_vouched.set()

    def take_vouched(self, count: int) -> list[PeerId]:
        """Up to ``count`` of those vouched for, the latest first: whoever takes them meets them."""
        return [self._vouched.popitem()[0] for _ in range(min(count, len(self._vouched)))]

    async def run(self) -> None:
        """Look through one stranger after the other, until cancelled."""
        looked_at_s = trio.current_time()
        while True:
            pause_s = self._pause_s if self._vouched else min(self._pause_s * UNVOUCHED_TIMES, LOOK_AT_MOST_S)
            left_s = looked_at_s + pause_s * (1 + 0.2 * self._rng.random()) - trio.current_time()
            with trio.move_on_after(max(0.0, left_s)) as waiting:
                await self._more_vouched.wait()
            if not waiting.cancelled_caught:
                self._more_vouched = trio.Event()
                continue
            looked_at_s = trio.current_time()
            if not len(self._neighbourhood.table):
                continue  # whoever is vouched for is to be joined through
            if (stranger := await self._meet_one()) is not None:
                is_news = await self._look_through(stranger)
                self._pause_s = LOOK_FIRST_S if is_news else min(2 * self._pause_s, LOOK_AT_MOST_S)

    async def _meet_one(self) -> Contact | None:
        """The first of a few strangers that answers."""
        neighbourhood = self._neighbourhood
        for _ in range(TRIES):
            waiting = self._vouched or neighbourhood.strangers
            if not waiting:
                return None
            peer, _nothing = waiting.popitem()
            if neighbourhood.table.get(peer) is None:
                try:
                    await neighbourhood.meet(peer)
                except (QueryError, RemoteProtocolError) as error:
                    logger.debug("peer %s does not serve Kademlia: %s", short(peer), error)
                    continue
            return neighbourhood.contact(peer)
        return None

    async def _look_through(self, stranger: Contact) -> bool:
        """Whether it led to servers near this node of which it knew none; then all of their swarm will hear of it."""
        table = self._neighbourhood.table
        known = {contact.peer for contact in table}
        look = await self._explorer.find_closest(self._local, k=LOOK_K, through=stranger)
        found = {server.peer for server in look.closest}
        # A newcomer to this node's own swarm stands among others that are known. Whom the table does not take, because
        # its subnet has all the places it may have, would be news for ever.
        if found & known or not any(table.get(peer) for peer in found):
            return False
        logger.info("peer %s is of a swarm that this node did not know: the two become one", short(stranger.peer))
        for index in range(min(_depth(table.bucket_sizes()), REFRESH_DEPTH)):
            target = raw_target(self._neighbourhood.local, index, self._rng)
            await self._explorer.find_closest(target, k=SPREAD_K, through=stranger)
        return True


def _depth(bucket_sizes: list[int]) -> int:
    """How many buckets there are up to the deepest that holds a contact."""
    return max((index + 1 for index, size in enumerate(bucket_sizes) if size), default=0)
