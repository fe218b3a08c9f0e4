"""``prime-dht run``: what it prints, and how it ends."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

from prime_dht.testing.processes import LOOPBACK, PRIME_DHT, prime_dht, running, running_node

NOBODY = "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWLRPJAA5o6Ue7HZ1ZUKzNx1bmXZzHnQXEMNvvTHDsdc1B"
LOG_LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d (INFO|WARNING) +\S.*")


def test_it_prints_one_full_multiaddr_a_line_and_nothing_else_on_standard_output() -> None:
    with running(*PRIME_DHT, "run", "--listen", LOOPBACK, "--listen", "/ip4/127.0.0.2/tcp/0") as node:
        addresses = [node.line(), node.line()]
        ended = node.stop(signal.SIGINT)
    for address in addresses:
        assert re.fullmatch(r"/ip4/127\.0\.0\.[12]/tcp/\d+/p2p/12D3Koo\w+", address)
    assert ended.out == b""


def test_the_id_of_its_data_directory_is_the_one_it_runs_with(tmp_path: Path) -> None:
    directory = str(tmp_path / "node")
    peer_id = prime_dht("id", "--data-dir", directory).out.decode().strip()
    with running_node("--data-dir", directory) as (_, address):
        assert address.endswith(f"/p2p/{peer_id}")


def test_the_data_directory_is_for_its_owner_alone(tmp_path: Path) -> None:
    directory = tmp_path / "node"
    prime_dht("id", "--data-dir", str(directory))
    assert directory.stat().st_mode & 0o777 == 0o700
    assert (directory / "identity.key").stat().st_mode & 0o777 == 0o600


def test_ctrl_c_stops_it_with_the_status_that_shells_expect() -> None:
    with running_node() as (node, _):
        ended = node.stop(signal.SIGINT)
    assert ended.status == 130
    assert ended.err.endswith("stopped by SIGINT\n")


def test_sigterm_stops_it_cleanly() -> None:
    with running_node() as (node, _):
        assert node.stop(signal.SIGTERM).status == 0


def test_it_stops_cleanly_when_its_terminal_is_closed_but_not_under_nohup() -> None:
    with running_node() as (node, _):
        ended = node.stop(signal.SIGHUP)
    assert (ended.status, ended.err.endswith("stopped by SIGHUP\n")) == (129, True)
    with running("nohup", *PRIME_DHT, "run", "--listen", LOOPBACK) as node:
        node.line()
        node.process.send_signal(signal.SIGHUP)
        assert node.stop(signal.SIGTERM).status == 0


def test_a_standard_input_that_is_closed_has_ended() -> None:
    command = (*PRIME_DHT, "run", "--listen", LOOPBACK, "--stop-with-stdin")
    with running("sh", "-c", 'exec "$@" <&-', "sh", *command) as node:
        assert node.end().status == 0


def test_it_stops_when_its_standard_input_ends_if_told_to() -> None:
    with running_node("--stop-with-stdin") as (node, _):
        assert node.process.stdin is not None
        node.process.stdin.close()
        assert node.end().status == 0


def test_a_peer_that_is_not_there_yet_does_not_keep_it_from_running() -> None:
    with running_node("--peer", NOBODY) as (node, address):
        assert prime_dht("put", "key", "value", "--peer", address).status == 0
        ended = node.stop(signal.SIGTERM)
    assert ended.status == 0
    assert "Connection refused" in ended.err
    assert "trying again in 1 s" in ended.err


def test_its_log_is_one_line_an_event() -> None:
    with running_node() as (_, address), running_node("--peer", address, "--peer", NOBODY) as (node, _):
        lines = node.stop(signal.SIGTERM).err.splitlines()
    assert any(re.search(rf"peer \w+ joined \(1 known\): {address.partition('/p2p/')[0]}$", line) for line in lines)
    assert any("ready in network prime; known peers: 1" in line for line in lines)
    for line in lines:
        assert LOG_LINE.fullmatch(line), line


def test_for_programs_its_log_is_json_and_tells_when_it_is_ready() -> None:
    with running_node("--log-format", "json", "--json", "--network", "lab") as (node, printed):
        (address,) = json.loads(printed)["addresses"]
        assert address.endswith(f"/p2p/{json.loads(printed)['peer_id']}")
        lines = [json.loads(line) for line in node.stop(signal.SIGTERM).err.splitlines()]
    (ready,) = (line for line in lines if line.get("event") == "ready")
    assert (ready["network"], ready["known"], ready["addresses"]) == ("lab", 0, [address])
    assert lines[-1]["message"] == "stopped by SIGTERM"


def test_nodes_of_another_network_do_not_mix_with_it() -> None:
    with running_node("--network", "lab") as (_, address):
        stranger = prime_dht("put", "key", "value", "--peer", address)
        member = prime_dht("put", "key", "value", "--peer", address, "--network", "lab")
    assert (stranger.status, stranger.out, stranger.err.count("\n")) == (2, b"", 1)
    assert "/prime/kad/1.0.0" in stranger.err
    assert member.status == 0


def test_without_a_data_directory_it_says_that_nothing_is_kept() -> None:
    with running_node() as (node, _):
        said = ""
        while "no --data-dir" not in said:
            said = node.error_line()
            assert said, "it ended before"
