"""What an honest replica may send is read."""

from __future__ import annotations

from itertools import pairwise

import trio
from libp2p.crypto.ed25519 import create_new_key_pair

from prime_dht.entries.admission import AdmissionRules
from prime_dht.entries.codec import encode_entry_set
from prime_dht.entries.entry import EntryHeader, Tombstone
from prime_dht.entries.envelope import VerifiedEnvelopes
from prime_dht.entries.lifetime import UNIT_US
from prime_dht.entries.limits import Limits
from prime_dht.entries.signing import sign_entry
from prime_dht.ids import US_PER_S, Key, TimestampUs
from prime_dht.node.pages import Pages
from prime_dht.node.server import ENTRIES_PER_TURN, MAX_ENTRIES_PER_RECORD, MAX_REPLY_VALUE_BYTES
from prime_dht.storage.base import EntryPage
from prime_dht.storage.paging import take_page
from prime_dht.testing.serving import NOW_US, SetClock
from prime_dht.wire.kad import Record, Reply, SlotQuery

KEY = Key(b"/prime/k")


def tombstones() -> EntryPage:
    """As many as fit into a reply."""
    writer = create_new_key_pair(bytes(32)).private_key
    ends_at_us = TimestampUs(NOW_US + 3600 * US_PER_S)

    def tombstone(number: int) -> EntryHeader:
        return EntryHeader(
            network_id="n",
            key=KEY,
            subkey=number.to_bytes(2, "big"),
            created_at_us=TimestampUs(NOW_US),
            expires_at_us=ends_at_us,
            retain_until_us=ends_at_us,
            content=Tombstone(),
        )

    return take_page((sign_entry(tombstone(number), writer) for number in range(65_536)), MAX_REPLY_VALUE_BYTES)


async def test_a_page_may_have_as_many_entries_as_fit_in_a_reply_and_others_have_turns_while_it_is_judged() -> None:
    sent = tombstones()
    assert len(sent.entries) > MAX_ENTRIES_PER_RECORD
    rules = AdmissionRules(network_id="n", limits=Limits(), unit_us=UNIT_US)
    verified = VerifiedEnvelopes()
    pages = Pages(rules, verified, SetClock(NOW_US))
    query = SlotQuery(newest=False)
    reply = Reply(Record(KEY, encode_entry_set(sent.entries)), next_cursor=sent.next_cursor)
    verified_at_turns = [0]

    async def look_at_each_turn() -> None:
        while True:
            verified_at_turns.append(len(verified))
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(look_at_each_turn)
        await trio.lowlevel.checkpoint()
        page = await pages.read(KEY, query, reply)
        nursery.cancel_scope.cancel()
    assert len(page.judged.admitted) == len(sent.entries)
    assert page.next_cursor == sent.next_cursor
    assert max(after - before for before, after in pairwise(verified_at_turns)) <= 2 * ENTRIES_PER_TURN
    assert verified_at_turns[-1] >= len(sent.entries) - 2 * ENTRIES_PER_TURN
