"""Several peers, threads and processes that use the same files."""

from __future__ import annotations

import multiprocessing
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest
from libp2p.crypto.ed25519 import create_new_key_pair

from prime_dht import BlobError, BlockingDHT, DhtConfig, NodeConfig
from prime_dht.blocking import connect
from prime_dht.entries.capability import grant, root_of
from prime_dht.entries.limits import Limits
from prime_dht.filesystem import PrimeFileSystem
from prime_dht.ids import US_PER_S, peer_text

ROOT_KEY = create_new_key_pair(b"g" * 32)


def test_only_the_peer_that_wrote_it_changes_a_file(fs: PrimeFileSystem, others: PrimeFileSystem, top: str) -> None:
    fs.pipe_file(f"{top}/file", b"mine")
    assert others.cat_file(f"{top}/file") == b"mine"
    for change in (others.rm_file, others.rm, others.renew, lambda path: others.mv(path, f"{top}/moved")):
        with pytest.raises(PermissionError, match="who has written it"):
            change(f"{top}/file")
    with pytest.raises(PermissionError):
        others.rm(top, recursive=True)
    assert others.find(top) == [f"{top}/file"]


def test_something_newer_covers_it_until_it_is_removed(fs: PrimeFileSystem, others: PrimeFileSystem, top: str) -> None:
    fs.pipe_file(f"{top}/file", b"older")
    others.pipe_file(f"{top}/file", b"newer")
    assert fs.cat_file(f"{top}/file") == b"newer"
    assert fs.ls(top) == [others.info(f"{top}/file")]
    with pytest.raises(PermissionError):
        fs.rm_file(f"{top}/file")
    others.rm_file(f"{top}/file")
    assert fs.cat_file(f"{top}/file") == b"older"


def test_who_trusts_one_peer_sees_its_files_and_the_directories_they_lie_in(
    fs: PrimeFileSystem, others: PrimeFileSystem, dht: BlockingDHT, swarm: tuple[str, ...], top: str
) -> None:
    others.pipe_file(f"{top}/a/theirs", b"")
    fs.pipe_file(f"{top}/a/mine", b"")
    trusting = PrimeFileSystem(peers=swarm[:1], trusted=peer_text(dht.peer_id))
    assert trusting.find(top, withdirs=True) == [top, f"{top}/a", f"{top}/a/mine"]
    assert not trusting.exists(f"{top}/a/theirs")
    trusting.pipe_file(f"{top}/a/b", b"")
    assert trusting.find(top) == [f"{top}/a/b", f"{top}/a/mine"]


def test_under_own_only_the_peer_itself_writes(fs: PrimeFileSystem, others: PrimeFileSystem, dht: BlockingDHT) -> None:
    path = f"own/{peer_text(dht.peer_id)}/notes/today"
    fs.pipe_file(path, b"mine")
    assert others.cat_file(path) == b"mine"
    with pytest.raises(PermissionError):
        others.pipe_file(path, b"theirs")
    with pytest.raises(PermissionError):
        others.makedirs(f"own/{peer_text(dht.peer_id)}/theirs")


def test_under_group_only_members_write(fs: PrimeFileSystem, dht: BlockingDHT) -> None:
    root = root_of(ROOT_KEY.public_key).hex()
    ends_at_s = int(time.time()) + 3600
    capability = grant(ROOT_KEY.private_key, member=dht.peer_id, expires_at_us=ends_at_s * US_PER_S, network_id="prime")
    member = PrimeFileSystem(client=dht, capability=capability)
    member.pipe_file(f"group/{root}/runs/1", b"in", ttl=86_400)
    assert fs.cat_file(f"group/{root}/runs/1") == b"in"
    assert fs.info(f"group/{root}/runs/1")["expires_at"] == ends_at_s
    with pytest.raises(PermissionError, match="capability"):
        fs.pipe_file(f"group/{root}/runs/2", b"out")
    with pytest.raises(PermissionError, match="another group"):
        member.pipe_file(f"group/{'0' * 64}/runs/2", b"out")
    member.rm(f"group/{root}/runs", recursive=True)
    assert not fs.exists(f"group/{root}/runs")


def test_names_that_are_none_are_not_listed(fs: PrimeFileSystem, others: PrimeFileSystem, top: str) -> None:
    others.pipe_file(f"{top}/good", b"")
    for subkey in (b"", b"..", b"../../etc", b"\xff", b"a\0b"):
        others._tree.dht.put(f"dir:{top}", b"bad", subkey=subkey)
    assert fs.ls(top, detail=False) == [f"{top}/good"]


def test_directories_of_others_that_cannot_be_do_not_hide_the_rest(
    fs: PrimeFileSystem, others: PrimeFileSystem, top: str
) -> None:
    names = ["x" * 256] * 4
    fs.pipe_file(f"{top}/good", b"")
    for depth, name in enumerate(names):
        others._tree.dht.put(
            "/".join((f"dir:{top}", *names[:depth])), b"", subkey=name.encode(), content_type="inode/directory"
        )
    assert fs.find(top) == [f"{top}/good"]
    assert [files for _, _, files in fs.walk(top)] == [["good"], [], [], [], []]
    assert fs.ls("/".join((top, *names))) == []


def test_a_directory_that_does_not_end_is_an_error(fs: PrimeFileSystem, swarm: tuple[str, ...], top: str) -> None:
    fs.pipe({f"{top}/{number}": b"" for number in range(6)})
    few = NodeConfig(dht=DhtConfig(k_bucket_size=3, limits=Limits(max_slots_per_key=2)))
    with connect(swarm[:1], config=few) as dht, pytest.raises(OSError, match="more than a directory can hold"):
        PrimeFileSystem(client=dht).ls(top)


def test_roots_cannot_be_covered(fs: PrimeFileSystem, others: PrimeFileSystem) -> None:
    others._tree.dht.put("dir:", b"", subkey=b"own")
    others._tree.dht.put("dir:", b"", subkey=b"group", content_type="inode/directory")
    assert not {"own", "group"} & set(fs.ls("", detail=False))


@pytest.mark.parametrize("too_many", [1, -1, 1 << 20])
def test_a_size_that_is_not_the_blob_s_is_an_error(
    fs: PrimeFileSystem, others: PrimeFileSystem, top: str, too_many: int
) -> None:
    others.pipe_file(f"{top}/file", bytes(2 << 20))
    blob = others._tree.find(f"{top}/file").blob
    assert blob is not None
    lie = replace(blob, size=blob.size + too_many)
    others._tree.dht.put(f"dir:{top}", lie, subkey=b"lie", wait_s=0)
    with pytest.raises(OSError, match="bytes") as raised:
        fs.cat_file(f"{top}/lie")
    assert isinstance(raised.value.__cause__, BlobError)


def test_threads_share_one_identity(swarm: tuple[str, ...], top: str) -> None:
    def write(number: int) -> bytes:
        fs = fsspec.filesystem("prime", peers=swarm[:1])
        fs.pipe_file(f"{top}/a/{number}", str(number).encode())
        return bytes(fs._tree.dht.peer_id)

    with ThreadPoolExecutor(8) as pool:
        writers = list(pool.map(write, range(16)))
    assert len(set(writers)) == 1
    assert len(fsspec.filesystem("prime", peers=swarm[:1]).find(top)) == 16


def test_of_threads_that_write_one_file_at_once_each_succeeds_and_one_is_last(fs: PrimeFileSystem, top: str) -> None:
    contents = [bytes([number]) * 100 for number in range(16)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda content: fs.pipe_file(f"{top}/a/b/file", content), contents))
    assert fs.cat_file(f"{top}/a/b/file") in contents
    assert fs.find(top) == [f"{top}/a/b/file"]


def test_a_data_directory_keeps_the_identity(swarm: tuple[str, ...], tmp_path: Path, top: str) -> None:
    with fsspec.open(f"prime://{top}/file", "wb", peers=list(swarm), data_dir=str(tmp_path)) as file:
        file.write(b"1")
    fs = fsspec.filesystem("prime", data_dir=tmp_path)
    assert fs.cat_file(f"{top}/file") == b"1"
    first = fs._tree.dht.peer_id
    fs._tree.dht.close()
    with BlockingDHT(fs._tree.dht._config, None, 30.0) as dht:
        assert dht.peer_id == first
        PrimeFileSystem(client=dht).rm(f"{top}/file")


def test_peers_that_were_mistaken_can_be_corrected(swarm: tuple[str, ...], tmp_path: Path, top: str) -> None:
    mistaken = PrimeFileSystem(peers="/ip4/127.0.0.1/tcp/1", data_dir=tmp_path)
    with pytest.raises(OSError, match="peer id"):
        mistaken.exists(top)
    fs = PrimeFileSystem(peers=swarm[:1], data_dir=tmp_path)
    assert not fs.exists(top)
    assert not mistaken.exists(top)
    fs._tree.dht.close()


def test_a_pickled_file_system_is_the_same_here(fs: PrimeFileSystem, swarm: tuple[str, ...]) -> None:
    assert pickle.loads(pickle.dumps(fs))._tree.dht is fs._tree.dht
    joined = fsspec.filesystem("prime", peers=swarm[:1])
    assert pickle.loads(pickle.dumps(joined)) is joined


def test_an_open_file_can_be_pickled(fs: PrimeFileSystem, top: str) -> None:
    fs.pipe_file(f"{top}/file", b"0123")
    with fs.open(f"{top}/file") as file:
        file.seek(2)
        with pickle.loads(pickle.dumps(file)) as copy:
            assert copy.read() == b"23"


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes_read_and_write_with_it(method: str, swarm: tuple[str, ...], tmp_path: Path, top: str) -> None:
    fs = fsspec.filesystem("prime", peers=swarm[:1], data_dir=tmp_path)
    fs.pipe_file(f"{top}/file", b"from here")
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.apply(read_and_write, (fs, top)) == b"from here"
    assert fs.cat_file(f"{top}/elsewhere") == b"from there"
    assert fs.info(f"{top}/elsewhere")["publisher"] != fs.info(f"{top}/file")["publisher"]
    fs._tree.dht.close()


def read_and_write(fs: PrimeFileSystem, top: str) -> bytes:
    """In another process."""
    assert threading.current_thread() is threading.main_thread()
    fs.pipe_file(f"{top}/elsewhere", b"from there")
    content: bytes = fs.cat_file(f"{top}/file")
    return content
