"""Clients in programs of their own: forks, worker processes, Ctrl-C, and programs that end without a word."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from prime_dht.testing.processes import run, run_warm, running, running_node, running_warm

WORKERS = Path(__file__).with_name("workers.py")

OPENING = """
import gc, os, sys, threading, trio, warnings
from prime_dht import NodeConfig, PrimeDHTError, connect

warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)  # Python 3.12 has it

async def endless(node):
    try:
        print("asking", flush=True)
        await trio.sleep_forever()
    finally:
        print("cancelled", flush=True)

def tell(*words):
    print(*words, flush=True)

dht = connect(sys.argv[1], data_dir=sys.argv[2] if len(sys.argv) > 2 else None)
"""


Program = Callable[[str], str]


@pytest.fixture
def program(tmp_path_factory: pytest.TempPathFactory) -> Program:
    """Makes a file of a program, which has a client, ``dht``."""

    def written(body: str) -> str:
        path = tmp_path_factory.mktemp("program") / "program.py"
        path.write_text(OPENING + body)
        return str(path)

    return written


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_worker_processes_load_with_clients_of_their_own_one_each(swarm: tuple[str, ...], method: str) -> None:
    ended = run_warm(str(WORKERS), method, swarm[0])
    assert (ended.status, ended.out, ended.err) == (0, b"4 [0, 0]\n", "")


def test_a_forked_child_is_another_node_and_leaves_its_parents_alone(swarm: tuple[str, ...], program: Program) -> None:
    body = """
dht.put("processes:forked", b"by the parent")
mine = dht.peer_id
pending = dht.call(endless, wait=False)
with dht.subscribe() as events:
    child = os.fork()
    if not child:
        gc.collect()  # which must not close what is the parent's
        for use in (pending.result, events.next):
            try:
                use()
            except PrimeDHTError as error:
                tell(error)
        tell(dht.get("processes:forked").value, dht.peer_id == mine, dht.health().mode)
        dht.put("processes:forked", b"by the child")
        grandchild = os.fork()
        tell(len(dht.get_all("processes:forked")))
        if not grandchild:
            sys.exit()
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1]))
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
connected = {peer.peer for peer in dht.peers() if peer.connected}
tell(status, len(connected), dht.get("processes:forked", publisher=mine, latest=True).value, dht.peer_id == mine)
pending.cancel()
"""
    ended = run_warm(program(body), swarm[0])
    theirs = "this was begun in the process that forked this one, and goes on only there"
    assert (ended.status, ended.err) == (0, "")
    assert ended.out.decode().splitlines() == [
        "asking",
        theirs,
        theirs,
        "b'by the parent' False client",
        "2",
        "2",
        "0 3 b'by the parent' True",
        "cancelled",
    ]


def test_forks_in_the_middle_of_calls_of_other_threads_do_not_hang(swarm: tuple[str, ...], program: Program) -> None:
    body = """
stop = threading.Event()

def keep_asking(key):
    while not stop.is_set():
        dht.put(key, b"value")

threads = [threading.Thread(target=keep_asking, args=(f"processes:busy:{number}",)) for number in range(8)]
for thread in threads:
    thread.start()
children = []
for _ in range(6):
    child = os.fork()
    if not child:
        os._exit(len(dht.get_many(["processes:busy:0"])))
    children.append(child)
statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
stop.set()
for thread in threads:
    thread.join()
tell(statuses)
"""
    ended = run_warm(program(body), swarm[0])
    assert (ended.status, ended.out, ended.err) == (0, b"[1, 1, 1, 1, 1, 1]\n", "")


def test_a_child_joins_through_its_parent_if_that_is_all_there_is() -> None:
    body = """
from prime_dht.testing.processes import LOOPBACK
with connect(serve=True, config=NodeConfig(listen=(LOOPBACK,))) as server:
    server.put("k", b"value")
    child = os.fork()
    if not child:
        os._exit(server.get("k").value != b"value")
    tell(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    ended = run(sys.executable, "-c", OPENING.rpartition("dht =")[0] + body)
    assert (ended.status, ended.out, ended.err) == (0, b"0\n", "")


def test_a_timeout_counts_how_long_a_forked_child_takes_to_join(program: Program) -> None:
    body = """
dht.put("k", b"value")
tell("connected")
sys.stdin.readline()
child = os.fork()
if not child:
    for use in (
        lambda: dht.get("k", timeout=0.1),
        lambda: dht.put("k", b"", timeout=0.1, wait=False),
        lambda: dht.blobs.stream("any", timeout=0.1).__enter__(),
        lambda: dht.collect(1, timeout=0.1),
    ):
        try:
            use()
        except PrimeDHTError as error:
            tell(error)
    sys.stdin.readline()
    tell(dht.get("k").value)
    sys.exit()
os.waitpid(child, 0)
"""
    with running_node() as (node, address), running_warm(program(body), address) as script:
        stdin = script.process.stdin
        assert stdin is not None
        assert script.line() == "connected"
        node.process.send_signal(signal.SIGSTOP)
        stdin.write(b"\n")
        stdin.flush()
        assert [script.line() for _ in range(4)] == ["not joined within 0.1 s; the node goes on trying"] * 4
        node.process.send_signal(signal.SIGCONT)
        stdin.write(b"\n")
        stdin.flush()
        assert script.line() == "b'value'"
        assert script.end().status == 0


def test_ctrl_c_ends_the_call_at_once_and_the_client_goes_on(swarm: tuple[str, ...], program: Program) -> None:
    body = """
for _ in range(2):
    try:
        dht.call(endless)
    except KeyboardInterrupt:
        tell(dht.put("processes:interrupted", b"value").acknowledged)
"""
    with running_warm(program(body), swarm[0]) as script:
        for _ in range(2):
            assert script.line() == "asking"
            script.process.send_signal(signal.SIGINT)
            assert [script.line(), script.line()] == ["cancelled", "True"]
        ended = script.end()
    assert (ended.status, ended.err) == (0, "")


def test_ctrl_c_ends_a_get_that_waits_for_a_silent_peer(program: Program) -> None:
    body = """
tell("connected")
sys.stdin.readline()
try:
    tell("asking")
    dht.get("k")
except KeyboardInterrupt:
    tell("interrupted")
sys.stdin.readline()
tell(dht.put("k", b"value").acknowledged)
"""
    with running_node() as (node, address), running_warm(program(body), address) as script:
        stdin = script.process.stdin
        assert stdin is not None
        assert script.line() == "connected"
        node.process.send_signal(signal.SIGSTOP)
        stdin.write(b"\n")
        stdin.flush()
        assert script.line() == "asking"
        script.process.send_signal(signal.SIGINT)
        assert script.line() == "interrupted"
        node.process.send_signal(signal.SIGCONT)
        stdin.write(b"\n")
        stdin.flush()
        assert script.line() == "True"
        ended = script.end()
    assert (ended.status, ended.err) == (0, "")


def test_ctrl_c_ends_connecting() -> None:
    body = "import sys, prime_dht; print('connecting', flush=True); prime_dht.connect(sys.argv[1], timeout=3600)"
    with running_node() as (node, address):
        node.process.send_signal(signal.SIGSTOP)
        with running(sys.executable, "-c", body, address) as script:
            assert script.line() == "connecting"
            ended = script.stop(signal.SIGINT)
    assert ended.status == -signal.SIGINT
    assert ended.err.endswith("KeyboardInterrupt\n")


@pytest.mark.parametrize(
    ("body", "out", "status"),
    [
        ("dht.put('processes:end', b'value')", [], 0),
        (
            "futures = [dht.call(endless, wait=False) for _ in range(2)]",
            ["asking", "asking", "cancelled", "cancelled"],
            0,
        ),
        ("threading.Thread(target=lambda: tell(dht.get('processes:nobody'))).start()", ["None"], 0),
        (
            "threading.Thread(target=dht.call(endless, wait=False).exception, daemon=True).start()",
            ["asking", "cancelled"],
            0,
        ),
        ("import atexit; atexit.register(lambda: tell(len(dht.peers())))", ["3"], 0),
        ("dht.close()", [], 0),
        ("sys.exit(3)", [], 3),
    ],
)
def test_a_program_that_does_not_close_its_client_just_ends(
    swarm: tuple[str, ...], program: Program, tmp_path: Path, body: str, out: list[str], status: int
) -> None:
    ended = run_warm(program(body), swarm[0], str(tmp_path))
    assert (ended.status, sorted(ended.out.decode().splitlines()), ended.err) == (status, out, "")


def test_a_node_that_keeps_its_blobs_in_memory_has_them_until_it_is_closed_at_exit(
    swarm: tuple[str, ...], program: Program
) -> None:
    body = """
import atexit
atexit.register(lambda: tell(len(dht.blobs.kept())))
dht.blobs.add(b"value", pin=True)
"""
    ended = run(sys.executable, program(body), swarm[0])
    assert (ended.status, ended.out, ended.err) == (0, b"1\n", "")
