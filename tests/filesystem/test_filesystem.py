"""Files and directories on a swarm: what fsspec's own tests do not ask."""

from __future__ import annotations

import errno
import hashlib
import math
import random
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from shutil import SameFileError
from typing import BinaryIO

import pytest
from fsspec.callbacks import Callback
from fsspec.spec import AbstractFileSystem

from prime_dht import BlockingDHT, DhtConfig, NodeConfig, PrimeDHTError
from prime_dht.blocking import connect
from prime_dht.filesystem import PrimeFileSystem
from prime_dht.ids import peer_text

BLOB = random.Random(8).randbytes((1 << 20) + 200_000)
"""More than an entry takes, and more than a block."""


def write_in_vain(file: BinaryIO) -> None:
    file.write(b"new")
    raise ValueError("what comes next is not bytes")


def test_what_info_says(fs: PrimeFileSystem, dht: BlockingDHT, top: str) -> None:
    before_s = time.time()
    fs.pipe_file(f"{top}/a.json", b"{}", ttl=3600)
    info = fs.info(f"prime://{top}/a.json")
    assert (info["name"], info["type"], info["size"]) == (f"{top}/a.json", "file", 2)
    assert info["content_type"] == "application/json"
    assert info["publisher"] == peer_text(dht.peer_id)
    assert before_s <= info["mtime"] <= time.time()
    assert info["expires_at"] == pytest.approx(info["mtime"] + 3600, abs=1)
    assert fs.modified(f"{top}/a.json").timestamp() == fs.created(f"{top}/a.json").timestamp() == info["mtime"]
    assert fs.ls(top) == [info]


@pytest.mark.parametrize("content", [b"", b"small", BLOB], ids=["empty", "inline", "blob"])
def test_bytes_come_back_in_any_range(fs: PrimeFileSystem, top: str, content: bytes) -> None:
    path = f"{top}/file"
    fs.pipe_file(path, content)
    assert fs.size(path) == len(content)
    assert fs.cat_file(path) == content
    for start, end in [(0, 1), (1, -1), (-3, None), (1_000_000, 1_100_000), (5, 3), (None, 10**9)]:
        assert fs.cat_file(path, start, end) == content[start:end]
    with fs.open(path, "rb", block_size=1 << 16) as file:
        assert file.seek(-2, 2) if content else True
        assert file.read() == content[-2:]
        file.seek(0)
        assert hashlib.sha256(b"".join(iter(lambda: file.read(100_000), b""))).digest() == (
            hashlib.sha256(content).digest()
        )


def test_many_ranges_at_once_and_what_is_missing_among_them(fs: PrimeFileSystem, top: str) -> None:
    fs.pipe({f"{top}/a": b"0123456789", f"{top}/b": BLOB})
    first, missing, second = fs.cat_ranges(
        [f"{top}/a", f"{top}/none", f"{top}/b"], [2, 0, 1_048_570], [4, 1, 1_048_580]
    )
    assert (first, second) == (b"23", BLOB[1_048_570:1_048_580])
    assert isinstance(missing, FileNotFoundError)
    with pytest.raises(FileNotFoundError):
        fs.cat_ranges([f"{top}/none"], 0, 1, on_error="raise")


def test_nobody_sees_a_file_before_it_is_closed(fs: PrimeFileSystem, top: str) -> None:
    path = f"{top}/file"
    with fs.open(path, "wb") as file:
        file.write(BLOB)
        file.flush()
        assert not fs.exists(path)
    assert fs.cat_file(path) == BLOB


def test_a_write_that_fails_leaves_what_was_there(fs: PrimeFileSystem, top: str) -> None:
    path = f"{top}/file"
    fs.pipe_file(path, b"old")
    with pytest.raises(ValueError, match="not bytes"), fs.open(path, "wb") as file:
        write_in_vain(file)
    assert fs.cat_file(path) == b"old"
    forgotten = fs.open(path, "wb")
    forgotten.write(b"never closed")
    del forgotten
    assert fs.cat_file(path) == b"old"


def test_who_reads_sees_the_version_that_was_opened(fs: PrimeFileSystem, top: str) -> None:
    path = f"{top}/file"
    fs.pipe_file(path, BLOB)
    with fs.open(path, "rb", block_size=1 << 16, cache_type="none") as file:
        begin = file.read(10)
        fs.pipe_file(path, b"other")
        assert begin + file.read(1 << 20) == BLOB[: (1 << 20) + 10]
    assert fs.cat_file(path) == b"other"


def test_appending_writes_all_of_it_anew(fs: PrimeFileSystem, top: str) -> None:
    path = f"{top}/log"
    for line in (b"one\n", b"two\n"):
        with fs.open(path, "ab") as file:
            file.write(line)
    assert fs.cat_file(path) == b"one\ntwo\n"


def test_a_transaction_is_seen_when_it_ends_or_not_at_all(fs: PrimeFileSystem, top: str, tmp_path: Path) -> None:
    (tmp_path / "local").write_bytes(BLOB)
    with fs.transaction:
        fs.pipe_file(f"{top}/a", b"a")
        fs.put_file(tmp_path / "local", f"{top}/b")
        assert not fs.exists(f"{top}/a")
    assert fs.cat([f"{top}/a", f"{top}/b"]) == {f"{top}/a": b"a", f"{top}/b": BLOB}
    with pytest.raises(ValueError, match="not bytes"), fs.transaction:
        write_in_vain(fs.open(f"{top}/c", "wb"))
    assert fs.find(top) == [f"{top}/a", f"{top}/b"]


def test_a_transaction_writes_what_was_not_closed_and_not_what_failed(fs: PrimeFileSystem, top: str) -> None:
    with fs.transaction:
        fs.open(f"{top}/open", "wb").write(b"written")
        with suppress(ValueError), fs.open(f"{top}/failed", "wb") as file:
            write_in_vain(file)
    assert fs.cat(fs.find(top)) == {f"{top}/open": b"written"}


def test_a_transaction_that_fails_has_ended(fs: PrimeFileSystem, top: str) -> None:
    def fail() -> None:
        with fs.transaction:
            fs.open(f"{top}/file/below", "wb")
            fs.open(f"{top}/after", "wb")

    fs.pipe_file(f"{top}/file", b"")
    with pytest.raises(NotADirectoryError):
        fail()
    fs.pipe_file(f"{top}/later", b"later")
    assert fs.find(top) == [f"{top}/file", f"{top}/later"]


def test_a_copy_of_a_blob_has_its_cid(fs: PrimeFileSystem, top: str) -> None:
    fs.pipe_file(f"{top}/a", BLOB)
    fs.cp_file(f"{top}/a", f"{top}/there/b")
    assert fs.info(f"{top}/there/b")["cid"] == fs.info(f"{top}/a")["cid"]
    assert fs.checksum(f"{top}/a") == fs.checksum(f"{top}/there/b")
    fs.mv(f"{top}/a", f"{top}/c")
    assert fs.find(top) == [f"{top}/c", f"{top}/there/b"]
    assert fs.cat_file(f"{top}/c") == BLOB


def test_moving_something_onto_itself_leaves_it(fs: PrimeFileSystem, top: str) -> None:
    fs.pipe_file(f"{top}/a", b"a")
    fs.mv(f"prime://{top}/a", f"{top}//a/")
    for source, target in [(f"{top}/a", f"{top}/"), (f"{top}/a", top), ([f"{top}/a"], f"{top}/"), (f"{top}/*", top)]:
        with pytest.raises(SameFileError):
            fs.mv(source, target)
    with pytest.raises(SameFileError):
        fs.cp_file(f"{top}/a", f"{top}/a")
    assert fs.cat_file(f"{top}/a") == b"a"


def test_moving_something_into_itself_leaves_it(fs: PrimeFileSystem, top: str) -> None:
    fs.pipe({f"{top}/a": b"a", f"{top}/b/c": b"c"})
    for source, target in [(top, f"{top}/b"), (f"{top}/*", f"{top}/b"), (f"{top}/a", f"{top}/a/d")]:
        with pytest.raises(OSError, match="Invalid"):
            fs.mv(source, target, recursive=True)
    with pytest.raises(OSError, match="Invalid"):
        fs.mv([f"{top}/a", f"{top}/b/c"], [f"{top}/b/c", f"{top}/d"])
    assert fs.cat(fs.find(top)) == {f"{top}/a": b"a", f"{top}/b/c": b"c"}


def test_what_is_too_deep_to_be_moved_stays(fs: PrimeFileSystem, top: str) -> None:
    fs.pipe({f"{top}/from/{name}": b"" for name in ("a", "b", "c/d")})
    fs.mv(f"{top}/from", f"{top}/to", recursive=True, maxdepth=1)
    assert fs.find(top) == [f"{top}/from/c/d", f"{top}/to/a", f"{top}/to/b"]


def test_what_is_too_deep_to_be_removed_stays(fs: PrimeFileSystem, top: str) -> None:
    fs.pipe({f"{top}/{name}": b"" for name in ("a", "b/c", "b/d/e")})
    fs.makedirs(f"{top}/empty")
    fs.rm(top, recursive=True, maxdepth=1)
    assert fs.find(top, withdirs=True) == [top, *(f"{top}/b{name}" for name in ("", "/c", "/d", "/d/e"))]
    fs.rm(top, recursive=True, maxdepth=3)
    assert not fs.exists(top)


def test_directories_are_made_with_what_they_hold_and_removed_with_it(fs: PrimeFileSystem, top: str) -> None:
    fs.pipe_file(f"{top}/a/b/c", b"c")
    fs.makedirs(f"{top}/empty")
    assert fs.find(top, withdirs=True) == [top, f"{top}/a", f"{top}/a/b", f"{top}/a/b/c", f"{top}/empty"]
    assert fs.find(top, maxdepth=1, withdirs=True) == [top, f"{top}/a", f"{top}/empty"]
    assert next(fs.walk(top)) == (top, ["a", "empty"], [])
    assert fs.glob(f"{top}/**/c") == [f"{top}/a/b/c"]
    assert fs.du(top) == 1
    with pytest.raises(OSError, match="not empty"):
        fs.rmdir(f"{top}/a")
    with pytest.raises(IsADirectoryError):
        fs.rm(f"{top}/a")
    fs.rmdir(f"{top}/empty")
    fs.rm(f"{top}/a", recursive=True)
    assert fs.ls(top) == []
    fs.pipe_file(f"{top}/a/b/c", b"again")
    assert fs.find(top) == [f"{top}/a/b/c"]


def test_nothing_of_its_own_hides_what_fsspec_gives(fs: PrimeFileSystem) -> None:
    methods = {name for name in dir(AbstractFileSystem) if callable(getattr(AbstractFileSystem, name))}
    assert {name for name in methods if not callable(getattr(fs, name))} == set()


def test_files_and_directories_are_not_mistaken_for_each_other(fs: PrimeFileSystem, top: str) -> None:
    fs.pipe_file(f"{top}/file", b"")
    with pytest.raises(NotADirectoryError):
        fs.pipe_file(f"{top}/file/below", b"")
    with pytest.raises(NotADirectoryError):
        fs.rmdir(f"{top}/file")
    with pytest.raises(FileExistsError):
        fs.makedirs(f"{top}/file", exist_ok=True)
    for use in (fs.cat_file, fs.rm_file, lambda path: fs.pipe_file(path, b""), lambda path: fs.open(path, "wb")):
        with pytest.raises(IsADirectoryError):
            use(top)
    with pytest.raises(FileExistsError):
        fs.mkdir(top)
    with pytest.raises(FileNotFoundError):
        fs.mkdir(f"{top}/none/below", create_parents=False)
    for use in (fs.info, fs.ls, fs.rm, fs.cat_file, fs.open, fs.renew, fs.rmdir):
        with pytest.raises(FileNotFoundError):
            use(f"{top}/none")


def test_roots_are_always_there(fs: PrimeFileSystem) -> None:
    for path in ("", "prime://", "own", "group"):
        assert fs.isdir(path)
    assert fs.ls("own") == []
    with pytest.raises(OSError, match="busy"):
        fs.rmdir("own")


def test_a_bad_name_is_an_error_that_says_so(fs: PrimeFileSystem, top: str) -> None:
    with pytest.raises(OSError, match="256 bytes") as raised:
        fs.pipe_file(f"{top}/{'x' * 257}", b"")
    assert raised.value.errno == errno.ENAMETOOLONG
    with pytest.raises(OSError, match="name of a file"):
        fs.open(f"{top}/../other")


def test_names_of_any_kind_come_back(fs: PrimeFileSystem, top: str, tmp_path: Path) -> None:
    files = {f"{top}/{name}": name.encode() for name in ("ümläut", "a b%20", "模型", ".hidden", "x" * 256, "dir:")}
    fs.pipe(files)
    assert fs.ls(top, detail=False) == sorted(files)
    assert fs.cat(fs.find(top)) == files


def test_ttls_and_renewal(fs: PrimeFileSystem, top: str) -> None:
    path = f"{top}/a/file"
    fs.pipe_file(path, BLOB, ttl=1000)
    first = fs.info(path)
    assert first["expires_at"] == pytest.approx(time.time() + 1000, abs=30)
    assert fs.info(top)["expires_at"] == pytest.approx(time.time() + 2000, abs=30)
    fs.pipe_file(f"{top}/a/longer", b"", ttl=3000)
    assert (
        min(fs.info(top)["expires_at"], fs.info(f"{top}/a")["expires_at"]) >= fs.info(f"{top}/a/longer")["expires_at"]
    )
    assert fs.renew(top, ttl=5000) == 4
    renewed = fs.info(path)
    assert renewed["expires_at"] == pytest.approx(time.time() + 5000, abs=30)
    assert renewed["cid"] == first["cid"]
    assert fs.info(top)["expires_at"] >= renewed["expires_at"]
    fs.touch(path, truncate=False, ttl=7000)
    assert fs.info(path)["expires_at"] == pytest.approx(time.time() + 7000, abs=30)
    assert fs.info(f"{top}/a")["expires_at"] >= fs.info(path)["expires_at"]
    fs.touch(path)
    assert fs.size(path) == 0


def test_a_directory_is_not_written_again_with_every_file(fs: PrimeFileSystem, top: str) -> None:
    fs.pipe_file(f"{top}/a/1", b"")
    before = [fs.info(top)["mtime"], fs.info(f"{top}/a")["mtime"]]
    fs.pipe_file(f"{top}/a/2", b"")
    assert [fs.info(top)["mtime"], fs.info(f"{top}/a")["mtime"]] == before


def test_ttl_beyond_the_network_s_is_an_error_with_its_cause(fs: PrimeFileSystem, top: str) -> None:
    with pytest.raises(OSError, match="ttl") as raised:
        fs.pipe_file(f"{top}/file", b"", ttl=1e9)
    assert isinstance(raised.value.__cause__, PrimeDHTError)


@pytest.mark.parametrize("ttl", [math.nan, math.inf, -math.inf])
def test_a_ttl_that_is_no_time_is_an_error_that_says_so(fs: PrimeFileSystem, top: str, ttl: float) -> None:
    for file_system, its_own in ((fs, ttl), (PrimeFileSystem(client=fs._tree.dht, ttl=ttl), None)):
        with pytest.raises(OSError, match="ttl") as raised:
            file_system.pipe_file(f"{top}/file", b"", ttl=its_own)
        assert raised.value.errno == errno.EINVAL
    assert not fs.exists(top)


def test_what_replicas_have_not_got_when_the_wait_is_over_is_an_error_and_replaces_nothing(
    swarm: tuple[str, ...], top: str
) -> None:
    impatient = NodeConfig(dht=DhtConfig(blob_wait_s=0.0))
    with connect(swarm[:1], config=impatient) as dht:
        fs = PrimeFileSystem(client=dht)
        fs.pipe_file(f"{top}/file", b"old")
        with pytest.raises(OSError, match="is held by 0 of 3"):
            fs.pipe_file(f"{top}/file", BLOB)
        assert fs.cat_file(f"{top}/file") == b"old"


def test_nothing_but_its_entry_is_left_when_a_file_is_written(fs: PrimeFileSystem, dht: BlockingDHT, top: str) -> None:
    fs.pipe_file(f"{top}/file", BLOB)
    assert [found.subkey for found in dht.get_all(f"dir:{top}")] == [b"file"]


def test_what_is_gone_since_it_was_listed_keeps_nothing_from_being_renewed(
    fs: PrimeFileSystem, top: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs.pipe_file(f"{top}/file", b"", ttl=600)
    fs.pipe_file(f"{top}/gone", b"", ttl=600)
    find, before = fs.find, fs.info(f"{top}/file")["expires_at"]

    def find_and_lose(path: str, *, withdirs: bool) -> object:
        listed = find(path, withdirs=withdirs)
        fs.rm_file(f"{top}/gone")
        return listed

    monkeypatch.setattr(fs, "find", find_and_lose)
    assert fs.renew(top, ttl=3600) == 2
    assert fs.info(f"{top}/file")["expires_at"] > before
    assert not fs.exists(f"{top}/gone")


def test_what_is_written_while_a_directory_is_renewed_stays(fs: PrimeFileSystem, top: str) -> None:
    paths = [f"{top}/{number}" for number in range(40)]
    fs.pipe(dict.fromkeys(paths, b"0"))
    with ThreadPoolExecutor() as pool:
        for turn in range(4):
            renewing = pool.submit(fs.renew, top)
            fs.pipe(dict.fromkeys(paths[::8], str(turn).encode()))
            fs.rm_file(paths[-1 - turn])
            assert renewing.result() > len(paths) / 2
            assert set(fs.cat(paths[::8]).values()) == {str(turn).encode()}
            assert not fs.exists(paths[-1 - turn])


def test_what_is_being_written_has_no_name_that_could_be_left(
    fs: PrimeFileSystem, top: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with fs.open(f"{top}/file", "wb", block_size=1 << 16) as file:
        file.write(BLOB)
        assert list(tmp_path.iterdir()) == []
    assert fs.cat_file(f"{top}/file") == BLOB


def test_a_local_copy_goes_round_what_is_beside_it(fs: PrimeFileSystem, top: str, tmp_path: Path) -> None:
    (tmp_path / ".file.partial").write_bytes(b"somebody else's")
    fs.pipe_file(f"{top}/file", b"small")
    for name in ("file", "x" * 255):
        fs.get_file(f"{top}/file", tmp_path / name)
        assert (tmp_path / name).read_bytes() == b"small"
    assert (tmp_path / ".file.partial").read_bytes() == b"somebody else's"


def test_local_files_go_there_and_back_and_tell_how_far_they_are(fs: PrimeFileSystem, top: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(BLOB)
    sent, received = Callback(), Callback()
    fs.put_file(tmp_path / "a", f"{top}/a", callback=sent)
    fs.get_file(f"{top}/a", tmp_path / "below" / "b", callback=received)
    assert (tmp_path / "below" / "b").read_bytes() == BLOB
    assert (sent.size, sent.value) == (received.size, received.value) == (len(BLOB), len(BLOB))
    with (tmp_path / "c").open("wb") as file:
        fs.get_file(f"{top}/a", file)
    assert (tmp_path / "c").read_bytes() == BLOB
    with pytest.raises(FileExistsError):
        fs.put_file(tmp_path / "a", f"{top}/a", mode="create")


def test_what_the_swarm_cannot_tell_is_not_taken_for_absence(swarm: tuple[str, ...], top: str) -> None:
    peer_of_nobody = "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWK99VoVxNE7XzyBwXEzW7xhK7Gpv85r9F3V3fyKSUKPH5"
    unreachable = PrimeFileSystem(peers=peer_of_nobody)
    for ask in (
        unreachable.exists,
        unreachable.isdir,
        unreachable.isfile,
        unreachable.find,
        lambda path: list(unreachable.walk(path)),
    ):
        with pytest.raises(OSError, match=r".+") as raised:
            ask(f"{top}/file")
        assert isinstance(raised.value.__cause__, PrimeDHTError)
