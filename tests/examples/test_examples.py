"""The examples, run as their docstrings say, in processes of their own that talk to each other."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from prime_dht.testing.processes import LOOPBACK, PRIME_DHT, run, run_warm, running_warm

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name: str) -> str:
    return str(EXAMPLES / name)


def test_put_get_puts_through_a_node_of_run_node_and_gets_it_back_later(tmp_path: Path) -> None:
    with running_warm(example("run_node.py"), "--listen", LOOPBACK, "--data-dir", str(tmp_path / "node")) as node:
        address = node.line()
        put = run_warm(example("put_get.py"), address, "greeting", "hello, swarm")
        assert (put.status, put.out) == (0, b"stored by 1 of 3 replicas\nhello, swarm\n"), put.err
        assert node.line().startswith("EntryStored(key=b'/prime/greeting'")
        assert run_warm(example("put_get.py"), address, "greeting").out == b"hello, swarm\n"
        assert run_warm(example("put_get.py"), address, "nobody").out == b"nothing there\n"
        (tmp_path / "no-text").write_bytes(b"\xff")
        run_warm(*PRIME_DHT, "put", "no-text", "--file", str(tmp_path / "no-text"), "--peer", address)
        assert run_warm(example("put_get.py"), address, "no-text").out == b"\\xff\n"
        ended = node.stop(signal.SIGINT)
    assert (ended.status, ended.err) == (0, "")


def test_run_node_joins_another(tmp_path: Path) -> None:
    with running_warm(example("run_node.py"), "--listen", LOOPBACK) as first:
        address = first.line()
        with running_warm(example("run_node.py"), "--listen", LOOPBACK, "--peer", address) as second:
            peer_id = second.line().rpartition("/")[2]
            assert "PeerJoined" in second.line()
            assert "PeerJoined" in first.line(), peer_id


def test_a_host_with_a_protocol_of_its_own_serves_that_and_the_dht() -> None:
    with running_warm(example("embed_in_host.py")) as first:
        address = first.line()
        second = run_warm(example("embed_in_host.py"), address)
        assert (second.status, second.out) == (0, b"echo, echo\nknown to both, stored by 2\n"), second.err
        ended = first.stop(signal.SIGINT)
    assert ended.status == 0
    assert "Traceback" not in ended.err


def test_share_file_fetches_what_another_adds_and_shows_how_far_it_is(tmp_path: Path) -> None:
    content = bytes(range(256)) * 10_000
    added, fetched = tmp_path / "added", tmp_path / "fetched"
    added.write_bytes(content)
    with running_warm(example("share_file.py"), "add", str(added), "--listen", LOOPBACK) as node:
        address, cid = node.line().split()
        ended = run_warm(example("share_file.py"), "fetch", address, cid, str(fetched))
        assert (ended.status, ended.out) == (0, f"{fetched}: 2,560,000 bytes\n".encode()), ended.err
        assert "2,560,000 of 2,560,000 bytes, " in ended.err
        assert fetched.read_bytes() == content
        assert node.stop(signal.SIGINT).status == 0


@pytest.mark.parametrize("name", ["run_node.py", "put_get.py", "share_file.py", "demo.py"])
def test_each_says_how_it_is_used(name: str) -> None:
    ended = run(sys.executable, example(name), "--help")
    assert (ended.status, ended.err) == (0, "")
    assert b"usage: " + name.encode() in ended.out


def test_a_mistake_is_one_line() -> None:
    for command in ([example("put_get.py"), "typo", "key"], [example("run_node.py"), "--listen", "typo"]):
        ended = run_warm(*command)
        assert ended.status == 1
        assert "typo" in ended.err
        assert ended.err.count("\n") == 1
