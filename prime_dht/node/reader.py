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
place up to which every replica's answer is complete. A replica that makes slots up could go on for ever, so the cursor
counts them.

Replicas that are behind do not count. But where all are, as they may be for long where a key is full, a get ends when
``r`` more than have to answer, the nearest that live, have done so.

When ``operation_timeout_s`` is up a get answers with what it has found, if that is anything, or that leaves no doubt.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import trio

from prime_dht.config import DhtConfig
from prime_dht.entries.admission import AdmissionRules
from prime_dht.entries.entry import Entry
from prime_dht.entries.join import Selection
from prime_dht.errors import ConfigError, QueryError, RemoteProtocolError
from prime_dht.ids import Key, PeerId, kad_key
from prime_dht.kad.contact import Contact
from prime_dht.kad.lookup import Outcome
from prime_dht.kad.replicas import choose_replicas, syncs
from prime_dht.net.network import Network
from prime_dht.node.answers import Answers
from prime_dht.node.arguments import whole_number_of
from prime_dht.node.cache import Question, ReadCache
from prime_dht.node.clock import Clock
from prime_dht.node.lookup_run import Task
from prime_dht.node.lookups import Explorer
from prime_dht.node.neighbourhood import Neighbourhood
from prime_dht.node.pages import Bookmark, Page, Pages, Sent
from prime_dht.node.results import Found, FoundPage
from prime_dht.node.server import MAX_REPLY_VALUE_BYTES, Server
from prime_dht.node.writer import Writer
from prime_dht.storage.paging import decode_cursor, take_page
from prime_dht.wire.kad import GetValue, Reply, SlotQuery

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

BACK_WITHIN_S = 2.0
"""Where enough replicas have nothing, one that failed a moment ago has so long to say that it is back, and has
something. It may as well hang, and the answer does not depend on it."""

READ_SLOW_AFTER_S = 0.25
"""A replica that has not answered a get for so long no longer holds up the next one: another request costs little, and
somebody waits."""


class _Silent(NamedTuple):
    """Who failed this node a moment ago: those that answered as replicas before, and enough that may be some."""

    replicas: Sequence[Contact]
    or_told_of: Sequence[Contact]


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
        self._pages = Pages(rules, server.verified, clock)
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
        if not latest and wanted_quorum is None:  # a remembered answer is that of the configured one
            remembered = self._cache.get(question, now_us=self._clock.now_us(), now_s=self._clock.monotonic_s())
            if remembered is not None:
                return remembered
        selection = Selection(publishers=publishers, subkeys=frozenset((subkey,)))
        with self._cache.reading(question) as note:
            answers = await self._ask_replicas(key, selection, quorum)
            chosen = selection.choose(answers.joined, self._clock.now_us())
            found = Found.of(chosen[0], answered=answers.joined_of) if chosen else None
            is_for_others = len(answers.counted) >= self._quorum(None)  # they may ask for no less
            note(found, self._clock.monotonic_s() if is_for_others else None)
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
            QueryError: nobody could be asked, or replicas name more slots than the ``r`` of them can hold.
            ValidationError: the cursor is none that a page ended with.
        """
        bookmark = Bookmark.decode(cursor)
        if publishers == frozenset() or subkeys == frozenset():
            return FoundPage(())
        selection = Selection(publishers=publishers, subkeys=subkeys, newest=False)
        answers = await self._ask_replicas(key, selection, self._quorum(None), cursor=bookmark.cursor)
        horizon = answers.horizon
        chosen = selection.choose(answers.joined, self._clock.now_us())
        within = [entry for entry in chosen if horizon is None or (entry.publisher, entry.header.subkey) <= horizon]
        end = horizon
        if limit is not None and len(within) > limit:
            within = within[:limit]
            end = (within[-1].publisher, within[-1].header.subkey) if within else None
        found = tuple(Found.of(entry, answered=answers.joined_of) for entry in within)
        if end is None:
            return FoundPage(found)
        bookmark = bookmark.moved_to(end, key, answers.joined)
        most = self._config.replication_factor * self._config.limits.max_slots_per_key
        if bookmark.slots > most:
            raise QueryError(f"replicas name more than {most:,} slots: they make them up, or have other limits")
        return FoundPage(found, bookmark.encode())

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
        absence = self._known_replicas()
        answers = {key: Answers(needed, absence, selection) for key in keys}
        asked = 0
        with trio.move_on_after(max(0.0, ends_at_s - self._clock.monotonic_s())) as limit:
            for width in sorted({needed, self._config.replication_factor, self._config.k_bucket_size}):
                by_peer: dict[PeerId, list[Key]] = defaultdict(list)
                for key, said in answers.items():
                    until = min(width, said.enough_nearest) if said.behind else width
                    for server in servers[key][asked:until] if said.missing else ():
                        by_peer[server.peer].append(key)
                await self._get_batches(by_peer, answers)
                asked = width
        found: dict[Key, Found | None] = {}
        silent = self._silent_replicas()  # once: of those that failed there may be thousands
        for key, said in answers.items():
            chosen = selection.choose(said.joined, self._clock.now_us())
            answered = (server for server in servers[key] if server.peer in said.by_peer)
            nearest = self._nearest_replicas(key, answered, silent)
            # Those that were being asked when the time was up have not failed, and others were not asked at all.
            is_open = said.missing or said.are_declined(nearest)
            in_doubt = is_open if limit.cancelled_caught else said.leaves_in_doubt(nearest)
            if chosen or (self._neighbourhood.has_met_anybody() and not in_doubt):
                found[key] = Found.of(chosen[0], answered=said.joined_of) if chosen else None
                self._repair_soon(key, said)
        if keys and not found:
            why = next(filter(None, (said.why_declined() for said in answers.values())), "")
            raise QueryError(f"too few servers answered for any of the {len(keys)} keys{why and f'; {why}'}")
        return found

    # Asking

    def _quorum(self, wanted: int | None) -> int:
        limit = self._config.replication_factor
        if wanted is not None and not 1 <= whole_number_of("quorum", wanted) <= limit:
            raise ConfigError(f"quorum must be in 1 ..= {limit}, not {wanted}")
        asked = wanted or self._config.read_quorum or limit // 2 + 1
        return min(asked, self._known_replicas())

    def _known_replicas(self) -> int:
        """How many a key has, as far as is known; where they are few, those count of which it was only told."""
        wanted = self._config.replication_factor
        known = self._neighbourhood.servers_known(at_most=wanted)
        if known < wanted:
            known += len(self._neighbourhood.silent_replicas(or_told_of=True, at_most=wanted - known))
        return max(1, known)

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
            # In place of the first that is behind another is asked: most often that is all.
            if contact.peer in answers.counted or answers.behind == {contact.peer}:
                if answers.joined_of == len(answers.by_peer):  # so far so good
                    lookup.narrow(answers.missing)
            else:
                lookup.widen(self._config.alpha)  # not what one hopes for: from here on search broadly

        async def take_rest(contact: Contact, sent: Sent) -> None:
            await self._take_rest(contact, key, query, await self._pages.judge_page(sent), answers)
            adjust(contact)

        def take(contact: Contact, reply: Reply) -> Task | None:
            sent = self._pages.check(key, query, reply)
            if not sent.is_short or (sent.next_cursor and query.newest):
                return partial(take_rest, contact, sent)
            answers.add(contact.peer, self._pages.judge_short(sent))
            adjust(contact)
            return None

        def is_enough() -> bool:
            return not answers.missing or (bool(answers.behind) and lookup.has_heard_nearest(answers.enough_nearest))

        result = await self._explorer.run(lookup, GetValue(key, query), take=take, until=is_enough)
        if answers.found_nothing and self._neighbourhood.is_server and self._network.local not in answers.by_peer:
            await self._ask_here(key, query, answers)  # it may hold what the nearest held before they died
        if not answers.found_nothing:
            return
        replicas = self._nearest_replicas(key, result.closest, self._silent_replicas())
        are_missing = bool(answers.missing)
        if are_missing:
            left_s = self._config.operation_timeout_s - (result.ended_at_s - result.started_at_s)
            patience_s = left_s if answers.leaves_in_doubt(replicas) else min(left_s, BACK_WITHIN_S)
            with trio.move_on_after(max(0.0, patience_s)):
                async with trio.open_nursery() as nursery:
                    for replica in answers.silent_among(replicas):
                        nursery.start_soon(self._ask_again, replica, key, query, answers)
        if answers.are_declined(replicas):
            raise QueryError(answers.why_declined())
        # Those that were being asked when the time was up have not failed.
        if are_missing and (result.outcome is Outcome.DEADLINE or answers.leaves_in_doubt(replicas)):
            silent = f"{len(answers.silent_among(replicas))} of the {len(replicas)} closest did not answer"
            had_nothing = f"servers that had nothing: {len(answers.by_peer) - len(answers.declined)}"
            raise QueryError(
                "; ".join(filter(None, (f"too few replicas to tell: {silent}", had_nothing, answers.why_declined())))
            )

    def _silent_replicas(self) -> _Silent:
        known = self._neighbourhood
        replicas = known.silent_replicas()
        enough = len(replicas) + self._config.replication_factor  # those are among these
        return _Silent(replicas, known.silent_replicas(or_told_of=True, at_most=enough))

    def _nearest_replicas(self, key: Key, answered: Iterable[Contact], silent: _Silent) -> list[Contact]:
        """The ``r`` closest to a key, of those that answered and those that have failed this node a moment ago.

        Where there are fewer than ``r``, those count too of which it was only told, and which may hold the key. Where
        there are enough they do not: anybody can name what is not there.
        """
        known = {contact.peer: contact for contact in (*answered, *silent.replicas)}
        own, wanted = self._neighbourhood.own_contact(), self._config.replication_factor
        replicas = choose_replicas(kad_key(key), known.values(), wanted, own=own)
        told_of = (contact for contact in silent.or_told_of if contact.peer not in known)
        return [*replicas, *islice(told_of, wanted - len(replicas))]

    async def _ask_again(self, contact: Contact, key: Key, query: SlotQuery, answers: Answers) -> None:
        with suppress(QueryError, RemoteProtocolError):
            reply = await self._neighbourhood.ask(contact, GetValue(key, query))
            page = await self._pages.read(key, query, reply)
            await self._take_rest(contact, key, query, page, answers)

    async def _ask_here(self, key: Key, query: SlotQuery, answers: Answers) -> None:
        page = await self._server.read(key, query)
        judged = await self._pages.judge(page.entries)
        while page.next_cursor and query.newest:
            page = await self._server.read(key, replace(query, cursor=page.next_cursor))
            judged += await self._pages.judge(page.entries)
        holds, end = self._server.holds(key, names_some=bool(judged.admitted)), decode_cursor(page.next_cursor)
        answers.add(self._network.local, Page(judged, holds, not holds, end, page.next_cursor))

    async def _take_rest(self, contact: Contact, key: Key, query: SlotQuery, page: Page, answers: Answers) -> None:
        """Fetch the pages of a replica's answer behind the first, if it is to be complete, and count it.

        Raises:
            QueryError: a page did not come.
            RemoteProtocolError: the replica sent something that no honest one holds.
        """
        judged = page.judged
        pages = 1
        while page.next_cursor and query.newest and pages < MAX_PAGES:
            query = replace(query, cursor=page.next_cursor)
            reply = await self._neighbourhood.ask(contact, GetValue(key, query))
            page = await self._pages.read(key, query, reply)
            judged += page.judged
            pages += 1
        answers.add(contact.peer, replace(page, judged=judged))

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
        begun: list[tuple[Key, Page]] = []
        asked_at_s = self._clock.monotonic_s()
        try:
            while keys:
                reply = await self._neighbourhood.ask(contact, GetValue(Key(b""), query, tuple(keys)))
                for key, item in zip(keys, reply.batch, strict=False):  # it may answer for the first keys only
                    page = await self._pages.read(key, query, item)
                    if page.next_cursor:
                        begun.append((key, page))
                    else:
                        answers[key].add(peer, page)
                if not reply.batch:
                    break
                keys = keys[len(reply.batch) :]
            for key, page in begun:  # last: there may be much of them
                await self._take_rest(contact, key, query, page, answers[key])
        except (QueryError, RemoteProtocolError) as error:
            self._neighbourhood.failed(peer, error, asked_at_s=asked_at_s)  # what it leaves open is asked of others
        finally:
            place.release()

    # Repairing

    def _repair_soon(self, key: Key, answers: Answers) -> None:
        """Of those that answered, bring the ``r`` closest to the key up to date."""
        if answers.horizon is not None:
            return  # of a page, what is missing cannot be told from what lies beyond
        if len(answers.by_peer) == 1:
            return  # what there is it has
        lacking = answers.lacking(self._clock.now_us())
        if not lacking:
            return
        answered = [self._neighbourhood.contact(peer) for peer in answers.by_peer if peer != self._network.local]
        own = self._neighbourhood.own_contact()
        for replica in choose_replicas(kad_key(key), answered, self._config.replication_factor, own=own):
            peer, entries = replica.peer, lacking.get(replica.peer)
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
