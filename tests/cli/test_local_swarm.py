"""``prime-dht swarm``: many nodes in one process."""

from __future__ import annotations

import json
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from prime_dht.cli.commands.swarm import LOOPBACK, config_of
from prime_dht.config import NodeConfig
from prime_dht.testing.processes import PRIME_DHT, Ended, prime_dht, running, running_warm


def test_its_nodes_serve_until_a_signal_and_their_directories_bring_them_back(
    here: Callable[..., Ended], tmp_path: Path
) -> None:
    arguments = (*PRIME_DHT, "swarm", "4", "--data-dir", str(tmp_path))
    with running_warm(*arguments) as swarm:
        assert swarm.line().split() == ["node", "address"]
        addresses = [swarm.line().split()[1] for _ in range(4)]
        assert here("put", "durable", "survives", "--peer", addresses[1]).err == ""
        ended = swarm.stop(signal.SIGINT)
    assert (ended.status, ended.out) == (130, b"")
    assert "Traceback" not in ended.err
    assert f"ready: 4 nodes, until Ctrl-C; try: prime-dht put greeting hello --peer {addresses[0]}" in ended.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["node-1", "node-2", "node-3", "node-4"]
    with running_warm(*arguments, "--json") as again:
        nodes = [json.loads(again.line()) for _ in range(4)]
        assert [node["peer"] for node in nodes] == [address.rpartition("/")[2] for address in addresses]
        assert here("get", "durable", "--peer", nodes[2]["addresses"][0]).out == b"survives"
        assert again.stop(signal.SIGTERM).status == 0


def test_ctrl_c_while_they_join_is_heeded() -> None:
    with running(*PRIME_DHT, "swarm", "60") as swarm:
        assert "10 of 60 nodes run" in swarm.error_line()
        ended = swarm.stop(signal.SIGINT)
    assert (ended.status, ended.out) == (130, b"")
    assert "Traceback" not in ended.err


NEVER_CLOSES = """
import trio
from prime_dht.cli.life import run_until_done

async def never_closes():
    print("ready", flush=True)
    try:
        await trio.sleep_forever()
    finally:
        with trio.CancelScope(shield=True):
            await trio.sleep_forever()

run_until_done(never_closes, closing_s=0.01)
"""


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_nodes_that_are_too_many_to_close_in_time_end_with_the_status_that_they_would_have(
    signum: int, status: int
) -> None:
    with running(sys.executable, "-c", NEVER_CLOSES) as swarm:
        assert swarm.line() == "ready"
        assert swarm.stop(signum).status == status


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"/ip4/127.0.0.1/tcp/{taken.getsockname()[1]}"
        ended = prime_dht("swarm", "2", "--listen", address)
    assert (ended.status, ended.out) == (2, b"")
    assert f"prime-dht: cannot listen on {address}: Address already in use" in ended.err


def test_a_swarm_has_a_node_and_none_is_a_client(here: Callable[..., Ended]) -> None:
    assert "'N'" in here("swarm", "0").err
    assert "leave out --client" in here("swarm", "2", "--client").err


def test_each_node_has_a_port_a_directory_and_a_way_in_of_its_own() -> None:
    shared = NodeConfig(
        listen=("/ip6/::1/tcp/4001", "/ip4/127.0.0.1/tcp/0"),
        announce=("/ip4/192.0.2.1/tcp/5001",),
        data_dir=Path("swarm"),
        blocks_dir=Path("blocks"),
        peers=("/a",),
    )
    third = config_of(shared, 3, ("/b", "/c"))
    assert third.listen == ("/ip6/::1/tcp/4003", "/ip4/127.0.0.1/tcp/0")
    assert third.announce == ("/ip4/192.0.2.1/tcp/5003",)
    assert (third.data_dir, third.blocks_dir) == (Path("swarm/node-3"), Path("blocks/node-3"))
    assert third.peers == ("/a", "/b", "/c")


def test_unless_told_otherwise_it_is_on_loopback_and_only_its_first_node_uses_mdns() -> None:
    shared = NodeConfig(mdns=True)
    assert [config_of(shared, number, ()).mdns for number in (1, 2, 3)] == [True, False, False]
    assert config_of(shared, 1, ()).listen == LOOPBACK
    assert config_of(shared, 1, ()).data_dir is None
