"""The side that leads: it asks until it knows in what the two differ, sends what the other lacks, says what it wants.

What to ask, and what the answers mean, is for :mod:`prime_dht.sync.finding`. Here is the conversation: turn by turn as
many questions, entries and wants as have room, and at the end the verdict. What came in one turn is stored after the
next was sent, so while one side stores, the other makes its turn ready.
"""

from __future__ import annotations

from prime_dht.entries.codec import Undecodable
from prime_dht.entries.entry import Entry
from prime_dht.sync.actions import Misconduct
from prime_dht.sync.chance import Rng
from prime_dht.sync.exchange import Exchange, Misbehaved, Steps, receive_turn
from prime_dht.sync.finding import Finder
from prime_dht.sync.limits import MAX_LEADING_TURNS, MAX_NAMESAKES, MAX_TURNS, MAX_WANTED
from prime_dht.sync.messages import WANT_BYTES, Acceptance, Digest, Probe, Turn, Verdict


def lead(
    exchange: Exchange,
    theirs: Digest,
    *,
    rng: Rng,
    dry_run: bool,
    acceptance: Acceptance | None,
    probe: Probe | None,
) -> Steps[Verdict]:
    """Lead a round to its end; returns what was found.

    Args:
        theirs: of the common sectors.
        rng: for salts.
        acceptance: goes out with the first turn, if this side is the responder.
        probe: of theirs, if there is one.
    """
    finder = Finder(exchange, rng=rng, dry_run=dry_run)
    yield from finder.begin(theirs, probe)
    return (yield from _Leader(exchange, finder).run(acceptance))


class _Leader:
    def __init__(self, exchange: Exchange, finder: Finder) -> None:
        self._exchange = exchange
        self._finder = finder
        self._outstanding: set[bytes] = set()
        self._sent_to_us: set[bytes] = set()
        self._namesakes = 0
        self._declined = 0  # of what was wanted, by the follower

    def run(self, acceptance: Acceptance | None) -> Steps[Verdict]:
        """Ask, send and want, turn by turn, until there is nothing left."""
        arrived: tuple[Entry, ...] = ()
        for number in range(MAX_TURNS):
            if number == MAX_LEADING_TURNS and not self._is_done:
                self._give_up()
            turn = yield from self._turn(acceptance)
            acceptance = None
            yield from self._exchange.send_and_store(turn, arrived)
            if turn.verdict and not self._outstanding:
                return turn.verdict
            reply = yield from receive_turn()
            arrived = yield from self._take(reply)
            if turn.verdict and not reply.more:
                yield from self._exchange.store(arrived)
                return turn.verdict
        raise Misbehaved(Misconduct.ENDLESS, f"a follower that is not done after {MAX_TURNS} turns")

    def _turn(self, acceptance: Acceptance | None) -> Steps[Turn]:
        """The next turn."""
        exchange, finder = self._exchange, self._finder
        questions = yield from finder.questions()
        count = min(len(finder.wanted), MAX_WANTED - len(self._outstanding))
        wants = tuple(finder.wanted.popleft()[:WANT_BYTES] for _ in range(count))
        self._outstanding.update(wants)
        room_bytes = exchange.turn_bytes - WANT_BYTES * len(wants)
        entries = yield from exchange.gather(room_bytes, is_alone=not (questions or wants))
        return Turn(
            acceptance=acceptance,
            questions=questions,
            entries=entries,
            wants=wants,
            verdict=self._verdict() if self._is_done else None,
        )

    @property
    def _is_done(self) -> bool:
        """Whether nothing is left but what the follower still has to send."""
        return self._finder.is_done and not self._finder.wanted and not self._exchange.has_more

    def _verdict(self) -> Verdict:
        exchange, tally = self._exchange, self._exchange.tally
        exchange.unsettled |= self._finder.left
        left = self._finder.left | exchange.withheld | exchange.lacking
        return Verdict(only_leader=tally.only_ours, only_follower=tally.only_theirs, left=left)

    def _give_up(self) -> None:
        """Leave for the next round what this one, long as it is, has not come to."""
        tally = self._exchange.tally
        if tally.sent + tally.received < MAX_LEADING_TURNS:
            raise Misbehaved(Misconduct.ENDLESS, f"{MAX_LEADING_TURNS} turns that moved hardly an entry")
        self._finder.give_up()
        self._exchange.outgoing.clear()

    def _take(self, turn: Turn) -> Steps[tuple[Entry, ...]]:
        """Take what the follower says; returns the entries, which are still to be stored."""
        if turn.questions or turn.wants or turn.verdict:
            raise Misbehaved(Misconduct.OUT_OF_TURN, "a follower does not ask, want or judge")
        self._check_wanted(turn)
        arrived = self._exchange.checked(turn.entries)
        yield from self._finder.hear(turn.answers)
        self._declined += turn.declined
        if turn.vanished is not None:
            self._exchange.unsettled |= turn.vanished & self._exchange.common
        if not turn.more:
            # What did not come gave way to what we sent, unless the follower says otherwise. If it does not say such a
            # thing, what we sent may be too little for that.
            if turn.vanished is None and len(self._outstanding) > self._declined + self._exchange.tally.sent:
                self._exchange.unsettled = self._exchange.common
            self._declined = 0
            self._outstanding.clear()
            self._sent_to_us.clear()
        return arrived

    def _check_wanted(self, turn: Turn) -> None:
        """Check that each entry was wanted, or begins like one that was."""
        for entry in turn.entries:
            if isinstance(entry, Undecodable):
                continue
            want = entry.op_id[:WANT_BYTES]
            if want in self._outstanding:
                self._outstanding.discard(want)
                self._sent_to_us.add(want)
                continue
            self._namesakes += 1
            if want not in self._sent_to_us or self._namesakes > MAX_NAMESAKES:
                raise Misbehaved(Misconduct.UNWANTED, "an entry that was not wanted")
