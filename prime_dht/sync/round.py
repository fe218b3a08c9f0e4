"""A round: one conversation between two nodes, after which both have what either had.

:meth:`Round.initiate` and :meth:`Round.accept` make the two sides. Each is run alike: call :meth:`Round.step` with the
result of the action before, at first with None, and carry out the action it returns
(:mod:`prime_dht.sync.actions`), until that is a :class:`~prime_dht.sync.actions.Finish`::

    event = None
    while not isinstance(action := round.step(event), Finish):
        event = await carry_out(action)

The smallest round is one message each way. The next, for up to some ten differences, takes three:

==================================================  ======================================================
initiator                                           responder
==================================================  ======================================================
Open: arc, minimal snapshot, 32 symbols
..                                                  Turn: what the other lacks, ids it wants, its verdict
Turn: the entries wanted
==================================================  ======================================================

For more, the responder asks on before it comes to its verdict (:mod:`prime_dht.sync.lead`).

Whatever a peer sends that has no place in the round ends it: the peer is charged, and nothing of that message is
stored. What was stored before it stays; it was verified. A round that takes too long, or in which one side cannot take
what it is sent, is broken off by that side without blame.
"""

from __future__ import annotations

from dataclasses import dataclass

from prime_dht.errors import LocalProtocolError
from prime_dht.partition.arcs import ArcSet
from prime_dht.partition.slices import END_OF_TIME_US
from prime_dht.partition.snapshot import TAIL_UNITS
from prime_dht.partition.symbols import SALT_BYTES, Code
from prime_dht.sync.actions import (
    Action,
    Charge,
    Ending,
    Event,
    Finish,
    Misconduct,
    Outcome,
)
from prime_dht.sync.chance import Rng
from prime_dht.sync.exchange import Exchange, Gone, Misbehaved, Steps, Tally, Unfinished, receive, receive_turn, send
from prime_dht.sync.follow import follow
from prime_dht.sync.lead import lead
from prime_dht.sync.limits import TURN_BYTES
from prime_dht.sync.messages import (
    Acceptance,
    Digest,
    Foreign,
    Network,
    Open,
    Probe,
    Refusal,
    Refuse,
    Turn,
    Verdict,
    mismatch,
)
from prime_dht.sync.view import View

PROBE_EVERY = 16
"""One in so many rounds has a probe."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Participant:
    """What this node says of itself in a round.

    Attributes:
        network: what it must have in common with others.
        arc: the sectors it stores, or wants to.
        held: those of them it holds.
        view: what it has, made when the round begins.
        latest_us: entries dated later are not sent, as nobody whose clock is near enough for a round takes them now. A
            node has such that it put while its clock was fast.
    """

    network: Network
    arc: ArcSet
    held: ArcSet
    view: View
    latest_us: int = END_OF_TIME_US


class Round:
    """One side of a round. See the module.

    Attributes:
        view: tell it what comes and goes at this node while the round lasts.
    """

    def __init__(self, steps: Steps[Outcome], view: View, state: _State) -> None:
        self.view = view
        self._steps = steps
        self._state = state
        self._has_begun = False
        self._outcome: Outcome | None = None
        self._is_finished = False

    @classmethod
    def initiate(
        cls, node: Participant, *, nonce: int, rng: Rng, partner_arc: ArcSet | None = None, dry_run: bool = False
    ) -> Round:
        """The side that begins.

        Args:
            nonce: drawn for this round, below 2**32.
            rng: for salts, and for whether there is a probe. What it draws must not be foreseeable.
            partner_arc: the partner's, if it is known from before: saves a message if it is right.
            dry_run: only compare.

        Raises:
            LocalProtocolError: the node stores nothing, or it is of another partition than its network.
        """
        _check(node)
        state = _State()
        return cls(_guarded(_initiate(node, nonce, rng, partner_arc, dry_run, state), state), node.view, state)

    @classmethod
    def accept(cls, node: Participant, opened: Open | Foreign, *, rng: Rng) -> Round:
        """The side that was asked. It may still refuse.

        Args:
            opened: what came first on the stream.
            rng: as for :meth:`initiate`.

        Raises:
            LocalProtocolError: as for :meth:`initiate`.
        """
        _check(node)
        state = _State()
        if isinstance(opened, Foreign):
            steps = _refuse(mismatch(node.network, opened))
        else:
            steps = _accept(node, opened, rng, state)
        return cls(_guarded(steps, state), node.view, state)

    def limit_turns(self, turn_bytes: int) -> None:
        """Put entries and answers into a turn from here on only while it takes no more than this, or holds just one.

        Nothing of a turn is of use before all of it has come, so on a slow path many small ones are better.
        """
        self._state.turn_bytes = min(turn_bytes, TURN_BYTES)
        if self._state.exchange is not None:
            self._state.exchange.turn_bytes = self._state.turn_bytes

    def step(self, event: Event) -> Action:
        """What to do next, given the result of what was to be done before.

        Raises:
            LocalProtocolError: the event is not a result of the action before, or the round is over.
        """
        if self._is_finished:
            raise LocalProtocolError("the round is over")
        if self._outcome is None:
            try:
                action = self._steps.send(event if self._has_begun else None)
            except StopIteration as stop:
                self._outcome = stop.value
            else:
                self._has_begun = True
                return action
        self._is_finished = True
        assert self._outcome is not None
        return Finish(self._outcome)


@dataclass(slots=True)
class _State:
    """How far a round has come."""

    led: bool = False
    turn_bytes: int = TURN_BYTES
    exchange: Exchange | None = None
    partner_arc: ArcSet | None = None
    partner_held: ArcSet | None = None


def _guarded(steps: Steps[Outcome], state: _State) -> Steps[Outcome]:
    """The round, and its end if the peer breaks it."""
    try:
        return (yield from steps)
    except Misbehaved as error:
        yield Charge(error.misconduct, str(error))
        return _outcome(state, Ending.FAILED, misconduct=error.misconduct)
    except Unfinished:
        if state.exchange is None:
            return _outcome(state, Ending.FAILED)
        state.exchange.unsettled = state.exchange.common
        return _outcome(state, Ending.PARTIAL)
    except Gone:
        return _outcome(state, Ending.FAILED)


def _refuse(refusal: Refuse) -> Steps[Outcome]:
    yield from send(refusal)
    return Outcome(ending=Ending.REFUSED, refusal=refusal)


def _initiate(
    node: Participant, nonce: int, rng: Rng, partner_arc: ArcSet | None, dry_run: bool, state: _State
) -> Steps[Outcome]:
    about = node.arc if partner_arc is None else (node.arc & partner_arc)
    about = about if about else node.arc
    digest = node.view.digest(about)
    probe = yield from _probe(node.view, about, rng)
    opening = Open(
        network=node.network, arc=node.arc, held=node.held, digest=digest, nonce=nonce, dry_run=dry_run, probe=probe
    )
    yield from send(opening)
    answer = yield from receive()
    if isinstance(answer, Refuse):
        return Outcome(ending=Ending.REFUSED, refusal=answer)
    if not isinstance(answer, Turn) or answer.acceptance is None:
        raise Misbehaved(Misconduct.OUT_OF_TURN, "what answers an opening is a refusal or an acceptance")
    acceptance = answer.acceptance
    common = node.arc & acceptance.arc
    exchange = _meet(state, node, acceptance.arc, acceptance.held)
    theirs = acceptance.digest
    if theirs is None:
        if common != about:
            raise Misbehaved(Misconduct.OUT_OF_TURN, "an answer about other sectors than those in common")
        verdict = yield from follow(exchange, answer, dry_run=dry_run)
    else:
        if theirs.arcs != common or answer != Turn(acceptance=acceptance):
            raise Misbehaved(Misconduct.OUT_OF_TURN, "an acceptance that lets the initiator lead holds nothing else")
        if _ticks_apart(node.view, theirs) > TAIL_UNITS:
            return Outcome(ending=Ending.REFUSED, refusal=Refuse(Refusal.CLOCKS))
        state.led = True
        verdict = yield from lead(exchange, theirs, rng=rng, dry_run=dry_run, acceptance=None, probe=None)
    return _concluded(state, verdict, dry_run=dry_run)


def _accept(node: Participant, opened: Open, rng: Rng, state: _State) -> Steps[Outcome]:
    if (refusal := _objection(node, opened)) is not None:
        return (yield from _refuse(refusal))
    exchange = _meet(state, node, opened.arc, opened.held)
    theirs = opened.digest
    if theirs.arcs == exchange.common:
        state.led = True
        acceptance = Acceptance(arc=node.arc, held=node.held)
        probe = opened.probe if opened.probe is not None and opened.probe.sector in exchange.common else None
        verdict = yield from lead(exchange, theirs, rng=rng, dry_run=opened.dry_run, acceptance=acceptance, probe=probe)
    else:
        digest = node.view.digest(exchange.common)
        yield from send(Turn(acceptance=Acceptance(arc=node.arc, held=node.held, digest=digest)))
        verdict = yield from follow(exchange, (yield from receive_turn()), dry_run=opened.dry_run)
    return _concluded(state, verdict, dry_run=opened.dry_run)


def _objection(node: Participant, opened: Open) -> Refuse | None:
    """Why there can be no round, if so."""
    if not node.arc & opened.arc:
        return Refuse(Refusal.NO_COMMON_ARC)
    if _ticks_apart(node.view, opened.digest) > TAIL_UNITS:
        return Refuse(Refusal.CLOCKS)
    return None


def _probe(view: View, arcs: ArcSet, rng: Rng) -> Steps[Probe | None]:
    """Now and then a symbol of one of the sectors, chosen at random, by a salted code."""
    if rng.randrange(PROBE_EVERY):
        return None
    alone = ArcSet.of_sectors([rng.choice(list(arcs))], sector_bits=arcs.sector_bits)
    (sector,) = alone
    sketch = yield from Exchange(view, alone).sketch(alone, 1, Code(rng.randbytes(SALT_BYTES)))
    return None if sketch is None else Probe(sector=sector, sketch=sketch)


def _check(node: Participant) -> None:
    if not node.arc:
        raise LocalProtocolError("a node without an arc has nothing to compare")
    if node.network.parameters != node.view.layout.parameters:
        raise LocalProtocolError("the view is of another partition than the network's")


def _meet(state: _State, node: Participant, partner_arc: ArcSet, partner_held: ArcSet) -> Exchange:
    state.partner_arc, state.partner_held = partner_arc, partner_held
    common = node.arc & partner_arc
    state.exchange = Exchange(node.view, common, latest_us=node.latest_us, turn_bytes=state.turn_bytes)
    return state.exchange


def _ticks_apart(view: View, digest: Digest) -> int:
    return abs(view.layout.tail_start - digest.tops.layout.tail_start)


def _concluded(state: _State, verdict: Verdict, *, dry_run: bool) -> Outcome:
    exchange = state.exchange
    assert exchange is not None
    if not state.led:  # else what is left is what the other side may lack
        exchange.tally.only_ours, exchange.tally.only_theirs = verdict.only_follower, verdict.only_leader
        exchange.unsettled |= verdict.left & exchange.common
    exchange.unsettled |= exchange.withheld | (exchange.view.doubted & exchange.common)
    if dry_run:
        if exchange.tally.only_ours or exchange.tally.only_theirs:
            exchange.unsettled = exchange.common
        return _outcome(state, Ending.COMPARED)
    return _outcome(state, Ending.PARTIAL if exchange.unsettled else Ending.EQUAL)


def _outcome(state: _State, ending: Ending, *, misconduct: Misconduct | None = None) -> Outcome:
    exchange = state.exchange
    tally = exchange.tally if exchange is not None else Tally()
    is_compared = ending is not Ending.FAILED and exchange is not None
    return Outcome(
        ending=ending,
        led=state.led,
        common=exchange.common if exchange is not None else None,
        equal=exchange.common - exchange.unsettled if exchange is not None and is_compared else None,
        partner_arc=state.partner_arc,
        partner_held=state.partner_held,
        only_ours=tally.only_ours,
        only_theirs=tally.only_theirs,
        entries_sent=tally.sent,
        entries_received=tally.received,
        stored=tally.stored,
        superseded=tally.superseded,
        declined=dict(tally.declined),
        postponed=dict(tally.postponed),
        misconduct=misconduct,
    )
