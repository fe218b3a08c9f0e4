"""What happens in a simulation, and when: drawn from the seed before anything runs, so nothing that runs can change it.

A plan names *members* by number. The first :data:`ANCHORS` are those through which everybody joins: they crash like
others, but come back. Servers follow, then clients, which nobody can dial, then those that join in the middle. Some
servers are *liars*: they store in good faith, but now and then their answers are false. When the faults are over they
leave, and nothing that they hold counts.

Faults begin and end at times of their own, so they overlap. Of one member's faults no two of one kind do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from random import Random

from prime_dht.config import DhtConfig
from prime_dht.entries.limits import Limits

ANCHORS = 3
KEYS = 20
WRITERS_PER_KEY = 3
OPERATION_EVERY_S = 12.0
"""On average."""

MAX_SKEW_S = 290.0
"""By how much a member's clock is off at most, either way: two of them stay within ``Limits.clock_skew_s``."""

FAULTS_S = 2 * 3600.0
REFRESH_S = 600.0
SETTLE_S = 6 * REFRESH_S
"""After the faults. A peer that could not be reached is left alone for up to five minutes, and the halves of what was
cut look for each other at each refresh."""

WRONG_BY_S = (-50 * 365 * 86_400.0, -86_400.0, -3600.0, 2 * 86_400.0, 400 * 86_400.0)
"""By how much a clock may be wrong for a while: that of a machine without a battery, or set by hand. (Where it was fast
by a day or less, the store keeps away what it took for retired until that has retired: nothing is healed in time.)"""

BLOB_EVERY_S = 60.0
MANY_EVERY_S = 120.0
KEEP_EVERY_S = 400.0
PROVIDE_EVERY_S = 400.0
"""On average, over all members."""

BLOB_BYTES = ((70_000, 300_000), (1_100_000, 2_500_000))
"""Of blobs of one block, and of several."""

MAX_TTL_S = 6 * 3600.0
SHORT_TTLS_S = (60.0, 3600.0)
KEPT_TTLS_S = (1800.0, 3600.0)
LONG_TTLS_S = (4 * 3600.0, MAX_TTL_S)
"""Longer than a simulation, so that there is something left to check."""


@dataclass(frozen=True, slots=True)
class Put:
    """A member puts a new value into its slot under a key."""

    member: int
    key: int
    ttl_s: float


@dataclass(frozen=True, slots=True)
class PutBlob:
    """A member puts a value of so many bytes into its slot under a key."""

    member: int
    key: int
    ttl_s: float
    size_bytes: int


@dataclass(frozen=True, slots=True)
class PutMany:
    """A member puts a new value under each of these keys, all at once."""

    member: int
    keys: tuple[int, ...]
    ttl_s: float


@dataclass(frozen=True, slots=True)
class Keep:
    """A member puts a value under a key that nobody else uses, and keeps it alive from then on."""

    member: int
    ttl_s: float


@dataclass(frozen=True, slots=True)
class Provide:
    """A server announces content that only it has, from then on."""

    member: int


@dataclass(frozen=True, slots=True)
class Delete:
    """A member empties its slot under a key."""

    member: int
    key: int


@dataclass(frozen=True, slots=True)
class Get:
    """A member reads a writer's slot under a key, or, with no writer, all slots."""

    member: int
    key: int
    writer: int | None
    latest: bool


@dataclass(frozen=True, slots=True)
class Join:
    """A new member starts."""

    member: int


@dataclass(frozen=True, slots=True)
class Leave:
    """A member stops in good order, for ever."""

    member: int


@dataclass(frozen=True, slots=True)
class Crash:
    """A member dies. Its store may be lost with it, and its machine may be gone too, so that dials are not refused."""

    member: int
    is_store_lost: bool
    is_silent: bool


@dataclass(frozen=True, slots=True)
class Restart:
    """A member that crashed starts again."""

    member: int


@dataclass(frozen=True, slots=True)
class Cut:
    """These members hear only each other; so do all others."""

    members: frozenset[int]


@dataclass(frozen=True, slots=True)
class Heal:
    """The network is one again."""


@dataclass(frozen=True, slots=True)
class Lose:
    """This share of all messages is lost, each with the connection that it is on."""

    share: float


@dataclass(frozen=True, slots=True)
class Disconnect:
    """All connections of a member break."""

    member: int


@dataclass(frozen=True, slots=True)
class Slow:
    """What a member sends and receives takes this many times as long."""

    member: int
    factor: float


@dataclass(frozen=True, slots=True)
class SetClock:
    """A member's calendar is off by so much from here on."""

    member: int
    by_s: float


@dataclass(frozen=True, slots=True)
class BackUp:
    """A member's owner makes a copy of its store."""

    member: int


@dataclass(frozen=True, slots=True)
class Restore:
    """A member stops, and starts again at once with the store that was copied, without its blocks or with them."""

    member: int
    is_without_blocks: bool


@dataclass(frozen=True, slots=True)
class Move:
    """A member has another address from here on, and its connections are gone."""

    member: int


@dataclass(frozen=True, slots=True)
class CutOneWay:
    """Nothing that a member sends arrives, or nothing that is sent to it."""

    member: int
    is_mute: bool


@dataclass(frozen=True, slots=True)
class MendBothWays:
    """Undoes that."""

    member: int


@dataclass(frozen=True, slots=True)
class WrongClock:
    """A server's clock is wrong by more than any other node bears, or right again."""

    member: int
    by_s: float
    is_wrong: bool


class Trouble(Enum):
    """What may be wrong with a disc."""

    FULL = "is full"
    FAILING = "fails now and then, and sometimes after it did what it was told to"
    SLOW = "is slow"


@dataclass(frozen=True, slots=True)
class DiscTrouble:
    """Something is wrong with a member's disc from here on; with no trouble, nothing any more."""

    member: int
    trouble: Trouble | None


class Falsehood(Enum):
    """How a liar lies."""

    FALSE_PEERS = "names peers that do not exist, and false addresses of those that do"
    DAMAGE = "sends damaged messages"
    NO_ANSWER = "never answers"


@dataclass(frozen=True, slots=True)
class Lie:
    """A liar's answers are false from here on; with no falsehood, true again."""

    member: int
    falsehood: Falsehood | None


Operation = Put | PutBlob | PutMany | Keep | Provide | Delete | Get
Weather = Cut | Heal | CutOneWay | MendBothWays | Lose | Disconnect | Slow | Move
Fault = Join | Leave | Crash | Restart | BackUp | Restore | DiscTrouble | SetClock | WrongClock | Lie | Weather
Step = Operation | Fault


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All that chance decides, except for latencies, losses and the order in which tasks run.

    Attributes:
        servers, clients: that are there from the start; anchors and liars are among the servers.
        skews_s: by how much the clock of each of them is off at the start.
        steps: (seconds since the start, step), in order.
        writers: of each key, the members that put there.
    """

    seed: int
    config: DhtConfig
    servers: int
    clients: int
    liars: frozenset[int]
    skews_s: tuple[float, ...]
    steps: tuple[tuple[float, Step], ...]
    writers: tuple[tuple[int, ...], ...]


def draw_plan(seed: int, *, faults_s: float = FAULTS_S) -> Plan:
    """The plan of a seed."""
    return _Drawing(seed, faults_s).plan()


class _Drawing:
    def __init__(self, seed: int, faults_s: float) -> None:
        self._seed = seed
        self._rng = rng = Random(f"{seed}/plan")  # noqa: S311 - a simulation, nothing secret
        self._faults_s = faults_s
        self._servers = rng.randint(10, 16)
        self._clients = rng.randint(1, 2)
        self._members = self._servers + self._clients
        self._liars = frozenset(rng.sample(range(ANCHORS, self._servers), rng.randint(0, 2)))
        self._honest = [member for member in range(self._members) if member not in self._liars]
        self._gone_at_s: dict[int, float] = {}
        self._steps: list[tuple[float, Step]] = []

    def plan(self) -> Plan:
        rng = self._rng
        writers = tuple(tuple(rng.sample(self._honest, WRITERS_PER_KEY)) for _ in range(KEYS))
        skews_s = tuple(self._skew_s() for _ in range(self._members))
        self._comings_and_goings()
        self._crashes()
        self._cuts()
        self._weather()
        for liar in sorted(self._liars):
            self._lies(liar)
        for member in range(self._members):
            for at_s, end_s in self._times(mean_gap_s=2 * self._faults_s, mean_length_s=600.0):
                self._add(at_s, Slow(member, rng.choice((3.0, 30.0, 200.0))))
                self._add(end_s, Slow(member, 1.0))
        for at_s in self._moments(mean_gap_s=600.0):
            self._add(at_s, Disconnect(rng.randrange(self._members)))
        for at_s in self._moments(mean_gap_s=900.0):
            self._add(at_s, SetClock(rng.choice(self._honest), self._skew_s()))
        for at_s in self._moments(mean_gap_s=OPERATION_EVERY_S):
            self._add(at_s, self._operation(writers))
        self._misfortunes()
        self._more_operations(writers)
        self._steps.sort(key=lambda timed: timed[0])
        return Plan(
            seed=self._seed,
            config=DhtConfig(
                k_bucket_size=rng.choice((8, 20)),
                replication_factor=rng.choice((2, 3, 3, 3, 5)),
                record_republish_s=3 * REFRESH_S,
                refresh_interval=REFRESH_S,
                ttl=MAX_TTL_S,
                limits=Limits(max_ttl_s=MAX_TTL_S),
            ),
            servers=self._servers,
            clients=self._clients,
            liars=self._liars,
            skews_s=skews_s,
            steps=tuple(self._steps),
            writers=writers,
        )

    def _comings_and_goings(self) -> None:
        for number, at_s in enumerate(self._moments(mean_gap_s=self._faults_s / 3), start=self._members):
            self._add(at_s, Join(number))
        leavers = [member for member in self._honest if member >= ANCHORS]
        for member in self._rng.sample(leavers, self._rng.randint(0, 3)):
            self._gone_at_s[member] = self._rng.uniform(0, self._faults_s)
            self._add(self._gone_at_s[member], Leave(member))

    def _crashes(self) -> None:
        rng = self._rng
        for member in self._honest:
            for at_s, end_s in self._times(mean_gap_s=self._faults_s, mean_length_s=300.0):
                if end_s < self._gone_at_s.get(member, self._faults_s):
                    self._add(at_s, Crash(member, rng.random() < 0.25, rng.random() < 0.5))
                    self._add(end_s, Restart(member))

    def _cuts(self) -> None:
        rng = self._rng
        for at_s, end_s in self._times(mean_gap_s=self._faults_s / 3, mean_length_s=900.0):
            size = rng.choice((1, 2, self._members // 2))
            self._add(at_s, Cut(frozenset(rng.sample(range(self._members), size))))
            self._add(end_s, Heal())

    def _weather(self) -> None:
        for at_s, end_s in self._times(mean_gap_s=self._faults_s / 4, mean_length_s=600.0):
            self._add(at_s, Lose(self._rng.choice((0.005, 0.02, 0.1))))
            self._add(end_s, Lose(0.0))

    def _lies(self, liar: int) -> None:
        for at_s, end_s in self._times(mean_gap_s=self._faults_s / 6, mean_length_s=900.0):
            self._add(at_s, Lie(liar, self._rng.choice(tuple(Falsehood))))
            self._add(end_s, Lie(liar, None))

    def _misfortunes(self) -> None:
        """What befalls a member's machine alone."""
        rng = self._rng
        for at_s in self._moments(mean_gap_s=self._faults_s / 3):
            self._add(at_s, Move(rng.randrange(ANCHORS, self._members)))
        for member in range(self._members):
            for at_s, end_s in self._times(mean_gap_s=4 * self._faults_s, mean_length_s=600.0):
                self._add(at_s, CutOneWay(member, rng.random() < 0.5))
                self._add(end_s, MendBothWays(member))
        for member in self._honest:
            for at_s, end_s in self._times(mean_gap_s=2 * self._faults_s, mean_length_s=300.0):
                self._add(at_s, DiscTrouble(member, rng.choice(tuple(Trouble))))
                self._add(end_s, DiscTrouble(member, None))
        for member in self._honest:
            for at_s, end_s in self._times(mean_gap_s=4 * self._faults_s, mean_length_s=300.0):
                if member < self._servers:
                    self._add(at_s, WrongClock(member, rng.choice(WRONG_BY_S), is_wrong=True))
                    self._add(end_s, WrongClock(member, self._skew_s(), is_wrong=False))
        for member in rng.sample(self._honest, 2):
            copied_at_s, restored_at_s = sorted(rng.uniform(0, self._faults_s) for _ in range(2))
            self._add(copied_at_s, BackUp(member))
            self._add(restored_at_s, Restore(member, rng.random() < 0.5))

    def _more_operations(self, writers: tuple[tuple[int, ...], ...]) -> None:
        rng = self._rng
        for at_s in self._moments(mean_gap_s=BLOB_EVERY_S):
            key = rng.randrange(KEYS)
            size_bytes = rng.randint(*rng.choices(BLOB_BYTES, (9, 1))[0])
            ttl_s = rng.uniform(*rng.choice((SHORT_TTLS_S, LONG_TTLS_S)))
            self._add(at_s, PutBlob(rng.choice(writers[key]), key, ttl_s, size_bytes))
        for at_s in self._moments(mean_gap_s=MANY_EVERY_S):
            keys = tuple(rng.sample(range(KEYS), 8))
            self._add(at_s, PutMany(rng.choice(self._honest), keys, rng.uniform(*LONG_TTLS_S)))
        for at_s in self._moments(mean_gap_s=KEEP_EVERY_S):
            self._add(at_s, Keep(rng.choice(self._honest), rng.uniform(*KEPT_TTLS_S)))
        for at_s in self._moments(mean_gap_s=PROVIDE_EVERY_S):
            self._add(at_s, Provide(rng.choice([one for one in self._honest if one < self._servers])))

    def _operation(self, writers: tuple[tuple[int, ...], ...]) -> Operation:
        rng = self._rng
        key = rng.randrange(KEYS)
        writer = rng.choice(writers[key])
        match rng.choices(("put", "delete", "get"), (9, 2, 9))[0]:
            case "put":
                return Put(writer, key, rng.uniform(*rng.choice((SHORT_TTLS_S, LONG_TTLS_S))))
            case "delete":
                return Delete(writer, key)
            case _:
                reader = rng.randrange(self._members)
                return Get(reader, key, rng.choice((writer, None)), latest=rng.random() < 0.7)

    def _skew_s(self) -> float:
        return self._rng.uniform(-MAX_SKEW_S, MAX_SKEW_S)

    def _moments(self, *, mean_gap_s: float) -> Iterator[float]:
        """Times at random, of which on average one comes in ``mean_gap_s``."""
        at_s = self._rng.expovariate(1 / mean_gap_s)
        while at_s < self._faults_s:
            yield at_s
            at_s += self._rng.expovariate(1 / mean_gap_s)

    def _times(self, *, mean_gap_s: float, mean_length_s: float) -> Iterator[tuple[float, float]]:
        """Stretches of time, [start, end), that do not overlap and end with the faults."""
        free_at_s = 0.0
        for at_s in self._moments(mean_gap_s=mean_gap_s):
            if at_s >= free_at_s:
                free_at_s = min(at_s + self._rng.expovariate(1 / mean_length_s), self._faults_s)
                yield at_s, free_at_s

    def _add(self, at_s: float, step: Step) -> None:
        self._steps.append((at_s, step))
