"""``prime-dht config``: a file that says everything, and that `--config` takes."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from prime_dht import NodeConfig
from prime_dht.cli import main
from prime_dht.settings import all_settings, load_settings
from prime_dht.testing.processes import Ended

Run = Callable[..., Ended]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """``prime-dht config`` in this process."""
    monkeypatch.chdir(tmp_path)

    def config(*arguments: str) -> Ended:
        status = main(["config", *arguments])
        out, err = capfd.readouterr()
        return Ended(status, out.encode(), err)

    return config


def test_what_it_prints_can_be_fed_back(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    peer = "/ip4/192.0.2.1/tcp/4001/p2p/12D3KooWLRPJAA5o6Ue7HZ1ZUKzNx1bmXZzHnQXEMNvvTHDsdc1B"
    monkeypatch.setenv("PRIME_DHT_DHT_ALLOW_PUBLISHERS", peer[-52:])
    monkeypatch.setenv("PRIME_DHT_DHT_RPC_TIMEOUT_S", "0.125")
    monkeypatch.setenv("PRIME_DHT_DHT_CACHE_BYTES", "1000")
    flags = (
        "--listen",
        "/ip4/127.0.0.1/tcp/1",
        "--listen",
        "/ip4/127.0.0.1/tcp/2",
        "--peer",
        peer,
        "--mdns",
        "--client",
    )
    printed = run(*flags, "--data-dir", 'a "quoted\\" \x7f\nné\U0001f600me', "--network", "lab")
    assert (printed.status, printed.err) == (0, "")
    Path("node.toml").write_bytes(printed.out)
    config = load_settings(Path("node.toml")).config
    assert config.data_dir == Path('a "quoted\\" \x7f\nné\U0001f600me').absolute()
    assert (config.listen, config.peers, config.mdns) == ((flags[1], flags[3]), (peer,), True)
    assert (config.dht.network_id, config.dht.mode.value) == ("lab", "client")
    assert (config.dht.rpc_timeout_s, config.dht.cache_bytes) == (0.125, 1000)
    assert config.dht.allow_publishers == frozenset({peer[-52:]})


def test_every_setting_is_in_the_file_with_what_it_means_and_where_its_value_is_from(run: Run) -> None:
    Path("node.toml").write_text("[dht]\nalpha = 5\n")
    text = run("--config", "node.toml", "--mdns").out.decode()
    prose = " ".join(line.removeprefix("# ") for line in text.splitlines())
    for path, setting in all_settings().items():
        origin = {("mdns",): "--mdns", ("dht", "alpha"): "node.toml:2"}.get(path, "default")
        assert " ".join(setting.meaning.split()) in prose
        (line,) = (
            line for line in text.splitlines() if line.startswith((f"{path[-1]} = ", f"# {path[-1]} is not set"))
        )
        assert line.endswith(f"  # {origin}")


def test_the_defaults_are_a_file_that_changes_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRIME_DHT_MDNS", "1")
    printed = run("--defaults").out
    Path("node.toml").write_bytes(printed)
    assert load_settings(Path("node.toml")).config == NodeConfig()
    for setting in all_settings().values():
        assert f"  # {setting.variable}\n" in printed.decode()


def test_durations_and_sizes_are_printed_as_people_read_them(run: Run) -> None:
    printed = tomllib.loads(run().out.decode())
    assert (printed["dht"]["ttl"], printed["dht"]["rpc_timeout_s"]) == ("1d", 10.0)
    assert (printed["dht"]["cache_bytes"], printed["dht"]["limits"]["max_subkey_bytes"]) == ("16MiB", 256)


def test_for_programs_it_is_one_line_of_json(run: Run) -> None:
    printed = run("--json", "--data-dir", "d").out
    assert printed.count(b"\n") == 1
    described = json.loads(printed)
    assert list(described) == [".".join(path) for path in all_settings()]
    assert described["dht.limits.max_ttl_s"] == {
        "value": 2_592_000.0,
        "origin": "default",
        "variable": "PRIME_DHT_DHT_LIMITS_MAX_TTL_S",
    }
    assert described["data_dir"]["value"] == str(Path("d").absolute())
    assert described["dht.mode"]["value"] == "auto"


def test_json_has_no_number_without_end(run: Run) -> None:
    Path("node.toml").write_text("[dht]\ncache_ttl_s = inf\n")
    assert "cache_ttl_s = inf" in run("--config", "node.toml").out.decode()
    described = json.loads(run("--config", "node.toml", "--json").out, parse_constant=pytest.fail)
    assert described["dht.cache_ttl_s"]["value"] is None


def test_a_password_is_shown_to_those_who_ask_for_it(run: Run) -> None:
    redis = ("--redis", "redis://me:s3cret@example.org:6379/1")
    assert b'redis_url = "redis://me:***@example.org:6379/1"  # --redis\n' in run(*redis).out
    assert b"s3cret" not in run(*redis, "--json").out
    assert b'redis_url = "redis://me:s3cret@example.org:6379/1"  # --redis\n' in run(*redis, "--show-secrets").out


@pytest.mark.parametrize("url", ["http://localhost", "redis://", "redis://localhost:many"])
def test_what_is_no_redis_url_is_refused_with_its_line(url: str, run: Run) -> None:
    Path("node.toml").write_text(f'redis_url = "{url}"\n')
    ended = run("--config", "node.toml")
    assert ended.status == 2
    assert ended.err.startswith("prime-dht: node.toml:1: redis_url: a Redis URL is redis://")


def test_the_file_can_be_named_by_a_variable(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("named.toml").write_text("mdns = true")
    monkeypatch.setenv("PRIME_DHT_CONFIG", "named.toml")
    assert b"mdns = true  # named.toml:1\n" in run().out
    assert b"mdns = false  # --no-mdns\n" in run("--no-mdns").out
