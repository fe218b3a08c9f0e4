"""What a member noted is there after a crash, whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from prime_dht.errors import StorageError
from prime_dht.ml.rounds.journal import Journal


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


def test_without_a_path_notes_last_as_long_as_the_journal() -> None:
    journal = Journal(None)
    journal.note(b"one", b"note")
    assert journal.notes == {b"one": b"note"}
    journal.discard()
    assert not journal.notes
