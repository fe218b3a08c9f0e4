"""What a person gets for a mistake: one line that says what to do, and exit status 2."""

from __future__ import annotations

import fcntl
import json
import logging
import resource
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from prime_dht.cli.open_files import allow_open_files
from prime_dht.testing.processes import PRIME_DHT, Ended, prime_dht, run, running, running_node

NOBODY = "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWLRPJAA5o6Ue7HZ1ZUKzNx1bmXZzHnQXEMNvvTHDsdc1B"


def complaint(ended: Ended) -> str:
    """The one line that a command which failed has written."""
    assert ended.status == 2, ended
    assert ended.out == b""
    assert ended.err.startswith("prime-dht: ")
    assert ended.err.count("\n") == 1, ended.err
    return ended.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("gett key", "No such command 'gett'"),
        ("--no-such-option", "No such option"),
        ("run --port 4001", "No such option"),
        ("run --listen foo", "foo is not a multiaddr"),
        ("run --listen /ip4/127.0.0.1/tcp/99999", "/ip4/127.0.0.1/tcp/99999"),
        ("run --listen /dns4/localhost/tcp/4999", "/dns4/localhost/tcp/4999 does not begin with an IP address"),
        ("run --listen " + NOBODY, f"cannot listen on {NOBODY}: this node is 12D3Koo"),
        ("run --peer foo", "'--peer': 'foo' does not end in /p2p/<peer id>"),
        ("run --peer /ip4/127.0.0.1/tcp/4001", "does not end in /p2p/<peer id>"),
        ("run surplus", "unexpected extra argument"),
        ("put", "Missing argument 'KEY'"),
        ("put key", "give one of VALUE, --file FILE, or -"),
        ("put key value --file file", "give one of VALUE, --file FILE, or -"),
        ("put key --file /no/such/file --peer " + NOBODY, "/no/such/file: No such file or directory"),
        ("put key --file / --peer " + NOBODY, "/: Is a directory"),
        ("put key value --ttl soon", "'--ttl': 'soon' is not a duration"),
        ("put key value --ttl 0", "'--ttl': '0' is not a duration"),
        ("put key value --ttl -5", "'--ttl': '-5' is not a duration"),
        ("put key value --peer /ip4/1.2.3.4/tcp/1/p2p/0", "'0' is not a peer id"),
        ("put key value --peer /ip4/1.2.3/tcp/1" + NOBODY[-57:], "is not a multiaddr"),
        ("put key value --peer /ip4/0.0.0.0/tcp/1" + NOBODY[-57:], "is not an address that can be dialled"),
        ("get", "Missing argument 'KEY'"),
        ("get key --timeout nan", "'--timeout': 'nan' is not a duration"),
        ("get key value", "unexpected extra argument"),
        ("get key", "give --peer an address that `prime-dht run` prints"),
        ("get key --peer " + NOBODY, "Connection refused"),
        ("get key --mdns --network nobodys --timeout 1", "no node of network nobodys was found on the local network"),
        ("put key value --peer " + NOBODY, "Connection refused"),
        ("id", "give --data-dir"),
        ("id --data-dir /proc/self/nothing", "/proc/self/nothing"),
        ("run --data-dir /proc/self/nothing", "/proc/self/nothing"),
        ("run --data-dir /etc/passwd", "'--data-dir': '/etc/passwd' is not a directory"),
        ("run --data-dir /dev/null", "'--data-dir': '/dev/null' is not a directory"),
        ("run --listen /ip4/127.0.0.1/tcp/0 --listen /ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/tcp/0 is there twice"),
        ("run --network two/words", "--network: network_id must be"),
        ("run --config /no/such/file", "/no/such/file: No such file or directory"),
        ("run --data-dir=", "'--data-dir': '' is not a directory"),
        ("get-all key --out /dev/null", "'--out': '/dev/null' is not a directory"),
        ("swarm many", "'N': 'many' is not a valid whole number"),
        ("group show /etc/passwd", "root key /etc/passwd is corrupt: it holds no libp2p private key"),
        ("completion tcsh", "'tcsh' is not one of 'bash', 'zsh', 'fish'"),
    ],
)
def test_a_mistake_gets_one_line_and_status_2(arguments: str, says: str, here: Callable[..., Ended]) -> None:
    words = arguments.split(" ")
    # A node that runs where it should complain would never end in this process; in one of its own it is killed.
    command = prime_dht if words[0] in ("run", "swarm") else here
    assert says in complaint(command(*words))


def test_a_mistake_in_the_environment_names_the_variable() -> None:
    line = complaint(prime_dht("get", "key", env={"PRIME_DHT_PEER": "typo"}))
    assert line == "prime-dht: PRIME_DHT_PEER: peers: 'typo' does not end in /p2p/<peer id>\n"


@pytest.mark.parametrize("variable", ["PRIME_DHT_TIMEOUT", "PRIME_DHT_LOG_FORMAT"])
def test_a_mistake_in_a_variable_of_an_option_does_not_blame_the_option(variable: str) -> None:
    arguments = ("get", "key") if variable == "PRIME_DHT_TIMEOUT" else ("run",)
    line = complaint(prime_dht(*arguments, env={variable: "never"}))
    assert line.startswith(f"prime-dht: {variable}: 'never' is not ")


def test_a_mistake_in_the_configuration_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "node.toml").write_text("mdns = false\n\n[dht]\nreplicaton_factor = 5\n")
    line = complaint(prime_dht("run", "--config", "node.toml", cwd=tmp_path))
    assert (
        line == 'prime-dht: node.toml:4: unknown key "replicaton_factor" in [dht]; did you mean "replication_factor"?\n'
    )


def test_a_peer_that_says_nothing_is_told_from_a_command_that_takes_long() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"/ip4/127.0.0.1/tcp/{silent.getsockname()[1]}{NOBODY[-57:]}"
        line = complaint(prime_dht("get", "key", "--peer", address, "--timeout", "0.5"))
    assert line == "prime-dht: not done within 0.5 s (--timeout), and no peer has answered\n"


def test_for_programs_the_reason_why_a_node_does_not_run_is_a_line_of_its_log(
    here: Callable[..., Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    (tmp_path / "node.toml").write_text("listne = []")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        in_use = f"/ip4/127.0.0.1/tcp/{taken.getsockname()[1]}"
        for mistake in (("--config", str(tmp_path / "node.toml")), ("--listen", in_use)):
            ended = here("run", "--log-format", "json", *mistake)
            assert (ended.status, ended.out) == (2, b"")
            *_, last = map(json.loads, ended.err.splitlines())
            assert last["level"] == "ERROR"
            assert mistake[1] in last["message"]


def test_an_empty_key_is_refused() -> None:
    with running_node() as (_, address):
        assert "a key cannot be empty" in complaint(prime_dht("get", "", "--peer", address))


def test_a_second_node_on_one_data_directory_is_refused(tmp_path: Path) -> None:
    directory = str(tmp_path / "node")
    with running_node("--data-dir", directory):
        assert "another process has it open" in complaint(prime_dht("run", "--data-dir", directory))


def test_a_port_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"/ip4/127.0.0.1/tcp/{taken.getsockname()[1]}"
        line = complaint(prime_dht("run", "--listen", address))
    assert f"cannot listen on {address}: Address already in use" in line


@pytest.mark.parametrize(
    ("arguments", "limit", "says"),
    [
        ("run", 20, "a node needs 64 open files, and may have 20: raise the limit, `ulimit -n`"),
        ("swarm 20", 256, "a swarm of 20 needs 564 open files, and may have 256: raise the limit, `ulimit -n`"),
        ("provide cid", 20, "a node needs 64 open files, and may have 20: raise the limit, `ulimit -n`"),
    ],
)
def test_too_few_open_files_are_noticed_before_anything_begins(arguments: str, limit: int, says: str) -> None:
    shell = ("sh", "-c", f'ulimit -n {limit}; exec "$@"', "sh")
    assert complaint(run(*shell, *PRIME_DHT, *arguments.split())) == f"prime-dht: {says}\n"


def test_a_node_takes_the_open_files_that_its_shell_has_not_given_it() -> None:
    shell = ("sh", "-c", 'ulimit -S -n 20; exec "$@"', "sh")
    with running(*shell, *PRIME_DHT, "run", "--listen", "/ip4/127.0.0.1/tcp/0") as node:
        assert node.line()
        assert node.stop(signal.SIGTERM).status == 0


def test_where_open_files_have_no_limit_no_more_are_asked_for_than_macos_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, resource.RLIM_INFINITY))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: asked.append(limits))
    allow_open_files(564, what="a swarm")
    assert asked == [(10_240, resource.RLIM_INFINITY)]


def test_an_identity_that_is_no_key_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    identity = tmp_path / "identity.key"
    identity.write_bytes(b"not a key")
    identity.chmod(0o600)
    assert str(identity) in complaint(prime_dht("run", "--data-dir", str(tmp_path)))


def test_help_and_version_go_to_standard_output() -> None:
    assert b"Commands:" in prime_dht("--help").out
    assert prime_dht("--version").out.startswith(b"prime-dht ")
    for subcommand in ("run", "put", "get", "id"):
        assert f"prime-dht {subcommand}".encode() in prime_dht(subcommand, "--help").out


def test_without_a_subcommand_help_goes_to_standard_error() -> None:
    ended = prime_dht()
    assert (ended.status, ended.out) == (2, b"")
    assert "Commands:" in ended.err


def test_a_full_disk_behind_standard_output_is_one_line(tmp_path: Path) -> None:
    with (
        open("/dev/full", "wb") as full,
        running(*PRIME_DHT, "id", "--data-dir", str(tmp_path), stdout=full) as command,
    ):
        ended = command.end()
    assert (ended.status, ended.err) == (2, "prime-dht: standard output: No space left on device\n")


def test_a_full_disk_behind_standard_error_changes_no_status() -> None:
    with open("/dev/full", "wb") as full, running(*PRIME_DHT, "get", "--bogus", stderr=full) as command:
        assert command.end().status == 2


@pytest.mark.parametrize("arguments", ["--help", "--version", "config", "id --data-dir ."])
def test_a_full_disk_is_no_bug(arguments: str, tmp_path: Path) -> None:
    with open("/dev/full", "wb") as full, running(*PRIME_DHT, *arguments.split(), stdout=full, cwd=tmp_path) as command:
        ended = command.end()
    assert ended.status == 2
    assert ended.err.endswith("No space left on device\n")
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize(
    ("closed", "arguments", "says"),
    [
        ("<&-", f"put key - --peer {NOBODY}", "prime-dht: standard input: Bad file descriptor\n"),
        (">&-", "id --data-dir .", "prime-dht: standard output: Bad file descriptor\n"),
        ("2>&-", "get key", ""),
    ],
)
def test_a_standard_stream_that_is_closed_is_not_taken_for_another_file(
    closed: str, arguments: str, says: str, tmp_path: Path
) -> None:
    with running("sh", "-c", f'exec "$@" {closed}', "sh", *PRIME_DHT, *arguments.split(), cwd=tmp_path) as command:
        ended = command.end()
    assert (ended.status, ended.out, ended.err) == (2, b"", says)


def test_ctrl_c_is_no_traceback_even_while_standard_input_is_read() -> None:
    with running(*PRIME_DHT, "put", "key", "-", "--peer", NOBODY) as reading:
        stdin = reading.process.stdin
        assert stdin is not None
        fcntl.fcntl(stdin, fcntl.F_SETPIPE_SZ, 4096)
        stdin.write(b"more than the pipe holds, so that this waits for the reader" * 100)
        stdin.flush()
        ended = reading.stop(signal.SIGINT)
    assert ended.status == 130
    assert "Traceback" not in ended.err
