"""``prime-dht get-all`` and ``delete``: what everybody has under a key, and taking back one's own."""

from __future__ import annotations

import base64
import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from prime_dht.cli.commands.get_all import MAX_NAME_CHARS, file_name
from prime_dht.ids import US_PER_S, peer_from_text
from prime_dht.net.identity import IDENTITY_FILE
from prime_dht.node.clock import SystemClock
from prime_dht.testing.processes import PRIME_DHT, Ended, running

PEER = peer_from_text("12D3KooWLRPJAA5o6Ue7HZ1ZUKzNx1bmXZzHnQXEMNvvTHDsdc1B")
HOSTILE = b"\x1b]0;owned\x07\x1b[2J\xff\r\n"


@pytest.fixture
def peer(three_nodes: tuple[str, ...]) -> tuple[str, str]:
    return ("--peer", three_nodes[0])


def test_everybodys_value_is_listed_and_none_of_it_reaches_the_terminal_raw(
    here: Callable[..., Ended], peer: tuple[str, str], tmp_path: Path
) -> None:
    (tmp_path / "value").write_bytes(HOSTILE)
    assert here("put", "gradient", "--file", str(tmp_path / "value"), *peer).status == 0
    assert here("put", "gradient", "plain", "--subkey", "s\x1b[31m", *peer).status == 0
    ended = here("get-all", "gradient", *peer)
    assert (ended.status, ended.err) == (0, "")
    shown = ended.out.decode()
    assert all(char.isprintable() for char in shown.replace("\n", ""))
    assert shown.splitlines()[0].split() == ["publisher", "subkey", "bytes", "age", "ends", "in", "value"]
    assert "\\x1b]0;owned\\x07\\x1b[2J\\xff\\r\\n" in shown
    assert "s\\x1b[31m" in shown
    assert len(shown.splitlines()) == 3


def test_programs_get_whole_values_in_base64(here: Callable[..., Ended], peer: tuple[str, str]) -> None:
    here("put", "whole", "one", "--subkey", "1", *peer)
    here("put", "whole", "two", "--subkey", "2", *peer)
    lines = here("get-all", "whole", "--json", *peer).out.splitlines()
    values = {base64.b64decode(item["subkey"]): base64.b64decode(item["value"]) for item in map(json.loads, lines)}
    assert values == {b"1": b"one", b"2": b"two"}


def test_ctrl_c_ends_it_though_nobody_reads_what_it_writes(
    here: Callable[..., Ended], peer: tuple[str, str], tmp_path: Path
) -> None:
    (tmp_path / "value").write_bytes(b"x" * 60_000)
    for subkey in ("1", "2", "3"):  # in base64, more than a pipe takes
        here("put", "unread", "--file", str(tmp_path / "value"), "--subkey", subkey, *peer)
    with running(*PRIME_DHT, "get-all", "unread", "--json", *peer) as writing:
        assert json.loads(writing.line())["size"] == 60_000
        writing.process.send_signal(signal.SIGINT)
        assert writing.status() == 130


def test_subkeys_and_publishers_can_be_chosen_and_the_number_bounded(
    here: Callable[..., Ended], peer: tuple[str, str], tmp_path: Path
) -> None:
    mine = ("--data-dir", str(tmp_path / "me"))
    for subkey in ("1", "2", "3"):
        here("put", "chosen", subkey, "--subkey", subkey, *mine, *peer)
    here("put", "chosen", "theirs", "--subkey", "1", *peer)
    peer_id = here("id", *mine).out.decode().strip()

    def listed(*arguments: str) -> list[bytes]:
        lines = here("get-all", "chosen", "--json", *arguments, *peer).out.splitlines()
        return sorted(base64.b64decode(json.loads(line)["value"]) for line in lines)

    assert listed("--publisher", peer_id) == [b"1", b"2", b"3"]
    assert listed("--subkey", "1") == [b"1", b"theirs"]
    assert listed("--subkey", "2", "--subkey", "3") == [b"2", b"3"]
    bounded = here("get-all", "chosen", "--limit", "2", "--json", *peer)
    assert len(bounded.out.splitlines()) == 2
    assert bounded.err == "prime-dht: there are more than 2 values: --limit shows more\n"


def test_values_become_files_whose_names_are_safe(
    here: Callable[..., Ended], peer: tuple[str, str], tmp_path: Path
) -> None:
    mine = ("--data-dir", str(tmp_path / "me"))
    here("put", "files", "plain", *mine, *peer)
    here("put", "files", "escaping", "--subkey", "../../escape", *mine, *peer)
    peer_id = here("id", *mine).out.decode().strip()
    out = tmp_path / "out"
    assert here("get-all", "files", "--out", str(out), *peer).status == 0
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {
        peer_id: b"plain",
        f"{peer_id}...%2F..%2Fescape": b"escaping",
    }


def test_blobs_are_saved_like_other_values_and_have_their_size(
    here: Callable[..., Ended], peer: tuple[str, str], tmp_path: Path
) -> None:
    (tmp_path / "blob").write_bytes(bytes(65_537))
    mine, out = ("--data-dir", str(tmp_path / "me")), tmp_path / "out"
    assert here("put", "weights", "--file", str(tmp_path / "blob"), "--subkey", "blob", *mine, *peer).status == 0
    here("put", "weights", "small", *mine, *peer)
    peer_id = here("id", *mine).out.decode().strip()
    listed = here("get-all", "weights", *peer).out.decode().splitlines()
    assert [line.split()[1:3] for line in listed[1:]] == [["-", "5"], ["blob", "65,537"]]

    limited = here("get-all", "weights", "--out", str(out), "--max-size", "64KiB", *peer)
    assert (limited.status, b"not saved" in limited.out) == (2, True)
    refused = "a blob of 65,537 bytes; at most 65,536 were to be taken"
    assert limited.err == f"prime-dht: not saved: {out}/{peer_id}.blob: {refused}\n"
    assert [path.name for path in out.iterdir()] == [peer_id], "the other is there all the same"

    lines = here("get-all", "weights", "--out", str(out), "--json", *peer).out.splitlines()
    saved = {base64.b64decode(item["subkey"]): item for item in map(json.loads, lines)}
    assert (saved[b"blob"]["size"], saved[b"blob"]["file"]) == (65_537, f"{out}/{peer_id}.blob")
    assert {path.name: len(path.read_bytes()) for path in out.iterdir()} == {peer_id: 5, f"{peer_id}.blob": 65_537}


@pytest.mark.parametrize("subkey", [b"", b"/", b"..", b"\x00", b"\xff" * 256, b"a" * 256, "ключ".encode()])
def test_a_files_name_is_one_component_and_short_enough(subkey: bytes) -> None:
    name = file_name(PEER, subkey)
    assert "/" not in name
    assert "\x00" not in name
    assert name.isascii()
    assert len(name) <= MAX_NAME_CHARS
    assert name not in (".", "..")


def test_different_slots_have_different_files() -> None:
    subkeys = [b"", b"a", b"%61", b"\xff" * 256, b"\xff" * 255, b".", b"..", b" "]
    assert len({file_name(PEER, subkey) for subkey in subkeys}) == len(subkeys)


def test_of_a_key_that_nobody_has_put_nothing_is_found(here: Callable[..., Ended], peer: tuple[str, str]) -> None:
    assert here("get-all", "nobody\x1b", *peer) == Ended(1, b"", "prime-dht: not found: nobody\\x1b\n")


def test_a_directory_that_cannot_be_made_is_named(here: Callable[..., Ended], peer: tuple[str, str]) -> None:
    ended = here("get-all", "key", "--out", "/proc/nothing", *peer)
    assert (ended.status, ended.out) == (2, b"")
    assert "/proc/nothing" in ended.err


def test_one_deletes_ones_own_value_and_nobody_elses(
    here: Callable[..., Ended], peer: tuple[str, str], tmp_path: Path
) -> None:
    mine = ("--data-dir", str(tmp_path / "me"))
    here("put", "ours", "theirs", *peer)
    here("put", "ours", "mine", *mine, *peer)
    assert here("delete", "ours", *mine, *peer) == Ended(0, b"deleted on 3 replicas\n", "")
    assert here("get", "ours", *peer).out == b"theirs"
    again = here("delete", "ours", *mine, *peer)
    assert (again.status, again.out) == (1, b"")
    assert "has nothing under ours" in again.err


def test_what_is_older_than_the_value_deletes_nothing_and_says_so(
    here: Callable[..., Ended], peer: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy of an identity knows nothing of what was written elsewhere, by a clock that was five minutes ahead."""
    there, copy = (tmp_path / name for name in ("there", "copy"))
    with monkeypatch.context() as ahead:
        right_us = SystemClock.now_us
        ahead.setattr(SystemClock, "now_us", lambda clock: right_us(clock) + 300 * US_PER_S)
        assert here("put", "newer", "value", "--data-dir", str(there), *peer).status == 0
    copy.mkdir()
    (copy / IDENTITY_FILE).write_bytes((there / IDENTITY_FILE).read_bytes())
    (copy / IDENTITY_FILE).chmod(0o600)
    refused = here("delete", "newer", "--data-dir", str(copy), *peer)
    assert (refused.status, refused.out) == (2, b"")
    assert "it is not deleted" in refused.err
    assert here("get", "newer", *peer).out == b"value"


def test_a_deletion_tells_programs_who_did_it(
    here: Callable[..., Ended], peer: tuple[str, str], tmp_path: Path
) -> None:
    mine = ("--data-dir", str(tmp_path / "me"))
    here("put", "told", "value", "--subkey", "s", *mine, *peer)
    deleted = json.loads(here("delete", "told", "--subkey", "s", "--json", *mine, *peer).out)
    assert (len(deleted["stored_by"]), deleted["acknowledged"], deleted["warning"]) == (3, True, None)


def test_without_an_identity_there_is_nothing_to_delete(
    here: Callable[..., Ended], peer: tuple[str, str], tmp_path: Path
) -> None:
    assert "give --data-dir" in here("delete", "key", *peer).err
    ended = here("delete", "key", "--data-dir", str(tmp_path / "nobody"), *peer)
    assert (ended.status, ended.out) == (2, b"")
    assert "holds no identity" in ended.err
    assert not (tmp_path / "nobody").exists(), "and none is made for it"


def test_a_terminal_gets_text_with_a_newline_and_nothing_that_could_harm_it(
    here: Callable[..., Ended], peer: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "value").write_bytes(HOSTILE)
    assert here("put", "hostile", "--file", str(tmp_path / "value"), *peer).status == 0
    assert here("put", "harmless", "caf\u00e9\n\tau lait", *peer).status == 0
    monkeypatch.setattr("os.isatty", lambda _: True)
    refused = here("get", "hostile", *peer)
    assert (refused.status, refused.out) == (2, b"")
    assert "--out FILE" in refused.err
    assert here("get", "harmless", *peer).out == "caf\u00e9\n\tau lait\n".encode()
