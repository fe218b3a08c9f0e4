"""What a person gets for a mistake with a blob: one line that says what to do, and exit status 2."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from prime_dht.testing.processes import Ended

CID = "bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi"
NOBODY = "--peer /ip4/127.0.0.1/tcp/1/p2p/12D3KooWLRPJAA5o6Ue7HZ1ZUKzNx1bmXZzHnQXEMNvvTHDsdc1B"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("add", "Missing argument 'FILE'"),
        ("add a b", "unexpected extra argument"),
        (f"add /no/such/file {NOBODY}", "/no/such/file: No such file or directory"),
        (f"add / {NOBODY}", "/: Is a directory"),
        ("add /etc/passwd", "give --peer an address that `prime-dht run` prints"),
        (f"add /etc/passwd {NOBODY}", "Connection refused"),
        ("add /etc/passwd --ttl soon", "'--ttl': 'soon' is not a duration"),
        ("add /etc/passwd --pin", "--pin needs --data-dir"),
        ("add /etc/passwd --pim", "No such option '--pim'"),
        ("cat", "Missing argument 'CID'"),
        ("cat typo", "'CID': 'typo' is not a CID: the letter b and 58 characters of lower-case base32"),
        (f"cat {CID[:-1]}", "is not a CID"),
        (f"cat {CID} --max-size much", "'--max-size': 'much' is not a size such as"),
        (f"cat {CID[:-1]}j", f"is not a CID: it would be {CID}"),
        (f"cat {CID.upper()}", "is not a CID"),
        ("cat QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWKPbdG", "is a CID of version 0"),
        (f"cat {CID} --out / {NOBODY}", "/: Is a directory"),
        (f"cat {CID} --out /no/such/file {NOBODY}", "/no/such/file: its directory does not exist"),
        (f"cat {CID} --json {NOBODY}", "--json needs --out FILE"),
        (f"cat {CID} {NOBODY}", "Connection refused"),
        (f"cat {CID}", "give --peer an address that `prime-dht run` prints"),
        (f"get key --out / {NOBODY}", "/: Is a directory"),
        (f"put key --file /no/such/file {NOBODY}", "/no/such/file: No such file or directory"),
        ("pin", "Missing argument 'CID'"),
        (f"pin {CID} {NOBODY}", "give --data-dir: that is where it is kept"),
        ("pin typo --data-dir /", "'typo' is not a CID"),
        (f"pin {CID} --data-dir /dev/null {NOBODY}", "'--data-dir': '/dev/null' is not a directory"),
        (f"pin {CID} --data-dir=", "'--data-dir': '' is not a directory"),
        ("unpin typo --data-dir /", "'typo' is not a CID"),
        (f"unpin {CID}", "give --data-dir, where the blobs are kept"),
        (f"unpin {CID} --data-dir /no/such", "/no/such/blocks: there are no blobs"),
        ("blobs", "give --data-dir, where the blobs are kept"),
        ("blobs surplus", "unexpected extra argument"),
        ("blobs --data-dir /no/such", "/no/such/blocks: there are no blobs"),
        ("blobs --config /no/such", "/no/such: No such file or directory"),
        ("gc", "give --data-dir, where the blobs are kept"),
        ("gc --data-dir /dev/null", "'--data-dir': '/dev/null' is not a directory"),
        ("gc --data-dir /no/such", "/no/such/blocks: there are no blobs"),
    ],
)
def test_a_mistake_gets_one_line_and_status_2(arguments: str, says: str, here: Callable[..., Ended]) -> None:
    ended = here(*arguments.split(" "))
    assert (ended.status, ended.out) == (2, b"")
    assert ended.err.startswith("prime-dht: ")
    assert ended.err.count("\n") == 1
    assert says in ended.err


def test_looking_for_blobs_makes_no_directory(here: Callable[..., Ended], tmp_path: Path) -> None:
    for command in (("blobs",), ("gc",), ("unpin", CID)):
        assert here(*command, "--data-dir", str(tmp_path)).status == 2
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_is_none_is_left_as_it_is(here: Callable[..., Ended], tmp_path: Path) -> None:
    index = tmp_path / "blocks" / "index.sqlite3"
    index.parent.mkdir()
    index.write_bytes(b"not a database" * 100)
    ended = here("blobs", "--data-dir", str(tmp_path))
    assert (ended.status, ended.out, ended.err.count("\n")) == (2, b"", 1)
    assert "index.sqlite3" in ended.err or "blocks" in ended.err
    assert index.read_bytes() == b"not a database" * 100


def test_where_nothing_can_be_kept_for_a_moment_values_are_put_and_blobs_are_refused(
    here: Callable[..., Ended], three_nodes: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = (("put", "small enough", "value"), ("add", "/etc/passwd"), ("put", "key", "--file", "/etc/passwd"))
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))  # as if all such directories were read-only
        small, *blobs = [here(*command, "--peer", three_nodes[0]) for command in commands]
    assert small.status == 0
    for ended in blobs:
        assert (ended.status, ended.out, ended.err.count("\n")) == (2, b"", 1)
        assert "give --data-dir, or set TMPDIR" in ended.err
