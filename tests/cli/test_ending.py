"""Whatever ends a command, the person gets a status and one line."""

from __future__ import annotations

import errno
import os
import signal
import sys

import pytest
import trio

from prime_dht.cli import main
from prime_dht.cli.commands.put import shortfalls
from prime_dht.cli.ending import EndedBySignal
from prime_dht.cli.life import run_until_done
from prime_dht.errors import PrimeDHTError, QueryError, RemoteProtocolError, StorageError
from prime_dht.ids import Key, OpId, PeerId, TimestampUs, peer_text
from prime_dht.node.results import PutReceipt
from prime_dht.testing.processes import run

ALICE = PeerId(b"\x00\x24" + b"a" * 36)
BOB = PeerId(b"\x00\x24" + b"b" * 36)


def make_id_raise(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def load_or_create_identity(path: object) -> None:
        raise error

    monkeypatch.setattr("prime_dht.net.identity.load_or_create_identity", load_or_create_identity)


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (QueryError("nobody\nanswers"), 2, "prime-dht: nobody answers\n"),
        (RemoteProtocolError("it said \x1b[2J"), 2, "prime-dht: it said \\x1b[2J\n"),
        (
            ExceptionGroup(
                "", [QueryError("one"), ExceptionGroup("", [QueryError("two"), RemoteProtocolError("one")])]
            ),
            2,
            "prime-dht: one; two\n",
        ),
        (KeyboardInterrupt(), 130, "\n"),
        (
            KeyError("oops"),
            70,
            "prime-dht: this is a bug in prime_dht, please report it: KeyError('oops') (-v shows where)\n",
        ),
    ],
    ids=["an error", "a peer's words", "a group of errors", "Ctrl-C", "a bug"],
)
def test_what_ends_a_command_becomes_a_status_and_a_line(
    error: BaseException,
    status: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_id_raise(monkeypatch, error)
    assert main(["id", "--data-dir", "nowhere"]) == status
    assert capsys.readouterr() == ("", line)


def failed_to_open(*, as_: type[PrimeDHTError] | None) -> Exception:
    """As the system says it, or as the edge that translates it says it."""
    cause = OSError(errno.EMFILE, "Too many open files")
    if as_ is None:
        return cause
    error = as_("store.sqlite: Too many open files")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "what"),
    [
        (failed_to_open(as_=None), "Too many open files"),
        (failed_to_open(as_=StorageError), "store.sqlite: Too many open files"),
    ],
    ids=["the system's words", "translated"],
)
def test_too_many_open_files_are_no_bug_but_a_limit(
    error: Exception, what: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_id_raise(monkeypatch, error)
    assert main(["id", "--data-dir", "nowhere"]) == 2
    assert capsys.readouterr() == ("", f"prime-dht: {what}: raise the limit, `ulimit -n`\n")


def test_a_group_with_a_bug_in_it_is_a_bug(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    make_id_raise(monkeypatch, ExceptionGroup("", [QueryError("nobody"), KeyError("oops")]))
    assert main(["id", "--data-dir", "nowhere"]) == 70
    assert "bug" in capsys.readouterr().err


def receipt(*, stored_by: tuple[PeerId, ...], refused: tuple[tuple[PeerId, str], ...] = ()) -> PutReceipt:
    return PutReceipt(
        key=Key(b"/prime/k"),
        subkey=b"",
        op_id=OpId(b"o" * 32),
        created_at_us=TimestampUs(0),
        expires_at_us=TimestampUs(1),
        stored_by=stored_by,
        refused=refused,
        wanted=2,
        needed=2,
    )


def test_the_first_process_of_a_container_can_be_stopped_before_it_listens_for_signals() -> None:
    """Linux sends it nothing that it has no handler for, so one is there while all else is still imported."""
    body = """
import os, signal, sys
itself, os.getpid = os.getpid(), lambda: 1
from prime_dht.cli import main
class Stopping:  # asked for the first module that is imported from there on
    def find_spec(self, *_):
        print("handled" if callable(signal.getsignal(signal.SIGTERM)) else "dropped", flush=True)
        os.kill(itself, signal.SIGTERM)
sys.meta_path.insert(0, Stopping())
main(["--version"])
"""
    ended = run(sys.executable, "-c", body)
    assert (ended.status, ended.out, ended.err) == (128 + signal.SIGTERM, b"handled\n", "")


def test_a_put_that_fell_short_says_who_refused_and_why() -> None:
    short = receipt(stored_by=(ALICE,), refused=((BOB, "the store is full"),))
    assert shortfalls(short) == ["stored by 1 of 2 replicas", f"{peer_text(BOB)}: the store is full"]


def test_a_put_that_did_not_fall_short_says_nothing() -> None:
    assert shortfalls(receipt(stored_by=(ALICE, BOB))) == []


async def _stopped_on_a_full_disk() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    try:
        await trio.sleep_forever()
    finally:
        raise StorageError("blocks: the disk is full")


def test_what_could_not_be_written_at_the_end_is_said_and_does_not_change_how_it_ended(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(EndedBySignal, match="SIGTERM"):
        run_until_done(_stopped_on_a_full_disk)
    assert caplog.messages == ["not all could be written down at the end: blocks: the disk is full"]
