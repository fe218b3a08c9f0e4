"""``prime-dht`` and blobs: what one process adds, others read, keep and let go of."""

from __future__ import annotations

import json
import os
import signal
import stat
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from prime_dht.blobs.build import BlobBuilder
from prime_dht.blobs.chunking import FixedChunker
from prime_dht.testing.processes import PRIME_DHT, Ended, prime_dht, run, running_node

MIB = 1 << 20
UNKNOWN = "bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """A node that runs: ``--peer`` and its address."""
    with running_node("--data-dir", str(tmp_path_factory.mktemp("node") / "data")) as (_, address):
        yield "--peer", address


def content(size_bytes: int) -> bytes:
    """Always the same, and none that repeats itself."""
    return Random(size_bytes).randbytes(size_bytes)


def cid_of(data: bytes) -> str:
    builder = BlobBuilder(FixedChunker())
    builder.feed(data)
    builder.finish()
    return str(builder.root)


def done(ended: Ended) -> str:
    """What a command has printed that did what it was to do."""
    assert ended.status == 0, ended.err
    return ended.out.decode().rstrip("\n")


@pytest.fixture
def big(tmp_path: Path) -> Path:
    """A file of several blocks."""
    path = tmp_path / "big.bin"
    path.write_bytes(content(3 * MIB + 1))
    return path


@pytest.mark.parametrize("size_bytes", [0, 10, MIB, 3 * MIB + 1])
def test_what_is_added_in_one_process_is_read_in_another_by_the_cid_that_was_printed(
    size_bytes: int, node: tuple[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_bytes(content(size_bytes))
    cid = done(prime_dht("add", str(path), *node))
    assert cid == cid_of(content(size_bytes))
    read = prime_dht("cat", cid, *node)
    assert (read.status, read.err) == (0, ""), "standard error is no terminal, so nothing is shown there"
    assert read.out == content(size_bytes)


def test_standard_input_is_added_too(node: tuple[str, str]) -> None:
    data = content(2 * MIB + 5)
    cid = done(prime_dht("add", "-", "--name", "piped", *node, stdin=data))
    assert cid == cid_of(data)
    (entry,) = done(prime_dht("get", f"blob/{cid}", "--json", *node)).splitlines()
    assert json.loads(entry)["metadata"] == {"name": "piped"}


def test_a_file_may_be_called_like_standard_input(node: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "-").write_bytes(b"in the file")
    cid = done(prime_dht("add", "./-", *node, stdin=b"piped", cwd=tmp_path))
    assert cid == cid_of(b"in the file")


def test_a_file_whose_name_is_no_text_is_called_nearly_so(node: tuple[str, str], tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.bin")
    path.write_bytes(b"its name is in Latin-1")
    cid = done(prime_dht("add", str(path), *node))
    done(prime_dht("put", "latin", "--file", str(path), *node))
    for key in (f"blob/{cid}", "latin"):
        entry = json.loads(done(prime_dht("get", key, "--json", *node)))
        assert entry["metadata"] == {"name": "caf\N{REPLACEMENT CHARACTER}.bin"}


def test_an_addition_is_told_to_programs(node: tuple[str, str], big: Path) -> None:
    receipt = json.loads(done(prime_dht("add", str(big), "--json", *node)))
    assert receipt["cid"] == receipt["blob"]["cid"] == cid_of(big.read_bytes())
    assert receipt["blob"]["size"] == 3 * MIB + 1
    assert receipt["acknowledged"] is True
    assert receipt["held_by"] == receipt["stored_by"] == [node[1].rpartition("/")[2]]


def test_the_command_ends_when_enough_replicas_hold_the_blob(three_nodes: tuple[str, ...], big: Path) -> None:
    receipt = json.loads(done(prime_dht("add", str(big), "--json", "--peer", three_nodes[0])))
    assert (receipt["needed"], receipt["wanted"]) == (2, 3)
    assert len(receipt["held_by"]) >= 2
    assert receipt["acknowledged"] is True


def test_a_value_of_any_size_is_put_and_got_by_its_key(node: tuple[str, str], big: Path, tmp_path: Path) -> None:
    assert done(prime_dht("put", "model", "--file", str(big), *node)).startswith("stored until ")
    out = tmp_path / "again.bin"
    assert prime_dht("get", "model", "--out", str(out), *node) == Ended(0, b"", "")
    assert out.read_bytes() == big.read_bytes()
    assert prime_dht("get", "model", *node).out == big.read_bytes()
    found = json.loads(done(prime_dht("get", "model", "--json", *node)))
    assert found["blob"] == {"cid": cid_of(big.read_bytes()), "size": 3 * MIB + 1, "chunker": "size-1048576"}
    assert "value" not in found, "nobody wants that in a line of JSON"


def test_a_value_of_any_size_comes_from_standard_input(node: tuple[str, str]) -> None:
    data = content(MIB + 7)
    done(prime_dht("put", "piped", "-", *node, stdin=data))
    assert prime_dht("get", "piped", *node).out == data


@pytest.mark.parametrize("size", [11, MIB + 7])
def test_a_dash_in_place_of_a_file_is_a_standard_stream(node: tuple[str, str], tmp_path: Path, size: int) -> None:
    data = content(size)
    done(prime_dht("put", "dash", "--file", "-", *node, stdin=data, cwd=tmp_path))
    assert prime_dht("get", "dash", "--out", "-", *node, cwd=tmp_path) == Ended(0, data, "")
    cid = done(prime_dht("add", "-", *node, stdin=data, cwd=tmp_path))
    assert prime_dht("cat", cid, "--out", "-", *node, cwd=tmp_path) == Ended(0, data, "")
    assert list(tmp_path.iterdir()) == []
    assert prime_dht("get", "dash", "--out", "./-", *node, cwd=tmp_path) == Ended(0, b"", "")
    assert (tmp_path / "-").read_bytes() == data


def test_a_small_value_goes_to_a_file_as_ever(node: tuple[str, str], tmp_path: Path) -> None:
    done(prime_dht("put", "small", "a few bytes", *node))
    link, out = tmp_path / "link", tmp_path / "out"
    out.write_text("older")
    link.symlink_to(out)
    found = json.loads(done(prime_dht("get", "small", "--out", str(link), "--json", *node)))
    assert (found["size"], found["file"]) == (11, str(link))
    assert link.is_symlink()
    assert out.read_text() == "a few bytes"
    assert sorted(tmp_path.iterdir()) == [link, out]


@pytest.mark.parametrize("command", ["get blob/{cid}", "cat {cid}"])
def test_a_pipe_or_a_device_is_written_to_and_never_replaced(
    command: str, node: tuple[str, str], big: Path, tmp_path: Path
) -> None:
    cid = done(prime_dht("add", str(big), *node))
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    words = " ".join((*PRIME_DHT, command.format(cid=cid), "--out", str(pipe), *node))
    assert run("sh", "-c", f"{words} & cat {pipe}").out == big.read_bytes()
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_nothing_is_said_when_the_reader_of_a_pipe_has_enough(node: tuple[str, str], big: Path) -> None:
    cid = done(prime_dht("add", str(big), *node))
    words = " ".join((*PRIME_DHT, "cat", cid, *node))
    ended = run("bash", "-c", f"{words} | head -c 10; exit ${{PIPESTATUS[0]}}")
    assert (ended.status, ended.out, ended.err) == (141, big.read_bytes()[:10], "")


def test_a_blob_that_nobody_has_is_not_found(node: tuple[str, str], tmp_path: Path) -> None:
    for command in (("cat",), ("pin", "--data-dir", str(tmp_path / "me"))):
        ended = prime_dht(*command, UNKNOWN, *node)
        assert (ended.status, ended.out) == (1, b"")
        assert ended.err.startswith(f"prime-dht: not found: blob {UNKNOWN}: ")
        assert ended.err.count("\n") == 1


def test_a_blob_that_is_larger_than_was_to_be_taken_is_not(node: tuple[str, str], big: Path, tmp_path: Path) -> None:
    cid, out, mine = done(prime_dht("add", str(big), *node)), tmp_path / "out", tmp_path / "me"
    done(prime_dht("put", "big", "--file", str(big), *node))
    for command in (
        ("cat", cid),
        ("cat", cid, "--out", str(out)),
        ("pin", cid, "--data-dir", str(mine)),
        ("get", "big"),
    ):
        ended = prime_dht(*command, "--max-size", "3MiB", *node)
        assert (ended.status, ended.out) == (2, b"")
        assert ended.err.endswith(" 3,145,729 bytes; at most 3,145,728 were to be taken\n")
    assert not out.exists()
    assert listed(mine) == []
    done(prime_dht("cat", cid, "--out", str(out), "--max-size", str(3 * MIB + 1), *node))
    assert out.read_bytes() == big.read_bytes()


# Keeping


def listed(data_dir: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in done(prime_dht("blobs", "--data-dir", str(data_dir), "--json")).splitlines()]


def test_what_is_pinned_is_kept_until_it_is_unpinned(node: tuple[str, str], big: Path, tmp_path: Path) -> None:
    cid, mine = done(prime_dht("add", str(big), *node)), tmp_path / "me"
    assert done(prime_dht("pin", cid, "--data-dir", str(mine), *node)) == f"pinned {cid}"
    (blob,) = listed(mine)
    assert (blob["cid"], blob["size"], blob["complete"], blob["pinned"]) == (cid, 3 * MIB + 1, True, True)
    assert f"{cid}  3.1 MB   all  -     pin" in done(prime_dht("blobs", "--data-dir", str(mine)))

    assert done(prime_dht("unpin", cid, "--data-dir", str(mine), "--json")) == f'{{"cid": "{cid}", "pinned": false}}'
    assert listed(mine) == []
    again = prime_dht("unpin", cid, "--data-dir", str(mine))
    assert (again.status, again.err) == (1, f"prime-dht: not found: {cid} is not pinned\n")
    assert done(prime_dht("gc", "--data-dir", str(mine), "--json")) == '{"blocks": 0, "bytes": 0}'


def test_what_is_pinned_lies_where_the_configuration_wants_blocks(
    node: tuple[str, str], big: Path, tmp_path: Path
) -> None:
    cid, config = done(prime_dht("add", str(big), *node)), tmp_path / "node.toml"
    config.write_text(f'blocks_dir = "{tmp_path / "elsewhere"}"\n')
    mine = ("--data-dir", str(tmp_path / "me"), "--config", str(config))
    assert done(prime_dht("pin", cid, *mine, *node)) == f"pinned {cid}"
    assert cid in done(prime_dht("blobs", *mine))
    assert (tmp_path / "elsewhere").is_dir()


def test_what_is_added_and_pinned_stays_with_who_added_it(node: tuple[str, str], big: Path, tmp_path: Path) -> None:
    mine = tmp_path / "me"
    cid = done(prime_dht("add", str(big), "--pin", "--data-dir", str(mine), *node))
    (blob,) = listed(mine)
    assert (blob["cid"], blob["complete"], blob["pinned"]) == (cid, True, True)


def test_what_is_added_and_not_pinned_leaves_no_blocks_with_who_added_it(
    node: tuple[str, str], big: Path, tmp_path: Path
) -> None:
    for command in (("add", str(big)), ("put", "unpinned", "--file", str(big))):
        done(prime_dht(*command, "--data-dir", str(tmp_path / "me"), *node))
        assert done(prime_dht("gc", "--data-dir", str(tmp_path / "me"))) == "0 blocks removed, 0 B"


def test_a_node_has_what_it_keeps_listed_by_name_and_key_also_while_it_runs(tmp_path: Path, big: Path) -> None:
    data_dir = tmp_path / "data"
    with running_node("--data-dir", str(data_dir)) as (node, address):
        cid = done(prime_dht("put", "model", "--file", str(big), "--json", "--peer", address))
        while_it_runs = listed(data_dir)
        changing = prime_dht("gc", "--data-dir", str(data_dir))
        assert (changing.status, changing.out) == (2, b"")
        assert "another process has it open" in changing.err
        assert prime_dht("cat", json.loads(cid)["blob"]["cid"], "--peer", address).out == big.read_bytes()
        assert node.stop(signal.SIGTERM).status == 0
    assert listed(data_dir) == while_it_runs
    (blob,) = while_it_runs
    assert blob["cid"] == json.loads(cid)["blob"]["cid"]
    assert (blob["name"], blob["complete"], blob["pinned"]) == ("big.bin", True, False)
    assert done(prime_dht("blobs", "--data-dir", str(data_dir))).endswith("  all  big.bin  /prime/model")
    assert done(prime_dht("gc", "--data-dir", str(data_dir))) == "0 blocks removed, 0 B"
