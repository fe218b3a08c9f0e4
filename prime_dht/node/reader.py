"""Getting entries: join what enough replicas say, and repair those that were behind.

A get is a :class:`~prime_dht.kad.lookup.Lookup` whose query is GET_VALUE. It ends as soon as ``read_quorum`` replicas
have *answered* (:mod:`prime_dht.node.answers`). Those that only just joined do not; then the lookup goes on outwards.

As long as nobody named any entry, r replicas must answer, not ``read_quorum``: of an acknowledged put that missed a
replica, a copy may lie with the next server, and the rest of the r closest may have nothing yet. When the lookup runs
out of peers before, all that could be asked have been, and nothing means absent as well; unless so many of the r
closest did not answer, now or just before, that an acknowledged put may lie with them alone. Then it is an error.

With a true routing table the first ``read_quorum`` peers asked are replicas, and a get of what is there is one parallel
step.

An answer too large for one reply comes in pages. A reader that wants only the newest entry fetches a replica's pages to
the end, because the entry may be on any. A reader of all slots hands them on page by page: up to its *horizon*, the
place up to which every replica's answer is complete.

When ``operation_timeout_s`` is up a get answers with what it has found, if that is anything, or that leaves no doubt.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import trio

from prime_dht.config import DhtConfig
from prime_dht.entries.admission import AdmissionRules, Admitted, Deferred, Refused, admit
from prime_dht.entries.codec import decode_entry_set
from prime_dht.entries.entry import Entry
from prime_dht.entries.join import Selection
from prime_dht.errors import ConfigError, QueryError, RemoteProtocolError, ValidationError
from prime_dht.ids import Key, PeerId, kad_key
from prime_dht.kad.contact import Contact
from prime_dht.kad.lookup import Outcome
from prime_dht.kad.replicas import choose_replicas, syncs
from prime_dht.net.network import Network
from prime_dht.node.answers import Answers
from prime_dht.node.cache import Question, ReadCache
from prime_dht.node.clock import Clock
from prime_dht.node.lookup_run import Task
from prime_dht.node.lookups import Explorer
from prime_dht.node.neighbourhood import Neighbourhood
from prime_dht.node.results import Found, FoundPage
from prime_dht.node.server import MAX_ENTRIES_PER_RECORD, MAX_REPLY_VALUE_BYTES, Server
from prime_dht.node.writer import Writer
from prime_dht.storage.paging import Place, decode_cursor, encode_cursor, take_page
from prime_dht.wire.kad import GetValue, Record, Reply, SlotQuery

if TYPE_CHECKING:
    from trio_typing import TaskStatus

BATCH_KEYS = 64
"""Keys in one batched GET_VALUE."""

BATCHES_AT_ONCE = 16
MAX_PAGES = 64
"""Pages of one replica's answer that are fetched. The entries newer than the newest live one are bare headers, of which
a page holds a hundred or more, so no honest replica has as many pages."""

REPAIRS_WAITING = 64
"""Repairs that wait their turn, each a reply's worth of entries at most; beyond, they are left to the next reader."""

REPAIRS_AT_ONCE = 4

READ_SLOW_AFTER_S = 0.25
"""A replica that has not answered a get for so long no longer holds up the next one: another request costs little, and
somebody waits."""


@dataclass(frozen=True, slots=True)
class _Page:
    """A replica's answer: the entries admitted, whether it holds the sector, and where it ended if that is not all."""

    entries: Sequence[Entry]
    held: bool
    end: Place | None
    next_cursor: bytes


class Reader:
    """Gets entries from the swarm."""

    def __init__(
        self,
        network: Network,
        neighbourhood: Neighbourhood,
        explorer: Explorer,
        server: Server,
        writer: Writer,
        cache: ReadCache,
        rules: AdmissionRules,
        config: DhtConfig,
        clock: Clock,
    ) -> None:
        self._network = network
        self._neighbourhood = neighbourhood
        self._explorer = explorer
        self._server = server
        self._writer = writer
        self._cache = cache
        self._rules = rules
        self._config = config
        self._clock = clock
        self._to_repair, self._repairs = trio.open_memory_channel[tuple[PeerId, Sequence[Entry]]](REPAIRS_WAITING)

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Carry out repairs until cancelled."""
        async with trio.open_nursery() as nursery:
            for _ in range(REPAIRS_AT_ONCE):
                nursery.start_soon(self._repair_each)
            task_status.started()

    async def get(
        self,
        key: Key,
        subkey: bytes,
        publishers: frozenset[PeerId] | None,
        *,
        wanted_quorum: int | None,
        latest: bool,
    ) -> Found | None:
        """The newest live entry of a slot, over the publishers given or all.

        Raises:
            QueryError: too few could be asked.
        """
        quorum = self._quorum(wanted_quorum)
        if publishers is not None and not publishers:
            return None  # of nobody there is nothing
        question = Question(key, subkey, publishers)
        if not latest and wanted_quorum is None:  # a remembered answer may be that of a smaller quorum
            remembered = self._cache.get(question, now_us=self._clock.now_us(), now_s=self._clock.monotonic_s())
            if remembered is not None:
                return remembered
        selection = Selection(publishers=publishers, subkeys=frozenset((subkey,)))
        with self._cache.reading(question) as remember:
            answers = await self._ask_replicas(key, selection, quorum)
            chosen = selection.choose(answers.joined, self._clock.now_us())
            if not chosen:
                return None
            found = Found.of(chosen[0], answered=len(answers.counted))
            remember(found, self._clock.monotonic_s())
        return found

    async def get_all(
        self,
        key: Key,
        *,
        subkeys: frozenset[bytes] | None,
        publishers: frozenset[PeerId] | None,
        limit: int | None,
        cursor: bytes,
    ) -> FoundPage:
        """The live entries of a key's slots in the order of (publisher, subkey), a page at a time.

        Raises:
            QueryError: nobody could be asked.
            ValidationError: the cursor is none that a page ended with.
        """
        decode_cursor(cursor)
        if publishers == frozenset() or subkeys == frozenset():
            return FoundPage(())
        selection = Selection(publishers=publishers, subkeys=subkeys, newest=False)
        answers = await self._ask_replicas(key, selection, self._quorum(None), cursor=cursor)
        horizon = answers.horizon
        chosen = selection.choose(answers.joined, self._clock.now_us())
        within = [entry for entry in chosen if horizon is None or (entry.publisher, entry.header.subkey) <= horizon]
        end = horizon
        if limit is not None and len(within) > limit:
            within = within[:limit]
            end = (within[-1].publisher, within[-1].header.subkey) if within else None
        found = tuple(Found.of(entry, answered=len(answers.counted)) for entry in within)
        return FoundPage(found, None if end is None else encode_cursor(*end))

    async def get_many(self, keys: Sequence[Key], *, wanted_quorum: int | None) -> dict[Key, Found | None]:
        """The newest live entry of each key (subkey empty), with lookups shared and few, large requests.

        As in a get, the nearest are asked first, and as far outwards as a lookup would go only about keys that they do
        not settle. A key of which too few servers answered is left out.

        Raises:
            QueryError: that is so of every key.
        """
        needed = self._quorum(wanted_quorum)
        selection = Selection(subkeys=frozenset((b"",)))
        timeout_s = self._explorer.timeout_s(len(keys))
        ends_at_s = self._clock.monotonic_s() + timeout_s
        servers = await self._explorer.servers_near(keys, self._config.replication_factor, timeout_s=timeout_s / 2)
        answers = {key: Answers(needed, self._known_replicas(), selection) for key in keys}
        asked = 0
        with trio.move_on_after(max(0.0, ends_at_s - self._clock.monotonic_s())) as limit:
            for width in sorted({needed, self._config.replication_factor, self._config.k_bucket_size}):
                by_peer: dict[PeerId, list[Key]] = defaultdict(list)
                for key, said in answers.items():
                    for server in servers[key][asked:width] if said.missing else ():
                        by_peer[server.peer].append(key)
                await self._get_batches(by_peer, answers)
                asked = width
        found: dict[Key, Found | None] = {}
        for key, said in answers.items():
            chosen = selection.choose(said.joined, self._clock.now_us())
            nearest = self._nearest_replicas(key, (server for server in servers[key] if server.peer in said.by_peer))
            # Those that were being asked when the time was up have not failed, and others were not asked at all.
            in_doubt = said.missing if limit.cancelled_caught else said.leaves_in_doubt(nearest)
            if chosen or (self._neighbourhood.has_met_anybody() and not in_doubt):
                found[key] = Found.of(chosen[0], answered=len(said.counted)) if chosen else None
                self._repair_soon(key, said)
        if keys and not found:
            raise QueryError(f"too few servers answered for any of the {len(keys)} keys")
        return found

    # Asking

    def _quorum(self, wanted: int | None) -> int:
        limit = self._config.replication_factor
        if wanted is not None and not 1 <= wanted <= limit:
            raise ConfigError(f"quorum must be in 1 ..= {limit}, not {wanted}")
        asked = wanted or self._config.read_quorum or limit // 2 + 1
        return min(asked, self._known_replicas())

    def _known_replicas(self) -> int:
        return max(1, self._neighbourhood.servers_known(at_most=self._config.replication_factor))

    async def _ask_replicas(self, key: Key, selection: Selection, needed: int, *, cursor: bytes = b"") -> Answers:
        answers = Answers(needed, self._known_replicas(), selection)
        query = _slot_query(selection, cursor)
        target = kad_key(key)
        own = self._neighbourhood.own_contact()
        table = self._neighbourhood.table
        nearest = table.find_closest(target, self._config.replication_factor, where=syncs)
        if own is not None:
            if own in choose_replicas(target, nearest, self._config.replication_factor, own=own):
                await self._ask_here(key, query, answers)
        elif not len(table):
            raise QueryError("no server is known to ask: this node has found no peers")
        if answers.missing:
            await self._ask_others(key, query, answers, nearest)
        if answers.found_nothing and not self._neighbourhood.has_met_anybody():
            raise QueryError("this node has not joined yet: nobody could be asked")
        self._repair_soon(key, answers)
        return answers

    async def _ask_others(self, key: Key, query: SlotQuery, answers: Answers, nearest: Sequence[Contact]) -> None:
        """Ask one server after the other, from the nearest outwards, until enough have answered.

        Raises:
            QueryError: too few have.
        """
        lookup = self._explorer.lookup(
            kad_key(key),
            alpha=max(1, answers.quorum - len(answers.counted)),  # hoping that they name something
            nearest=nearest,
            query_timeout_s=self._config.rpc_timeout_s,
            slow_after_s=READ_SLOW_AFTER_S,
        )

        def adjust(contact: Contact) -> None:
            if contact.peer not in answers.counted:
                lookup.widen(self._config.alpha)  # not what one hopes for: from here on search broadly
            elif len(answers.counted) == len(answers.by_peer):  # so far so good
                lookup.narrow(answers.missing)

        async def take_rest(contact: Contact, page: _Page) -> None:
            await self._take_rest(contact, key, query, page, answers)
            adjust(contact)

        def take(contact: Contact, reply: Reply) -> Task | None:
            page = self._page(key, query, reply.record, reply.held, reply.next_cursor)
            if page.next_cursor and query.newest:
                return partial(take_rest, contact, page)
            answers.add(contact.peer, page.entries, held=page.held, end=page.end)
            adjust(contact)
            return None

        result = await self._explorer.run(lookup, GetValue(key, query), take=take, until=lambda: not answers.missing)
        if not answers.missing or not answers.found_nothing:
            return
        replicas = self._nearest_replicas(key, result.closest)
        left_s = self._config.operation_timeout_s - (result.ended_at_s - result.started_at_s)
        with trio.move_on_after(max(0.0, left_s)):
            async with trio.open_nursery() as nursery:
                for replica in answers.silent_among(replicas):
                    nursery.start_soon(self._ask_again, replica, key, query, answers)
        # Those that were being asked when the time was up have not failed.
        if result.outcome is Outcome.DEADLINE or answers.leaves_in_doubt(replicas):
            silent = f"{len(answers.silent_among(replicas))} of the {len(replicas)} closest did not answer"
            raise QueryError(f"too few replicas to tell: {silent}; servers that had nothing: {len(answers.by_peer)}")

    def _nearest_replicas(self, key: Key, answered: Iterable[Contact]) -> list[Contact]:
        """The ``r`` closest to a key, of those that answered and those that have failed this node a moment ago."""
        known = {contact.peer: contact for contact in (*answered, *self._neighbourhood.silent_replicas())}
        own = self._neighbourhood.own_contact()
        return choose_replicas(kad_key(key), known.values(), self._config.replication_factor, own=own)

    async def _ask_again(self, contact: Contact, key: Key, query: SlotQuery, answers: Answers) -> None:
        with suppress(QueryError, RemoteProtocolError):
            reply = await self._neighbourhood.ask(contact, GetValue(key, query))
            page = self._page(key, query, reply.record, reply.held, reply.next_cursor)
            await self._take_rest(contact, key, query, page, answers)

    async def _ask_here(self, key: Key, query: SlotQuery, answers: Answers) -> None:
        page, held = await self._server.read(key, query)
        entries = self._admitted(page.entries)
        while page.next_cursor and query.newest:
            page, held = await self._server.read(key, replace(query, cursor=page.next_cursor))
            entries += self._admitted(page.entries)
        answers.add(self._network.local, entries, held=held, end=decode_cursor(page.next_cursor))

    async def _take_rest(self, contact: Contact, key: Key, query: SlotQuery, page: _Page, answers: Answers) -> None:
        """Fetch the pages of a replica's answer behind the first, if it is to be complete, and count it.

        Raises:
            QueryError: a page did not come.
            RemoteProtocolError: the replica sent something that no honest one holds.
        """
        entries = list(page.entries)
        pages = 1
        while page.next_cursor and query.newest and pages < MAX_PAGES:
            query = replace(query, cursor=page.next_cursor)
            reply = await self._neighbourhood.ask(contact, GetValue(key, query))
            page = self._page(key, query, reply.record, reply.held, reply.next_cursor)
            entries += page.entries
            pages += 1
        answers.add(contact.peer, entries, held=page.held, end=page.end)

    async def _get_batches(self, by_peer: Mapping[PeerId, Sequence[Key]], answers: Mapping[Key, Answers]) -> None:
        for key in by_peer.get(self._network.local, ()):
            await self._ask_here(key, _slot_query(answers[key].selection, b""), answers[key])
        at_once = trio.Semaphore(BATCHES_AT_ONCE)
        async with trio.open_nursery() as nursery:
            for peer, wanted in by_peer.items():
                if peer == self._network.local:
                    continue
                for start in range(0, len(wanted), BATCH_KEYS):
                    await at_once.acquire()
                    nursery.start_soon(self._get_batch, peer, wanted[start : start + BATCH_KEYS], answers, at_once)

    async def _get_batch(
        self, peer: PeerId, keys: Sequence[Key], answers: Mapping[Key, Answers], place: trio.Semaphore
    ) -> None:
        query = _slot_query(answers[keys[0]].selection, b"")
        contact = self._neighbourhood.contact(peer)
        begun: list[tuple[Key, _Page]] = []
        try:
            while keys:
                reply = await self._neighbourhood.ask(contact, GetValue(Key(b""), query, tuple(keys)))
                for key, item in zip(keys, reply.batch, strict=False):  # it may answer for the first keys only
                    page = self._page(key, query, item.record, item.held, item.next_cursor)
                    if page.next_cursor:
                        begun.append((key, page))
                    else:
                        answers[key].add(peer, page.entries, held=page.held)
                if not reply.batch:
                    break
                keys = keys[len(reply.batch) :]
            for key, page in begun:  # last: there may be much of them
                await self._take_rest(contact, key, query, page, answers[key])
        except (QueryError, RemoteProtocolError) as error:
            self._neighbourhood.failed(peer, error)  # what this peer leaves open is asked of others
        finally:
            place.release()

    def _page(self, key: Key, query: SlotQuery, record: Record | None, held: bool, next_cursor: bytes) -> _Page:
        """Check what a replica sent.

        Raises:
            RemoteProtocolError: it sent something that no honest replica holds.
        """
        if record is None or not record.value:
            return _Page((), held, None, b"")
        try:
            decoded = decode_entry_set(record.value, max_entries=MAX_ENTRIES_PER_RECORD)
            behind = decode_cursor(query.cursor)
            end = decode_cursor(next_cursor)
        except ValidationError as error:
            raise RemoteProtocolError(str(error)) from error
        entries = [candidate for candidate in decoded if isinstance(candidate, Entry)]
        if len(entries) < len(decoded):
            raise RemoteProtocolError("it holds something that is no entry")
        if any(entry.header.key != key for entry in entries):
            raise RemoteProtocolError("an entry of another key")
        places = [(entry.publisher, entry.header.subkey) for entry in entries]
        if end is not None and not places:
            raise RemoteProtocolError("a page without entries that is not the last")
        if behind is not None and any(place <= behind for place in places):
            raise RemoteProtocolError("entries of the page before")  # whoever reads on would go round for ever
        if end is not None and end != max(places):
            raise RemoteProtocolError("a cursor that is not where the page ends")
        return _Page(self._admitted(entries, of_peer=True), held, end, next_cursor)

    def _admitted(self, entries: Sequence[Entry], *, of_peer: bool = False) -> list[Entry]:
        """Of what a replica holds, what this node would store itself.

        Raises:
            RemoteProtocolError: a peer sent something that no honest replica holds.
        """
        now_us = self._clock.now_us()
        admitted: list[Entry] = []
        for entry in entries:
            match admit(entry, now_us=now_us, rules=self._rules, verified=self._server.verified):
                case Admitted(good):
                    admitted.append(good)
                case Refused(reason, text) as refused:
                    if of_peer and refused.blame:
                        raise RemoteProtocolError(f"{reason.value}: {text}")
                case Deferred():
                    pass
        return admitted

    # Repairing

    def _repair_soon(self, key: Key, answers: Answers) -> None:
        """Of those that answered, bring the ``r`` closest to the key up to date."""
        if answers.horizon is not None:
            return  # of a page, what is missing cannot be told from what lies beyond
        if len(answers.by_peer) == 1:
            return  # what there is it has
        behind = answers.behind(self._clock.now_us())
        if not behind:
            return
        answered = [self._neighbourhood.contact(peer) for peer in answers.by_peer if peer != self._network.local]
        own = self._neighbourhood.own_contact()
        for replica in choose_replicas(kad_key(key), answered, self._config.replication_factor, own=own):
            peer, entries = replica.peer, behind.get(replica.peer)
            if entries is None:
                continue
            try:  # what is more than a reply's worth is left to the next reader as well
                self._to_repair.send_nowait((peer, take_page(entries, MAX_REPLY_VALUE_BYTES).entries))
            except trio.WouldBlock:
                return

    async def _repair_each(self) -> None:
        async for peer, entries in self._repairs:
            await self._writer.repair(entries, peer)


def _slot_query(selection: Selection, cursor: bytes) -> SlotQuery:
    subkeys, publishers = sorted(selection.subkeys or ()), sorted(selection.publishers or ())  # one query, one encoding
    return SlotQuery(tuple(subkeys), tuple(publishers), selection.newest, cursor)
