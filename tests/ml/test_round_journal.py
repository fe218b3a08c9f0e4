"""What a member noted is there after a crash, whole or not at all."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import cast

import pytest

from prime_dht import BlockingDHT
from prime_dht.errors import LocalProtocolError, StorageError
from prime_dht.ml.rounds.journal import Journal, Journals, journals_of


def test_what_was_noted_is_read_again_in_order(tmp_path: Path) -> None:
    path = tmp_path / "rounds" / "7.jsonl"
    journal = Journal(path)
    journal.note(b"second", b"")
    journal.note(b"first", b"\x00value\n")
    assert list(Journal(path).notes.items()) == [(b"second", b""), (b"first", b"\x00value\n")]


def test_what_was_noted_first_stands(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "7.jsonl")
    journal.note(b"vote", b"first")
    journal.note(b"vote", b"second")
    assert journal.notes == Journal(tmp_path / "7.jsonl").notes == {b"vote": b"first"}


def test_a_line_that_a_crash_cut_off_never_counted_and_the_next_one_takes_its_place(tmp_path: Path) -> None:
    path = tmp_path / "7.jsonl"
    Journal(path).note(b"one", b"")
    whole = path.read_bytes()
    Journal(path).note(b"two", b"longer than what comes after it")
    for length in range(len(whole), path.stat().st_size):
        path.write_bytes((path.read_bytes())[:length])
        journal = Journal(path)
        assert list(journal.notes) == [b"one"]
        journal.note(b"three", b"")
        assert list(Journal(path).notes) == [b"one", b"three"]
        path.write_bytes(whole)
        Journal(path).note(b"two", b"longer than what comes after it")


@pytest.mark.parametrize("line", [b"?\n", b'["00"]\n', b'["zz", ""]\n', b"{}\n", b"[1, 2]\n", b"7\n"])
def test_a_damaged_journal_is_an_error(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "7.jsonl"
    Journal(path).note(b"one", b"")
    path.write_bytes(path.read_bytes() + line)
    with pytest.raises(StorageError, match="damaged, so it is not known"):
        Journal(path)


def test_what_cannot_be_read_or_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot read"):
        Journal(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot write"):
        Journal(tmp_path / "file" / "7.jsonl").note(b"one", b"")


def test_nothing_is_left_of_a_journal_that_is_discarded(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "7.jsonl")
    journal.note(b"one", b"")
    journal.discard()
    assert not journal.notes
    assert not list(tmp_path.iterdir())
    journal.note(b"two", b"")
    assert list(Journal(tmp_path / "7.jsonl").notes) == [b"two"]


@pytest.mark.parametrize("has_directory", [True, False])
def test_what_was_noted_is_there_when_the_round_is_run_again_with_a_directory_or_without(
    tmp_path: Path, *, has_directory: bool
) -> None:
    journals = Journals(tmp_path if has_directory else None)
    with suppress(KeyboardInterrupt), journals.opened("7") as journal:
        journal.note(b"one", b"note")
        raise KeyboardInterrupt
    with journals.opened("8") as journal:
        assert not journal.notes
    with journals.opened("7") as journal:
        assert journal.notes == {b"one": b"note"}
        journal.discard()
    with journals.opened("7") as journal:
        assert not journal.notes


def test_a_node_is_in_a_round_once_at_a_time(tmp_path: Path) -> None:
    journals = Journals(tmp_path)
    for _ in range(2):
        with (
            journals.opened("7"),
            journals.opened("8"),
            pytest.raises(LocalProtocolError, match="in the same round already"),
            journals.opened("7"),
        ):
            pass


def test_of_a_client_there_is_one_set_of_journals(tmp_path: Path) -> None:
    class Client:
        data_dir = tmp_path

    first, second = (cast("BlockingDHT", Client()) for _ in range(2))
    assert journals_of(first) is journals_of(first)
    assert journals_of(first) is not journals_of(second)
