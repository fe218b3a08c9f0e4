"""``prime-dht group``: keys under which only those write whom somebody has invited."""

from __future__ import annotations

import base64
import errno
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from libp2p.crypto.ed25519 import create_new_key_pair

from prime_dht.entries.capability import grant
from prime_dht.ids import peer_from_text
from prime_dht.testing.processes import Ended

MEMBER = "12D3KooWLRPJAA5o6Ue7HZ1ZUKzNx1bmXZzHnQXEMNvvTHDsdc1B"


@pytest.fixture
def root_key(here: Callable[..., Ended], tmp_path: Path) -> Path:
    path = tmp_path / "trainers.group"
    assert here("group", "create", "trainers", "--out", str(path)).status == 0
    return path


def complaint(ended: Ended) -> str:
    """The one line that a command which failed has written."""
    assert (ended.status, ended.out, ended.err.count("\n")) == (2, b"", 1), ended
    return ended.err


def test_a_root_key_is_readable_by_its_owner_alone_and_never_replaced(
    here: Callable[..., Ended], tmp_path: Path
) -> None:
    created = here("group", "create", "trainers", "--out", str(tmp_path))
    path = tmp_path / "trainers.group"
    assert created.out.startswith(b"/prime/group/")
    assert created.err == f"prime-dht: the root key is in {path}: keep it safe, whoever has it can invite members\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = path.read_bytes()
    assert "it exists already" in complaint(here("group", "create", "trainers", "--out", str(tmp_path)))
    assert path.read_bytes() == before
    assert here("group", "show", str(path)).out == b"group    " + created.out


@pytest.mark.parametrize("name", ["", "a/b", ".hidden", "a\nb"])
def test_a_group_whose_name_makes_no_file_is_a_mistake(here: Callable[..., Ended], tmp_path: Path, name: str) -> None:
    assert "cannot be the name of a file" in complaint(here("group", "create", name, "--out", str(tmp_path)))
    assert not list(tmp_path.iterdir())


def test_a_member_puts_a_stranger_does_not_and_anybody_reads(
    here: Callable[..., Ended], three_nodes: tuple[str, ...], tmp_path: Path, root_key: Path
) -> None:
    peer = ("--peer", three_nodes[0])
    alice, mallory = (("--data-dir", str(tmp_path / name)) for name in ("alice", "mallory"))
    alices_id = here("id", *alice).out.decode().strip()
    token = str(tmp_path / "alice.capability")
    assert here("group", "invite", str(root_key), alices_id, "--expires", "2d", "--out", token).status == 0
    key = json.loads(here("group", "show", token, "--json").out)["prefix"] + "model"

    assert here("put", key, "version 1", "--capability", token, *alice, *peer).status == 0
    assert here("get", key, *peer).out == b"version 1"

    assert "takes only entries that carry a capability" in complaint(here("put", key, "forged", *mallory, *peer))
    stolen = here("put", key, "forged", "--capability", token, *mallory, *peer)
    assert "the capability names another member" in complaint(stolen)
    assert here("get", key, *peer).out == b"version 1"

    longer = here("put", key, "version 2", "--capability", token, "--ttl", "3d", *alice, *peer)
    assert "the capability ends before the entry expires" in complaint(longer)
    assert here("delete", key, "--capability", token, *alice, *peer).status == 0
    assert here("get", key, *peer).status == 1


def test_an_invitation_says_whom_it_is_for_until_when_and_where(
    here: Callable[..., Ended], tmp_path: Path, root_key: Path
) -> None:
    invited = here("group", "invite", str(root_key), MEMBER, "--expires", "12h", "--network", "lab")
    token = tmp_path / "token"
    token.write_bytes(invited.out)
    assert invited.out.count(b"\n") == 1
    shown = json.loads(here("group", "show", str(token), "--json").out)
    assert (shown["member"], shown["network"], shown["valid"], shown["problem"]) == (MEMBER, "lab", True, None)
    text = here("group", "show", str(token)).out.decode().splitlines()
    assert [line.split()[0] for line in text] == ["group", "network", "member", "ends", "valid"]
    assert f"group    {shown['prefix']}" == text[0]


def test_a_capability_that_has_ended_is_shown_as_invalid(
    here: Callable[..., Ended], tmp_path: Path, root_key: Path
) -> None:
    root = create_new_key_pair(bytes(32)).private_key
    ended = grant(root, member=peer_from_text(MEMBER), expires_at_us=1_000_000, network_id="prime")
    token = tmp_path / "token"
    token.write_bytes(base64.b64encode(ended))
    shown = here("group", "show", str(token))
    assert shown.status == 1
    assert shown.out.decode().splitlines()[-1] == "invalid  it has ended"


def test_a_capability_that_the_root_did_not_sign_is_shown_as_invalid(
    here: Callable[..., Ended], tmp_path: Path
) -> None:
    root = create_new_key_pair(bytes(32)).private_key
    genuine = grant(root, member=peer_from_text(MEMBER), expires_at_us=2**62, network_id="prime\x1b[2J")
    token = tmp_path / "token"
    token.write_bytes(base64.b64encode(genuine[:-1] + bytes([genuine[-1] ^ 1])))
    shown = here("group", "show", str(token))
    assert shown.status == 1
    lines = shown.out.decode().splitlines()
    assert all(line.isprintable() for line in lines)
    assert lines[1] == "network  prime\\x1b[2J"
    assert lines[-1] == "invalid  the capability was not signed by the group's root key"


def test_an_invitation_for_longer_than_can_be_said_is_a_mistake_of_that_option(
    here: Callable[..., Ended], root_key: Path
) -> None:
    refused = complaint(here("group", "invite", str(root_key), MEMBER, "--expires", "9999999999d"))
    assert "'--expires': no capability lasts so long" in refused


@pytest.mark.parametrize("content", [b"", b"not base64!", b"YWJj", bytes(100), b"QQ==" * 5000])
def test_what_is_no_capability_is_named(here: Callable[..., Ended], tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "file"
    file.write_bytes(content)
    file.chmod(0o600)
    assert f"{file} holds no capability" in complaint(here("group", "show", str(file)))
    assert f"{file} holds no capability" in complaint(here("put", "key", "value", "--capability", str(file)))


def test_mistakes_name_the_file_or_the_argument(here: Callable[..., Ended], tmp_path: Path, root_key: Path) -> None:
    nothing = str(tmp_path / "nothing")
    assert "prime-dht group create" in complaint(here("group", "invite", nothing, MEMBER))
    assert not (tmp_path / "nothing").exists()
    assert "is not a peer id" in complaint(here("group", "invite", str(root_key), "alice"))
    assert f"'{nothing}' does not exist" in complaint(here("group", "show", nothing))
    out = str(tmp_path / "no" / "such" / "directory")
    assert out in complaint(here("group", "invite", str(root_key), MEMBER, "--out", out))


def test_an_invitation_replaces_an_older_one_and_nothing_else(
    here: Callable[..., Ended], tmp_path: Path, root_key: Path
) -> None:
    token, before = tmp_path / "token", root_key.read_bytes()
    assert "is no capability, and is not replaced" in complaint(
        here("group", "invite", str(root_key), MEMBER, "--out", str(root_key))
    )
    assert root_key.read_bytes() == before
    for network in ("one", "two"):
        assert here("group", "invite", str(root_key), MEMBER, "--network", network, "--out", str(token)).status == 0
        assert json.loads(here("group", "show", str(token), "--json").out)["network"] == network


def test_an_invitation_for_which_there_is_no_room_leaves_the_older_one(
    here: Callable[..., Ended], tmp_path: Path, root_key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    token = tmp_path / "token"
    assert here("group", "invite", str(root_key), MEMBER, "--out", str(token)).status == 0
    before = token.read_bytes()
    monkeypatch.setattr(os, "fsync", is_full)
    refused = complaint(here("group", "invite", str(root_key), MEMBER, "--expires", "1d", "--out", str(token)))
    assert f"{token}: No space left on device" in refused
    assert token.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"token", root_key.name}


def test_an_invitation_goes_into_a_pipe_or_to_where_a_link_leads_and_leaves_both_as_they_are(
    here: Callable[..., Ended], tmp_path: Path, root_key: Path
) -> None:
    pipe, link, token = (tmp_path / name for name in ("pipe", "link", "token"))
    os.mkfifo(pipe)
    link.symlink_to(token)
    with os.fdopen(os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)) as reader:
        assert here("group", "invite", str(root_key), MEMBER, "--out", str(pipe)).status == 0
        assert here("group", "invite", str(root_key), MEMBER, "--out", str(link)).status == 0
        assert len(reader.read()) == len(token.read_text())
    assert pipe.is_fifo()
    assert link.is_symlink()


def test_an_invitation_is_for_the_network_of_the_configuration_and_for_none_that_cannot_be(
    here: Callable[..., Ended], tmp_path: Path, root_key: Path
) -> None:
    (tmp_path / "node.toml").write_text('[dht]\nnetwork_id = "lab"\n')
    invited = here("group", "invite", str(root_key), MEMBER, "--config", str(tmp_path / "node.toml"), "--json")
    assert json.loads(invited.out)["network"] == "lab"
    for name in ("two words", "a/b", "a\nb"):
        assert "network_id must be" in complaint(here("group", "invite", str(root_key), MEMBER, "--network", name))


def test_a_file_that_is_no_root_key_is_called_one(here: Callable[..., Ended], tmp_path: Path) -> None:
    (tmp_path / "bad").write_text("no key")
    corrupt = f"prime-dht: root key {tmp_path}/bad is corrupt: it holds no libp2p private key\n"
    assert here("group", "invite", str(tmp_path / "bad"), MEMBER) == Ended(2, b"", corrupt)
    nowhere = here("group", "create", "g", "--out", "/proc/nowhere/g")
    assert nowhere.err.startswith("prime-dht: root key /proc/nowhere/g: ")
