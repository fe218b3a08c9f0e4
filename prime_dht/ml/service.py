"""A node that runs for as long as an orchestrator or a trainer does, and tells it what happens: :class:`Service`.

    def deploy(version: ModelVersion) -> None:
        print(version.model_id, version.version)

    with Service(["/ip4/192.0.2.1/tcp/4001/p2p/12D3Koo…"], on_model=deploy) as service:
        service.watch_model("digits")
        service.wait()

A service has one life: ``new``, ``starting``, ``running``, ``stopped``. While it runs, :attr:`Service.dht` is a client
like that of :func:`prime_dht.connect`, for all there is to do with models and gradients.

- **Callbacks** run in a thread of the service, one at a time, in the order of what happened. What one raises is logged
  and counted, and the next one runs. While one takes long, up to :data:`CALLBACKS_WAITING` wait for it; those that come
  then are dropped, and counted. They may use the client, and stop the service.
- **Watching** is asking again and again, in a second thread, at intervals that vary by half, so that services which
  were started together do not ask together. A question that fails is a warning in :meth:`Service.health` until one
  succeeds.
- **Stopping** lets the callbacks that wait run for :data:`DRAINING_S`, then closes the client. What a put or a push has
  acknowledged is safe; calls under way end with an error, so whoever made them knows. A service that nobody stops is
  stopped when Python exits.
- **SIGTERM**, which is how a scheduler says stop, raises ``SystemExit`` with status 143 in the main thread, wherever
  that is, so that ``with`` and ``finally`` end what they began; a second one ends the process at once. That is so while
  a service runs that was started in the main thread, unless the program has a handler of its own.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from queue import Empty, SimpleQueue
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Literal, NoReturn, Self

import prime_dht
from prime_dht.errors import ConfigError, LocalProtocolError, PrimeDHTError
from prime_dht.events import PeerJoined
from prime_dht.ml.extra import extra_needed
from prime_dht.quantities import number_of

if TYPE_CHECKING:
    from prime_dht import LearningDHT, ModelVersion, NodeConfig, PrimeDHT
    from prime_dht.ids import PeerId
    from prime_dht.ml.agreement import Commit
    from prime_dht.ml.rounds.verification import GivenMembers

State = Literal["new", "starting", "running", "stopped"]

CALLBACKS_WAITING = 100
"""Callbacks that wait for the one that runs, at most."""

DRAINING_S = 0.5
"""How long a service that stops lets callbacks run. The client takes a fifth of that to close."""

_HEALTH_S = 5.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceHealth:
    """How a service is doing, in plain numbers and texts.

    Attributes:
        state: ``new``, ``starting``, ``running`` or ``stopped``.
        peer_id: the node's own, empty unless it runs.
        peers: nodes that it knows; connected: to so many of them.
        warnings: what a person should look at, one line each.
        last_round: the round that was committed last, as far as the service was told.
        last_model_id, last_model_version: the newest version that appeared of a model that is watched.
        uptime_s: since it had joined.
        callbacks_failed, callbacks_dropped: since it started.
    """

    state: State
    peer_id: str
    peers: int
    connected: int
    warnings: tuple[str, ...]
    last_round: int | None
    last_model_id: str | None
    last_model_version: int | None
    uptime_s: float
    callbacks_failed: int
    callbacks_dropped: int

    def as_json(self) -> str:
        """All of it as one line."""
        return json.dumps(asdict(self))


class Callbacks:
    """A thread that calls functions, one at a time, in the order in which they were offered.

    Attributes:
        failed: how many raised something.
        dropped: how many were not called, because too many waited or the thread had to end.
    """

    def __init__(self) -> None:
        self.failed = 0
        self.dropped = 0
        self._waiting: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="prime_dht callbacks", daemon=True)

    def start(self) -> None:
        """Begin to call."""
        self._thread.start()

    def offer(self, call: Callable[[], object]) -> None:
        """Have a function called when it is its turn, unless :data:`CALLBACKS_WAITING` are before it."""
        with self._lock:
            if self._waiting.qsize() < CALLBACKS_WAITING:
                self._waiting.put(call)
            else:
                self.dropped += 1

    def finish(self, timeout_s: float) -> None:
        """Wait until all that were offered have been called, but not longer; call none after that."""
        self._waiting.put(None)
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(timeout_s)
        with self._lock:
            with suppress(Empty):
                while True:  # not "until it is empty": the thread may take the last one, and then there is none to get
                    self.dropped += self._waiting.get_nowait() is not None
            self._waiting.put(None)

    def _run(self) -> None:
        while (call := self._waiting.get()) is not None:
            try:
                call()
            except BaseException:  # whatever its author made it raise; SystemExit would end this thread in silence
                self.failed += 1
                logger.exception("a callback failed; the service goes on")


class Watching:
    """A thread that looks at things again and again.

    Args:
        pause_s: between two looks, on average.

    Attributes:
        failures: of the things whose last look failed, by name, why.
    """

    def __init__(self, pause_s: float) -> None:
        self.failures: dict[str, str] = {}
        self._pause_s = pause_s
        self._looks: dict[str, Callable[[], None]] = {}
        self._is_finishing = False
        self._hurry = threading.Event()
        self._thread = threading.Thread(target=self._run, name="prime_dht watching", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def add(self, name: str, look: Callable[[], None]) -> None:
        """Look at a thing at once, and from then on; instead of what had this name."""
        self._looks = {**self._looks, name: look}  # a new dict: the thread may be going through the old one
        self._hurry.set()

    def finish(self) -> None:
        """Begin no more looks. One that is under way ends when the client closes."""
        self._is_finishing = True
        self._hurry.set()

    def _run(self) -> None:
        chance = random.Random()  # noqa: S311 - it only has to differ from process to process
        while not self._is_finishing:
            for name, look in self._looks.items():
                try:
                    look()
                    self.failures.pop(name, None)
                except PrimeDHTError as error:
                    if not self._is_finishing:
                        self.failures[name] = str(error)
            self._hurry.wait(self._pause_s * chance.uniform(0.5, 1.5))
            self._hurry.clear()


class Sigterm:
    """SIGTERM as ``SystemExit`` in the main thread; see the module."""

    def heed(self) -> None:
        """Begin, if this is the main thread and nobody else handles the signal."""
        if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, self._exit)

    def forget(self) -> None:
        """Leave the signal as it was, if this is the main thread."""
        if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == self._exit:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _exit(self, signum: int, _: FrameType | None) -> NoReturn:
        signal.signal(signum, signal.SIG_DFL)
        raise SystemExit(128 + signum)


class Service:
    """See the module. Use it as ``with``, or start and stop it.

    Args:
        peers, data_dir, serve, config, timeout: as for :func:`prime_dht.connect`.
        poll_s: seconds between two looks at what is watched, on average.
        on_peer: called with each peer that is known when the service has joined, and then with each that joins.
        on_model: called with the newest version of each model that is watched, and then with each that appears.
        on_round: called with the outcome of each round that is committed, and its proof, of groups that are watched.
    """

    def __init__(
        self,
        peers: str | Iterable[str] = (),
        *,
        data_dir: str | os.PathLike[str] | None = None,
        serve: bool = False,
        config: NodeConfig | None = None,
        timeout: float = 30.0,
        poll_s: float = 10.0,
        on_peer: Callable[[PeerJoined], object] | None = None,
        on_model: Callable[[ModelVersion], object] | None = None,
        on_round: Callable[[Commit], object] | None = None,
    ) -> None:
        if not (poll_s := number_of("poll_s", poll_s)) > 0:
            raise ConfigError(f"poll_s must be a positive number of seconds, not {poll_s}")
        self._connect = partial(
            prime_dht.connect, peers, data_dir=data_dir, serve=serve, config=config, timeout=timeout
        )
        self._on_peer, self._on_model, self._on_round = on_peer, on_model, on_round
        self._lock = threading.Lock()  # of the state; held for moments
        self._state: State = "new"
        self._dht: LearningDHT | None = None
        self._callbacks, self._watching, self._sigterm = Callbacks(), Watching(poll_s), Sigterm()
        self._running_since_s = 0.0
        self._node_failed = False
        self._stopped = threading.Event()
        self._last_round: int | None = None
        self._last_model: ModelVersion | None = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> Self:
        """Join the swarm, and return when that is done.

        Raises:
            LocalProtocolError: it was started before, or it was stopped before it had joined.
            PrimeDHTError: it has not joined, and why; see :func:`prime_dht.connect`.
        """
        with self._lock:
            if self._state != "new":
                raise LocalProtocolError(f"a service has one life, and this one is {self._state}: make another")
            self._state = "starting"
        try:
            self._sigterm.heed()
            self._dht = self._connect()
            self._callbacks.start()
            self._watching.start()
            with self._lock:
                if self.state == "stopped":
                    raise LocalProtocolError("the service was stopped before it had joined")
                self._state, self._running_since_s = "running", time.monotonic()
            atexit.register(self._stop_at_exit, os.getpid())
            self._dht.call(self._follow, wait=False).add_done_callback(self._node_ended)
        except BaseException:  # SIGTERM and Ctrl-C among them
            self._state = "stopped"
            self._end()
            self._sigterm.forget()
            raise
        return self

    def stop(self) -> None:
        """Leave the swarm, within a second. Any thread may call this, at any time, and again."""
        with self._lock:
            before, self._state = self._state, "stopped"
        if before in ("new", "running"):
            self._end()
        elif before == "stopped":
            self._stopped.wait(2 * DRAINING_S)  # another thread may be at it
        self._sigterm.forget()

    def _stop_at_exit(self, process: int) -> None:
        if os.getpid() == process:  # a forked child leaves the service to its parent
            self.stop()

    def _end(self) -> None:
        atexit.unregister(self._stop_at_exit)
        self._watching.finish()
        self._callbacks.finish(DRAINING_S)
        if self._dht is not None:
            self._dht.close()
        self._stopped.set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the service has stopped, which SIGTERM does; whether it has, if that takes ``timeout`` seconds."""
        return self._stopped.wait(timeout)

    @property
    def state(self) -> State:
        """Where it is in its life."""
        return self._state

    @property
    def dht(self) -> LearningDHT:
        """The client, for puts and gets, models and gradients.

        Raises:
            LocalProtocolError: the service has not joined yet.
        """
        if self._dht is None:
            raise LocalProtocolError(f"the service is {self._state}: it has a client when it has joined")
        return self._dht

    def watch_model(self, model_id: str, *, publisher: PeerId | str | None = None) -> None:
        """Have ``on_model`` called with the newest version of a model, and with each that appears from then on.

        Args:
            publisher: whose versions; anybody's by default, and anybody may publish one.

        Raises:
            ValidationError: it is no model id, or the publisher is no peer id.
            ConfigError: the extra ``ml`` is missing.
        """
        with extra_needed():
            from prime_dht.ml.models.version import checked_id
            from prime_dht.ml.watching import Versions
            from prime_dht.node.arguments import peer_id_of
        by = None if publisher is None else peer_id_of(publisher)
        versions = Versions(model_id=checked_id(model_id), publisher=by, tell=self._model_appeared)
        self._watching.add(f"model {model_id}", lambda: versions.look(self.dht))

    def watch_rounds(self, group: str | bytes, members: GivenMembers, *, first: int = 0) -> None:
        """Have ``on_round`` called with the rounds of a group when they are committed, in order, each with its proof.

        One need not be a member for this. A round that fails is passed over when one of the next three is committed,
        or a later one: that may take some looks more, the further ahead it is. Those more than 1,000 rounds ahead are
        not looked for.

        Args:
            group: its root, or what its keys begin with.
            members: who takes part, by peer id; or the weights of their votes by peer id.
            first: the round to begin with.

        Raises:
            ValidationError: the group or the members are malformed, or there is no such round.
            ConfigError: the extra ``ml`` is missing.
        """
        with extra_needed():
            from prime_dht.ml.gradients.announcement import checked_group, checked_round
            from prime_dht.ml.rounds.verification import as_members
            from prime_dht.ml.watching import Commits
        root = checked_group(group)
        following = checked_round(first)
        commits = Commits(group=root, members=as_members(members), following=following, tell=self._round_committed)
        self._watching.add(f"rounds of group {root.hex()[:8]}", lambda: commits.look(self.dht))

    def round_ended(self, round_number: int) -> None:
        """Tell the service of a round that has ended well, for :meth:`health`: whoever runs rounds knows."""
        self._last_round = round_number

    def _round_committed(self, commit: Commit) -> None:
        self._last_round = commit.outcome.round_number
        if self._on_round is not None:
            self._callbacks.offer(partial(self._on_round, commit))

    def _model_appeared(self, version: ModelVersion) -> None:
        self._last_model = version
        if self._on_model is not None:
            self._callbacks.offer(partial(self._on_model, version))

    def health(self) -> ServiceHealth:
        """How the service is doing, in any state."""
        node, uptime_s = None, 0.0
        warnings = ["the node ended by itself"] if self._node_failed else []
        warnings += [f"{name}: {why}" for name, why in dict(self._watching.failures).items()]
        if self._state == "running":
            uptime_s = time.monotonic() - self._running_since_s
            try:
                node = self.dht.health(timeout=_HEALTH_S)
                warnings += node.warnings
            except PrimeDHTError as error:
                warnings.append(f"the node does not answer: {error}")
        return ServiceHealth(
            state=self._state,
            peer_id="" if node is None else node.peer_id,
            peers=0 if node is None else node.peers,
            connected=0 if node is None else node.connected,
            warnings=tuple(warnings),
            last_round=self._last_round,
            last_model_id=None if self._last_model is None else self._last_model.model_id,
            last_model_version=None if self._last_model is None else self._last_model.version,
            uptime_s=round(uptime_s, 3),
            callbacks_failed=self._callbacks.failed,
            callbacks_dropped=self._callbacks.dropped,
        )

    async def _follow(self, dht: PrimeDHT) -> None:
        """In the node's thread: tell of peers for as long as it runs."""
        with dht.subscribe() as events:
            for peer in dht.peers():
                self._peer_joined(PeerJoined(peer=peer.peer, addresses=peer.addresses))
            async for event in events:
                if isinstance(event, PeerJoined):
                    self._peer_joined(event)

    def _peer_joined(self, joined: PeerJoined) -> None:
        if self._on_peer is not None:
            self._callbacks.offer(partial(self._on_peer, joined))

    def _node_ended(self, _: Future[None]) -> None:
        if self._state == "running":
            logger.error("the node ended by itself; the service stops")
            self._node_failed = True
            threading.Thread(target=self.stop, name="prime_dht stopping").start()
