"""The identity file: one key, never overwritten, never open to others."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest
from libp2p.crypto.rsa import create_new_key_pair as new_rsa_key_pair
from libp2p.identity_utils import load_identity, save_identity

from prime_dht import durability
from prime_dht.errors import ConfigError
from prime_dht.ids import peer_from_text, peer_text
from prime_dht.net import identity
from prime_dht.net.identity import load_or_create_identity, new_identity, peer_id_of


def test_an_identity_survives_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "data" / "identity.key"
    first = load_or_create_identity(path)
    assert peer_id_of(load_or_create_identity(path)) == peer_id_of(first)


def test_the_file_and_its_directory_are_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        load_or_create_identity(tmp_path / "data" / "identity.key")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "data" / "identity.key").stat().st_mode) == 0o600


def test_nothing_but_the_identity_is_left_in_the_directory(tmp_path: Path) -> None:
    load_or_create_identity(tmp_path / "identity.key")
    assert os.listdir(tmp_path) == ["identity.key"]


def test_py_libp2p_reads_the_file_and_its_own_file_is_read(tmp_path: Path) -> None:
    ours = load_or_create_identity(tmp_path / "ours")
    assert peer_id_of(load_identity(tmp_path / "ours")) == peer_id_of(ours)
    theirs = new_identity()
    save_identity(theirs, tmp_path / "theirs")
    assert peer_id_of(load_or_create_identity(tmp_path / "theirs")) == peer_id_of(theirs)


def test_a_file_that_appears_while_one_is_being_made_wins(tmp_path: Path) -> None:
    winner = new_identity()
    path = tmp_path / "identity.key"
    save_identity(winner, path)
    identity._create(path, new_identity().private_key.serialize())
    assert peer_id_of(load_or_create_identity(path)) == peer_id_of(winner)
    assert os.listdir(tmp_path) == ["identity.key"]


@pytest.mark.parametrize("content", [b"", b"not a key", b"\x08\x01\x12\x20" + bytes(5)])
def test_an_empty_or_corrupt_file_is_refused_in_one_line_and_kept(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "identity.key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match=r"identity\.key is (empty|corrupt)") as caught:
        load_or_create_identity(path)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == content


def test_a_key_of_another_type_is_refused(tmp_path: Path) -> None:
    save_identity(new_rsa_key_pair(bits=2048), tmp_path / "identity.key")
    with pytest.raises(ConfigError, match="not Ed25519"):
        load_or_create_identity(tmp_path / "identity.key")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_file_open_to_others_is_refused_with_the_command_that_closes_it(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "identity.key"
    load_or_create_identity(path)
    path.chmod(mode)
    with pytest.raises(ConfigError, match=f"run chmod 600 {path}"):
        load_or_create_identity(path)


def test_nobody_is_told_to_close_a_file_that_is_no_identity(tmp_path: Path) -> None:
    path = tmp_path / "everybodys"
    path.write_bytes(b"not a key")
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="it holds no libp2p private key"):
        load_or_create_identity(path)


def test_a_path_that_cannot_be_used_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match="File exists"):
        load_or_create_identity(tmp_path / "file" / "identity.key")
    with pytest.raises(ConfigError, match="not a regular file"):
        load_or_create_identity(tmp_path)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="No such file"):
        load_or_create_identity(tmp_path / "dangling")


def test_a_peer_id_has_the_usual_text() -> None:
    peer = peer_id_of(new_identity())
    assert peer_text(peer).startswith("12D3KooW")
    assert peer_from_text(peer_text(peer)) == peer


def test_a_directory_is_made_in_one_that_may_be_written_and_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    monkeypatch.setattr(durability, "sync_path", refuse)
    path = tmp_path / "data" / "identity.key"
    assert peer_id_of(load_or_create_identity(path)) == peer_id_of(load_or_create_identity(path))
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
