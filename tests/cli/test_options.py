"""What commands get for the options, files and variables that people give them."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path

import click
import pytest

from prime_dht.cli import main, options
from prime_dht.cli.client import Session
from prime_dht.config import DhtConfig, Mode, NodeConfig
from prime_dht.errors import ConfigError

PEER = "/ip4/192.0.2.1/tcp/4001/p2p/12D3KooWLRPJAA5o6Ue7HZ1ZUKzNx1bmXZzHnQXEMNvvTHDsdc1B"
OTHER_PEER = PEER.replace("192.0.2.1", "192.0.2.2")

NODE_FILE = f"""\
listen = ["/ip4/127.0.0.1/tcp/4001"]
announce = ["/ip4/192.0.2.1/tcp/4001"]
peers = ["{PEER}"]
data_dir = "/node"
redis_url = "redis://localhost"
max_connections = 9
[dht]
network_id = "lab"
mode = "server"
"""


@pytest.fixture(autouse=True)
def _in_a_directory_without_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in os.environ:
        if name.startswith("PRIME_DHT_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def session(*arguments: str) -> Session:
    """What a command that asks would get."""
    got: list[Session] = []

    @click.command()
    @options.asking
    def command(session: Session) -> None:
        got.append(session)

    command.main(list(arguments), standalone_mode=False)
    return got[0]


def served(*arguments: str) -> NodeConfig:
    """What a command that runs nodes would get."""
    got: list[NodeConfig] = []

    @click.command()
    @options.serving
    def command(config: NodeConfig) -> None:
        got.append(config)

    command.main(list(arguments), standalone_mode=False)
    return got[0]


def test_who_runs_a_node_has_options_over_variables_over_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("node.toml").write_text(NODE_FILE)
    assert served("--config", "node.toml") == NodeConfig(
        listen=("/ip4/127.0.0.1/tcp/4001",),
        announce=("/ip4/192.0.2.1/tcp/4001",),
        peers=(PEER,),
        data_dir=Path("/node"),
        redis_url="redis://localhost",
        max_connections=9,
        dht=DhtConfig(network_id="lab", mode=Mode.SERVER),
    )
    monkeypatch.setenv("PRIME_DHT_CONFIG", "node.toml")
    monkeypatch.setenv("PRIME_DHT_LISTEN", "/ip4/127.0.0.1/tcp/5")
    monkeypatch.setenv("PRIME_DHT_MAX_CONNECTIONS", "5")
    monkeypatch.setenv("PRIME_DHT_DATA_DIR", "five")
    config = served("--listen", "/ip4/127.0.0.1/tcp/6", "--client", "--mdns", "--redis", "redis://six")
    assert (config.listen, config.max_connections) == (("/ip4/127.0.0.1/tcp/6",), 5)
    assert (config.data_dir, config.redis_url, config.mdns) == (Path("five"), "redis://six", True)
    assert (config.dht.mode, config.dht.network_id) == (Mode.CLIENT, "lab")


def test_who_asks_is_a_client_that_takes_from_a_nodes_file_only_what_is_for_clients() -> None:
    Path("node.toml").write_text(NODE_FILE)
    assert session("--config", "node.toml", "--timeout", "2m", "-v", "--json") == Session(
        config=NodeConfig(
            listen=(),
            peers=(PEER,),
            max_connections=9,
            dht=DhtConfig(network_id="lab", mode=Mode.CLIENT, operation_timeout_s=120.0),
        ),
        timeout_s=120.0,
        as_json=True,
        verbose=1,
    )


def test_who_asks_signs_as_an_identity_only_if_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRIME_DHT_DATA_DIR", "node")
    assert session().config.data_dir is None
    assert session("--data-dir", "me").config.data_dir == Path("me")


def test_a_directory_may_begin_with_a_tilde_where_no_shell_expands_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert session("--data-dir=~/node").config.data_dir == Path("/home/me/node")
    assert session("--data-dir=./~").config.data_dir == Path("~")


def test_more_may_be_asked_for_than_a_list_can_have() -> None:
    got: list[int] = []

    @click.command()
    @click.option("--count", type=options.Count())
    def command(count: int) -> None:
        got.append(count)

    for count in ("1", "18446744073709551616"):
        command.main(["--count", count], standalone_mode=False)
    assert got == [1, sys.maxsize]
    for mistake in ("0", "many"):
        with pytest.raises(click.BadParameter):
            command.main(["--count", mistake], standalone_mode=False)


def test_peers_on_the_command_line_take_the_place_of_those_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRIME_DHT_PEER", f"{PEER} {OTHER_PEER}")
    assert session().config.peers == (PEER, OTHER_PEER)
    assert session("--peer", OTHER_PEER).config.peers == (OTHER_PEER,)


def test_peers_are_checked_wherever_they_come_from() -> None:
    Path("node.toml").write_text("\npeers = ['/ip4/192.0.2.1/tcp/4001']")
    with pytest.raises(ConfigError, match=r"^node\.toml:2: peers: '/ip4/192\.0\.2\.1/tcp/4001' does not end in /p2p/"):
        session("--config", "node.toml")


def test_results_are_for_people_or_for_programs(capfd: pytest.CaptureFixture[str]) -> None:
    session().show({"peer": "é"}, "the peer é")
    session().show({"peer": "é"}, "")
    session("--json").show({"peer": "é"}, "the peer é")
    session("--json").show({"peer": 2}, "")
    assert capfd.readouterr().out == 'the peer é\n{"peer": "é"}\n{"peer": 2}\n'


def test_the_log_is_as_asked_for(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    session("--log-format", "json")
    logging.getLogger("prime_dht.x").info("not shown")
    logging.getLogger("prime_dht.x").warning("shown", extra={"peer": "p"})
    (line,) = capfd.readouterr().err.splitlines()
    assert (json.loads(line)["message"], json.loads(line)["peer"]) == ("shown", "p")
    monkeypatch.setattr(root, "handlers", [])
    served()
    logging.getLogger("prime_dht.x").info("shown as well")
    assert capfd.readouterr().err.endswith(" INFO    shown as well\n")


@pytest.mark.parametrize("command", ["put", "store export", "group invite"])
def test_an_option_without_its_argument_points_to_the_help_of_its_command(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    option = {"put": "--peer", "store export": "--data-dir", "group invite": "--out"}[command]
    assert main([*command.split(), option]) == 2
    line = f"prime-dht: Option '{option}' requires an argument (see prime-dht {command} --help)\n"
    assert capsys.readouterr().err == line
