"""put and get through a running node: in processes of their own, as in two terminals, where that may matter."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from prime_dht.testing.processes import (
    LOOPBACK,
    PRIME_DHT,
    TIMEOUT_S,
    Ended,
    prime_dht,
    running,
    running_node,
    running_warm,
)

Here = Callable[..., Ended]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """That of one node, which all tests of this module share."""
    with running_node("--data-dir", str(tmp_path_factory.mktemp("node"))) as (_, address):
        yield address


@pytest.fixture
def through(address: str) -> dict[str, str]:
    """The environment of somebody who has said once through which node to join."""
    return {"PRIME_DHT_PEER": address}


@pytest.fixture
def joined(here: Here, through: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Here:
    """As ``here``, for that somebody."""
    for name, value in through.items():
        monkeypatch.setenv(name, value)
    return here


def assert_complains(ended: Ended, *parts: str) -> None:
    """It failed with one line on standard error that has these parts, and wrote nothing to standard output."""
    assert ended.status == 2
    assert ended.out == b""
    assert ended.err.startswith("prime-dht: ")
    assert ended.err.count("\n") == 1, ended.err
    for part in parts:
        assert part in ended.err


def test_a_value_put_in_one_terminal_is_got_in_another(address: str) -> None:
    put = prime_dht("put", "greeting", "hello, swarm", "--peer", address)
    assert put.status == 0
    assert put.out.startswith(b"stored until ")
    got = prime_dht("get", "greeting", "--peer", address)
    assert got == Ended(0, b"hello, swarm", "")


def test_a_put_that_fewer_replicas_took_than_asked_warns_and_succeeds(joined: Here) -> None:
    put = joined("put", "lonely", "value")
    assert put.status == 0
    assert put.err == "prime-dht: warning: stored by 1 of 3 replicas\n"


def test_what_nobody_put_is_not_found(joined: Here) -> None:
    assert joined("get", "nobody") == Ended(1, b"", "prime-dht: not found: nobody\n")


@pytest.mark.parametrize(
    "value", [b"", b"a\x00b\xff\xfe\n\r\n", bytes(range(256)) * 256], ids=["empty", "binary", "64 KiB"]
)
def test_any_bytes_go_through_standard_input_and_come_out_as_they_were(value: bytes, through: dict[str, str]) -> None:
    assert prime_dht("put", "bytes", "-", stdin=value, env=through).status == 0
    assert prime_dht("get", "bytes", env=through).out == value


def test_bytes_that_are_no_text_work_as_key_and_as_value(through: dict[str, str]) -> None:
    key, value = os.fsdecode(b"\xff\xfe"), os.fsdecode(b"\xc3\x28")
    assert prime_dht("put", key, value, env=through).status == 0
    assert prime_dht("get", key, env=through).out == b"\xc3\x28"


def test_for_programs_a_put_is_its_receipt_and_a_get_all_that_is_known(
    address: str, here: Here, tmp_path: Path
) -> None:
    where = ("for programs", "--subkey", "s", "--peer", address, "--json")
    put = here("put", *where[:1], "value", *where[1:])
    receipt = json.loads(put.out)
    assert put.out.count(b"\n") == 1
    assert (receipt["stored_by"], receipt["wanted"]) == ([address.rpartition("/")[2]], 3)
    assert receipt["warning"] == "stored by 1 of 3 replicas"
    found = json.loads(here("get", *where).out)
    assert (found["value"], found["subkey"]) == (base64.b64encode(b"value").decode(), base64.b64encode(b"s").decode())
    assert found["expires_at_us"] == receipt["expires_at_us"]
    target = tmp_path / "out"
    assert json.loads(here("get", *where, "--out", str(target)).out)["file"] == str(target)
    assert target.read_bytes() == b"value"


def test_files_go_in_and_out(tmp_path: Path, joined: Here) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    source.write_bytes(b"\x00weights")
    assert joined("put", "file", "--file", str(source)).status == 0
    assert joined("get", "file", "--out", str(target)) == Ended(0, b"", "")
    assert target.read_bytes() == b"\x00weights"


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path, joined: Here) -> None:
    joined("put", "out", "value")
    target = str(tmp_path / "no" / "such" / "directory")
    assert_complains(joined("get", "out", "--out", target), target, "its directory does not exist")


@pytest.mark.parametrize("how", ["argument", "stdin", "file"])
def test_one_byte_over_64_kib_travels_as_a_blob(how: str, tmp_path: Path, through: dict[str, str]) -> None:
    value = b"v" * (64 * 1024 + 1)
    (tmp_path / "large").write_bytes(value)
    arguments = {"argument": [value.decode()], "stdin": ["-"], "file": ["--file", str(tmp_path / "large")]}[how]
    assert prime_dht("put", "large", *arguments, stdin=value, env=through).status == 0
    assert json.loads(prime_dht("get", "large", "--json", env=through).out)["blob"]["size"] == len(value)
    assert prime_dht("get", "large", env=through).out == value


def test_subkeys_are_values_of_their_own(joined: Here) -> None:
    joined("put", "parts", "one", "--subkey", "1")
    assert joined("get", "parts", "--subkey", "1").out == b"one"
    assert joined("get", "parts", "--subkey", "2").status == 1


def test_an_identity_is_kept_in_a_data_directory(tmp_path: Path, through: dict[str, str]) -> None:
    directory = str(tmp_path / "me")
    prime_dht("put", "signed", "value", "--data-dir", directory, env=through)
    peer_id = prime_dht("id", "--data-dir", directory).out.decode().strip()
    assert peer_id.startswith("12D3Koo")
    assert f"by {peer_id}" in prime_dht("get", "signed", "-v", env=through).err


def test_a_ttl_has_units(joined: Here) -> None:
    assert joined("put", "brief", "value", "--ttl", "1.5h").status == 0
    endless = joined("put", "endless", "value", "--ttl", "9999d")
    assert_complains(endless, "a ttl of 9999d exceeds this network's max_ttl of 30d")


@pytest.fixture
def silent() -> Iterator[tuple[socket.socket, str]]:
    """A socket that accepts connections and never says a word, and its address as a peer's."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(TIMEOUT_S)
        port = listener.getsockname()[1]
        yield listener, f"/ip4/127.0.0.1/tcp/{port}/p2p/12D3KooWLRPJAA5o6Ue7HZ1ZUKzNx1bmXZzHnQXEMNvvTHDsdc1B"


def test_the_first_peer_that_answers_is_enough(address: str, silent: tuple[socket.socket, str]) -> None:
    got = prime_dht("get", "nobody", "--peer", silent[1], "--peer", address, "--timeout", "5")
    assert got == Ended(1, b"", "prime-dht: not found: nobody\n")


def test_a_reader_that_stops_reading_ends_a_get_quietly(through: dict[str, str]) -> None:
    prime_dht("put", "long", "-", stdin=b"x" * 65536, env=through)
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as pipe, running(*PRIME_DHT, "get", "long", stdout=pipe, env=through) as got:
        ended = got.end()
    assert (ended.status, ended.err) == (128 + signal.SIGPIPE, "")


@pytest.mark.parametrize("command", [("get", "key"), ("put", "key", "value")], ids=["get", "put"])
def test_ctrl_c_ends_a_command_that_waits(command: tuple[str, ...], silent: tuple[socket.socket, str]) -> None:
    listener, peer = silent
    with running_warm(*PRIME_DHT, *command, "--peer", peer) as waiting:
        connection, _ = listener.accept()
        with connection:
            assert waiting.stop(signal.SIGINT) == Ended(130, b"", "")


def test_ctrl_c_ends_a_node_that_joins(silent: tuple[socket.socket, str]) -> None:
    listener, peer = silent
    with running(*PRIME_DHT, "run", "--listen", LOOPBACK, "--peer", peer) as node:
        connection, _ = listener.accept()
        with connection:
            ended = node.stop(signal.SIGINT)
    assert (ended.status, ended.out) == (130, b"")
    assert ended.err.endswith("stopped by SIGINT\n")


def test_a_silent_peer_is_given_up_on_after_the_timeout(silent: tuple[socket.socket, str]) -> None:
    assert_complains(prime_dht("get", "key", "--peer", silent[1], "--timeout", "0.5"), "within 0.5 s")


def test_a_node_killed_in_mid_life_has_its_identity_and_its_entries_when_it_is_back(tmp_path: Path) -> None:
    directory = str(tmp_path / "node")
    with running_node("--data-dir", directory) as (node, address):
        assert prime_dht("put", "durable", "survives", "--peer", address).status == 0
        assert node.stop(signal.SIGKILL).status == -signal.SIGKILL
    with running_node("--data-dir", directory) as (_, again):
        assert again.rpartition("/")[2] == address.rpartition("/")[2]
        assert prime_dht("get", "durable", "--peer", again).out == b"survives"


def test_nodes_started_through_one_find_each_other(address: str) -> None:
    with running_node("--peer", address) as (_, second), running_node("--peer", address) as (_, third):
        assert prime_dht("put", "spread", "wide", "--peer", second).err == ""
        assert prime_dht("get", "spread", "--peer", third).out == b"wide"
