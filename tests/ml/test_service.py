"""The service: its life, its callbacks, and what it watches, in a swarm of three nodes."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from queue import Queue
from types import FrameType
from typing import TYPE_CHECKING, cast

import numpy as np
import pytest
from libp2p.crypto.ed25519 import create_new_key_pair

from prime_dht import ConfigError, LearningDHT, LocalProtocolError, ModelVersion, QueryError, ValidationError
from prime_dht.entries import grant, root_of
from prime_dht.events import PeerJoined
from prime_dht.ids import US_PER_S, peer_text
from prime_dht.ml.aggregation import FederatedAverage
from prime_dht.ml.agreement import Commit, Members
from prime_dht.ml.rounds import RoundMember
from prime_dht.ml.service import CALLBACKS_WAITING, Callbacks, Service, Watching
from prime_dht.ml.tensors import spec_of
from prime_dht.ml.watching import Commits, Versions
from prime_dht.testing.gradient_samples import member
from prime_dht.testing.processes import running

if TYPE_CHECKING:
    from _typeshed import TraceFunction

PROMPTLY_S = 60.0
"""Ends a test that would hang."""


class Slow:
    """A callback that says that it has begun, and ends when it is told to."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.go_on = threading.Event()

    def __call__(self) -> None:
        self.begun.set()
        self.go_on.wait()


@pytest.fixture
def callbacks() -> Iterator[Callbacks]:
    callbacks = Callbacks()
    callbacks.start()
    yield callbacks
    callbacks.finish(0)


# Callbacks


def test_callbacks_run_in_order_one_at_a_time_in_another_thread(callbacks: Callbacks) -> None:
    calls: list[tuple[int, str]] = []

    def call(number: int) -> None:
        calls.append((number, threading.current_thread().name))

    for number in range(50):
        callbacks.offer(partial(call, number))
    callbacks.finish(PROMPTLY_S)
    assert calls == [(number, "prime_dht callbacks") for number in range(50)]


@pytest.mark.parametrize("error", [ValueError("oops"), SystemExit(3)])
def test_what_a_callback_raises_is_logged_and_counted_and_the_next_one_runs(
    callbacks: Callbacks, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise error

    called = threading.Event()
    callbacks.offer(fail)
    callbacks.offer(called.set)
    assert called.wait(PROMPTLY_S)
    assert callbacks.failed == 1
    (record,) = caplog.records
    assert record.exc_info is not None
    assert record.exc_info[1] is error


def test_what_comes_while_too_much_waits_for_a_slow_callback_is_dropped_and_counted(callbacks: Callbacks) -> None:
    slow, called = Slow(), list[int]()
    callbacks.offer(slow)
    slow.begun.wait()
    for number in range(CALLBACKS_WAITING + 7):
        callbacks.offer(partial(called.append, number))
    assert callbacks.dropped == 7
    slow.go_on.set()
    callbacks.finish(PROMPTLY_S)
    assert called == list(range(CALLBACKS_WAITING))


def test_callbacks_that_are_not_called_in_time_at_the_end_are_dropped_and_counted(callbacks: Callbacks) -> None:
    slow = Slow()
    callbacks.offer(slow)
    callbacks.offer(pytest.fail)
    slow.begun.wait()
    callbacks.finish(0.01)
    slow.go_on.set()
    assert (callbacks.dropped, callbacks.failed) == (1, 0)


@pytest.mark.parametrize("step", range(1, 12))
def test_it_ends_whenever_the_thread_takes_the_last_callback_meanwhile(step: int) -> None:
    """It takes them at one step after the other of what is done to end it."""
    callbacks, slow = Callbacks(), Slow()
    callbacks.offer(slow)
    callbacks.offer(lambda: None)
    callbacks.start()
    slow.begun.wait()
    steps = 0

    def trace(frame: FrameType, event: str, arg: object) -> TraceFunction | None:
        nonlocal steps
        if frame.f_code is not Callbacks.finish.__code__:
            return None
        steps += event == "line"
        if steps == step:
            slow.go_on.set()
            while not callbacks._waiting.empty():
                pass
        return trace

    def finish() -> None:
        sys.settrace(trace)
        callbacks.finish(0)

    finishing = threading.Thread(target=finish, daemon=True)
    finishing.start()
    finishing.join(PROMPTLY_S)
    assert not finishing.is_alive()
    slow.go_on.set()


# Watching


def test_a_look_that_fails_is_a_failure_until_one_succeeds() -> None:
    watching, looks, tell = Watching(0.001), Queue[None](), Queue[Exception | None]()

    def look() -> None:
        looks.put(None)
        if (error := tell.get()) is not None:
            raise error

    watching.add("a thing", look)
    watching.start()
    looks.get()
    tell.put(QueryError("nobody answers"))
    looks.get()
    assert watching.failures == {"a thing": "nobody answers"}
    tell.put(None)
    looks.get()
    assert watching.failures == {}
    watching.finish()
    tell.put(QueryError("the node has ended"))


# The life of a service


def test_it_starts_tells_of_the_peers_that_are_there_and_how_it_is_and_stops(swarm: tuple[str, ...]) -> None:
    peers = Queue[PeerJoined]()
    with Service(swarm[:1], on_peer=peers.put) as service:
        found = {peers.get(timeout=PROMPTLY_S).addresses[0] for _ in swarm}
        assert found == {address.partition("/p2p/")[0] for address in swarm}
        health = service.health()
        assert (health.state, health.peers, health.warnings) == ("running", 3, ())
        assert health.peer_id
        assert health.uptime_s >= 0
        assert not service.wait(0)
    assert service.wait()
    after = json.loads(service.health().as_json())
    assert (after["state"], after["peers"], after["last_round"]) == ("stopped", 0, None)


def test_it_tells_of_a_peer_that_joins_later(swarm: tuple[str, ...]) -> None:
    peers = Queue[PeerJoined]()
    with Service(swarm[:1], serve=True, on_peer=peers.put) as first, Service(swarm[:1], serve=True) as second:
        while peers.get(timeout=PROMPTLY_S).peer != second.dht.peer_id:
            pass
        assert first.health().peers == 4


def test_a_start_that_fails_says_why_and_leaves_it_stopped() -> None:
    service = Service()
    with pytest.raises(QueryError, match="there is nobody to ask: give peers"):
        service.start()
    assert service.state == "stopped"
    assert service.wait()


def test_it_has_one_life(swarm: tuple[str, ...]) -> None:
    service = Service(swarm[0])
    with pytest.raises(LocalProtocolError, match="the service is new"):
        _ = service.dht
    with service, pytest.raises(LocalProtocolError, match="one life, and this one is running"):
        service.start()
    with pytest.raises(LocalProtocolError, match="one life, and this one is stopped"):
        service.start()


def test_one_that_is_stopped_before_it_starts_does_not_start(swarm: tuple[str, ...]) -> None:
    service = Service(swarm[0])
    service.stop()
    with pytest.raises(LocalProtocolError, match="this one is stopped"):
        service.start()


def test_stop_can_be_called_by_all_threads_at_once_and_again(swarm: tuple[str, ...]) -> None:
    service = Service(swarm[0]).start()
    with ThreadPoolExecutor(8) as pool:
        for stopped in [pool.submit(service.stop) for _ in range(8)]:
            stopped.result()
    service.stop()
    assert service.wait(0)
    with pytest.raises(LocalProtocolError, match="closed"):
        service.dht.get("anything")


def test_a_callback_can_use_the_client_and_stop_the_service(swarm: tuple[str, ...]) -> None:
    found = Queue[object]()

    def on_peer(_: PeerJoined) -> None:
        if service.state == "running":
            found.put(service.dht.get("service:nothing"))
            service.stop()

    service = Service(swarm[0], on_peer=on_peer)
    with service:
        assert found.get(timeout=PROMPTLY_S) is None
        assert service.wait(PROMPTLY_S)
    assert service.health().callbacks_failed == 0


def test_what_was_acknowledged_is_not_lost_by_stopping(swarm: tuple[str, ...], dht: LearningDHT) -> None:
    with Service(swarm[0]) as service:
        assert service.dht.put("service:kept", b"value").acknowledged
    found = dht.get("service:kept")
    assert found is not None
    assert found.value == b"value"


def test_callbacks_that_wait_when_it_is_stopped_are_called(
    swarm: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prime_dht.ml.service.DRAINING_S", PROMPTLY_S)
    slow, joined = Slow(), list[PeerJoined]()

    def on_peer(peer: PeerJoined) -> None:
        slow()
        joined.append(peer)

    service = Service(swarm[0], on_peer=on_peer).start()
    slow.begun.wait()
    while service.health().peers < len(swarm):
        pass
    with ThreadPoolExecutor(1) as pool:
        stopping = pool.submit(service.stop)
        while service.state != "stopped":
            pass
        slow.go_on.set()
        stopping.result()
    assert len(joined) == len(swarm)
    assert service.health().callbacks_dropped == 0


def test_it_stops_and_says_so_when_its_node_has_ended(swarm: tuple[str, ...]) -> None:
    with Service(swarm[0]) as service:
        service.dht.close()
        assert service.wait(PROMPTLY_S)
        assert service.health().warnings == ("the node ended by itself",)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ConfigError, match="poll_s"):
        Service(poll_s=0)
    with pytest.raises(ValidationError, match="is no model id"):
        Service().watch_model("a model")
    with pytest.raises(ValidationError, match="peer id"):
        Service().watch_model("model", publisher="garbage")
    with pytest.raises(ValidationError, match="a group is"):
        Service().watch_rounds("friends", [])
    with pytest.raises(ValidationError, match="members are to be in a list"):
        Service().watch_rounds(GROUP, "12D3Koo")
    for first in ("3", -1, 2.0):
        with pytest.raises(ValidationError, match="a round is a whole number from 0 up"):
            Service().watch_rounds(GROUP, [member(1)], first=cast("int", first))


PROGRAM = """
import signal, sys, time
from prime_dht.ml.service import Service

own = {own}
if own:
    signal.signal(signal.SIGTERM, lambda *_: print("own handler", flush=True) or service.stop())
service = Service(sys.argv[1])
try:
    with service:
        try:
            print("ready", flush=True)
            service.wait()
            print("stopped", flush=True)
        finally:
            if {linger}:
                print("lingers", flush=True)
                time.sleep(600)
finally:
    print(service.state, flush=True)
print("goes on")
"""


@pytest.mark.parametrize(
    ("own", "printed", "status"),
    [(False, ["stopped"], 143), (True, ["own handler", "stopped", "stopped", "goes on"], 0)],
    ids=["the service's", "the program's"],
)
def test_sigterm_ends_what_with_began_unless_the_program_handles_it(
    swarm: tuple[str, ...], own: bool, printed: list[str], status: int
) -> None:
    with running(sys.executable, "-c", PROGRAM.format(own=own, linger=False), swarm[0]) as program:
        assert program.line() == "ready"
        ended = program.stop(signal.SIGTERM)
        assert (ended.out.decode().splitlines(), ended.status, ended.err) == (printed, status, "")


def test_a_second_sigterm_ends_the_process_at_once(swarm: tuple[str, ...]) -> None:
    with running(sys.executable, "-c", PROGRAM.format(own=False, linger=True), swarm[0]) as program:
        assert program.line() == "ready"
        program.process.send_signal(signal.SIGTERM)
        assert program.line() == "lingers"
        assert program.stop(signal.SIGTERM).status == -signal.SIGTERM


def test_one_that_nobody_stops_is_stopped_when_python_exits(swarm: tuple[str, ...]) -> None:
    body = """
import atexit, sys
from prime_dht.ml.service import Service

service = Service(sys.argv[1])
atexit.register(lambda: print(service.state, service.health().warnings))
service.start()
print(service.state)
"""
    with running(sys.executable, "-c", body, swarm[0]) as program:
        ended = program.end()
    assert (ended.out.decode().splitlines(), ended.status, ended.err) == (["running", "stopped ()"], 0, "")


def test_a_forked_child_that_exits_leaves_it_to_its_parent(swarm: tuple[str, ...]) -> None:
    body = """
import atexit, os, sys, warnings
from prime_dht.ml.service import Service

warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)  # Python 3.12 has it
service = Service(sys.argv[1])
atexit.register(lambda: print("parent" if child else "child", service.state, flush=True))
service.start()
child = os.fork()
if child:
    os.waitpid(child, 0)
"""
    with running(sys.executable, "-c", body, swarm[0]) as program:
        ended = program.end()
    assert (ended.out.decode().splitlines(), ended.status, ended.err) == (["child running", "parent stopped"], 0, "")


# What it watches


def test_it_tells_of_the_newest_version_of_a_model_and_then_of_each_that_appears(
    swarm: tuple[str, ...], dht: LearningDHT, reader: LearningDHT
) -> None:
    def push(by: LearningDHT, value: float) -> ModelVersion:
        return by.push_model("service/watched", {"weight": np.full(4, value)})

    appeared = Queue[ModelVersion]()
    push(dht, 1)
    second = push(dht, 2)
    with Service(swarm[2], poll_s=0.01, on_model=appeared.put) as service:
        service.watch_model("service/watched", publisher=dht.peer_id)
        assert appeared.get(timeout=PROMPTLY_S) == second
        push(reader, 3)  # by somebody else
        fourth = push(dht, 4)
        assert appeared.get(timeout=PROMPTLY_S) == fourth
        health = service.health()
        assert (health.last_model_id, health.last_model_version) == ("service/watched", fourth.version)
    assert appeared.empty()


def test_of_a_model_that_was_not_there_at_first_it_tells_all_versions(dht: LearningDHT) -> None:
    told: list[ModelVersion] = []
    versions = Versions(model_id="service/to-come", publisher=None, tell=told.append)
    versions.look(dht)
    pushed = [dht.push_model("service/to-come", {"weight": np.zeros(number)}) for number in (1, 2)]
    for _ in range(2):
        versions.look(dht)
    assert told == pushed


GRADIENT = {"weight": np.ones(4, np.float32)}
ROOT_KEY = create_new_key_pair(bytes(31) + b"\x08")
GROUP = root_of(ROOT_KEY.public_key)


def alone(dht: LearningDHT) -> RoundMember:
    """The only member of rounds, whose vote is enough."""
    ends_us = int((time.time() + 3600) * US_PER_S)
    capability = grant(ROOT_KEY.private_key, member=dht.peer_id, expires_at_us=ends_us, network_id="prime")
    return RoundMember(
        dht, members=[dht.peer_id], rule=FederatedAverage(), bad=0, spec=spec_of(GRADIENT), capability=capability
    )


def test_it_tells_of_the_rounds_of_a_group_that_are_committed(swarm: tuple[str, ...], dht: LearningDHT) -> None:
    member, committed = alone(dht), Queue[Commit]()
    first = member.run(0, GRADIENT).commit
    with Service(swarm[2], poll_s=0.01, on_round=committed.put) as service:
        service.watch_rounds(GROUP, [peer_text(dht.peer_id)])
        assert committed.get(timeout=PROMPTLY_S).outcome == first.outcome
        third = member.run(2, GRADIENT).commit  # round 1 has failed
        assert committed.get(timeout=PROMPTLY_S).outcome == third.outcome
        assert service.health().last_round == 2


def test_an_outcome_that_too_few_members_have_signed_is_not_told(dht: LearningDHT, reader: LearningDHT) -> None:
    alone(dht).run(10, GRADIENT)
    told: list[Commit] = []
    for members in ([dht.peer_id, reader.peer_id], [reader.peer_id]):
        Commits(group=GROUP, members=Members.equal(members), following=10, tell=told.append).look(reader)
    assert told == []
    Commits(group=GROUP, members=Members.equal([dht.peer_id]), following=10, tell=told.append).look(reader)
    assert [commit.outcome.round_number for commit in told] == [10]


def test_votes_of_a_group_that_is_watched_count_by_their_weight(
    swarm: tuple[str, ...], dht: LearningDHT, reader: LearningDHT
) -> None:
    alone(dht).run(20, GRADIENT)
    committed = Queue[Commit]()
    with Service(swarm[2], poll_s=0.01, on_round=committed.put) as service:
        service.watch_rounds(GROUP, {dht.peer_id: 3, reader.peer_id: 1}, first=20)
        assert committed.get(timeout=PROMPTLY_S).outcome.round_number == 20


def test_the_last_round_is_also_that_of_which_it_was_told(swarm: tuple[str, ...]) -> None:
    with Service(swarm[0]) as service:
        service.round_ended(7)
        assert service.health().last_round == 7
