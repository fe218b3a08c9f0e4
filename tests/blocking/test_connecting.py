"""What :func:`prime_dht.connect` makes of its arguments, and how a client ends."""

from __future__ import annotations

import gc
import pickle
import socket
import sys
import threading
from pathlib import Path

import pytest
import trio

from prime_dht import (
    BlockingDHT,
    ConfigError,
    DhtConfig,
    LocalProtocolError,
    Mode,
    NodeConfig,
    PrimeDHT,
    QueryError,
    StorageError,
    ValidationError,
    connect,
)
from prime_dht.blocking import node_thread
from prime_dht.storage.blocks import BlockStore
from prime_dht.testing.processes import LOOPBACK, TIMEOUT_S, run

CID = "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy"
HERE = NodeConfig(listen=(LOOPBACK,))


def nodes_running() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "prime_dht"}


def test_a_client_listens_nowhere_and_one_address_needs_no_list(swarm: tuple[str, ...]) -> None:
    with connect(swarm[0], config=HERE) as dht:
        assert dht.health().mode == "client"
        assert dht.addresses() == []


def test_who_serves_can_be_the_first_of_a_swarm_and_others_join_and_find_what_it_provides() -> None:
    with connect(serve=True, network_id="ours", config=HERE) as server:
        assert server.health().mode == "server"
        with connect(server.addresses(), network_id="ours") as client:
            assert client.put("k", b"value").stored_by == (server.peer_id,)
            server.provide(CID)
            assert [provider.peer for provider in client.find_providers(CID)] == [server.peer_id]
        with pytest.raises(QueryError):
            connect(server.addresses(), network_id="another")


@pytest.mark.parametrize("wrong", [None, 5, [None], b"/ip4/127.0.0.1/tcp/1"])
def test_peers_that_are_no_text_are_refused_in_words(wrong: object) -> None:
    with pytest.raises(ConfigError, match="peers is a multiaddr, or several, as text, not "):
        connect(wrong)  # type: ignore[arg-type]


def test_a_timeout_is_a_number(swarm: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError, match="timeout is a number, not str"):
        connect(swarm, timeout="30s")  # type: ignore[arg-type]
    with connect(swarm[:1]) as dht, pytest.raises(ValidationError, match="timeout is a number, not str"):
        dht.get("k", timeout="30s")  # type: ignore[call-overload]


def test_with_a_data_directory_a_client_is_the_same_again_and_needs_no_peers(
    swarm: tuple[str, ...], tmp_path: Path
) -> None:
    with connect(swarm, data_dir=tmp_path) as dht:
        peer_id = dht.peer_id
        with pytest.raises(StorageError, match="another client of this process has it open"):
            connect(swarm, data_dir=tmp_path)
    with connect(data_dir=str(tmp_path)) as dht:
        assert dht.peer_id == peer_id


def test_somebody_found_on_the_local_network_will_do() -> None:
    config = NodeConfig(dht=DhtConfig(network_id="blocking-mdns"))
    with connect(serve=True, mdns=True, config=config) as server, connect(mdns=True, config=config) as client:
        assert server.peer_id in {status.peer for status in client.peers()}


def test_a_client_that_can_ask_nobody_is_told_so() -> None:
    with pytest.raises(QueryError, match="there is nobody to ask: give peers"):
        connect()


def test_peers_that_do_not_answer_are_a_query_error_in_time(swarm: tuple[str, ...]) -> None:
    peer_id = swarm[0].rpartition("/")[2]
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"/ip4/127.0.0.1/tcp/{silent.getsockname()[1]}/p2p/{peer_id}"
        with pytest.raises(QueryError, match=r"not joined within 0\.2 s"):
            connect(address, timeout=0.2)
    with pytest.raises(QueryError, match="no bootstrap peer answers"):
        connect(address)


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        ({"peers": "localhost"}, "localhost"),
        ({"timeout": 0}, "timeout must be a positive number"),
        ({"network_id": "two words"}, "network_id"),
        ({"serve": True, "config": NodeConfig(listen=())}, "has to listen"),
        ({"serve": True, "config": NodeConfig(dht=DhtConfig(mode=Mode.CLIENT))}, "not to be a client"),
        ({"config": DhtConfig()}, "config is a NodeConfig, not DhtConfig; a DhtConfig is its dht"),
        ({"config": {}}, "config is a NodeConfig, not dict"),
        ({"data_dir": ""}, "data_dir is a path, and not empty"),
        ({"data_dir": 5}, "data_dir is a path, as text or a pathlib.Path, not int"),
    ],
)
def test_a_mistake_in_the_arguments_is_a_config_error(mistake: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        connect(**mistake)  # type: ignore[arg-type]


def test_a_data_directory_in_a_directory_that_is_gone_is_a_config_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(ConfigError, match="the data directory here cannot be used"):
        connect(data_dir="here")


def test_nothing_is_left_of_a_client_that_is_closed_or_failed(swarm: tuple[str, ...]) -> None:
    before = nodes_running()
    with pytest.raises(QueryError):
        connect()
    dht = connect(swarm[0])
    for _ in range(2):
        dht.close()
    assert nodes_running() == before
    for use in (dht.peers, lambda: dht.put("k", b"", wait=False), dht.subscribe):
        with pytest.raises(LocalProtocolError, match="this client is closed"):
            use()


def test_what_cannot_be_written_down_at_the_end_is_said_in_a_line(
    swarm: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    close = BlockStore.aclose

    async def close_on_a_full_disk(blocks: BlockStore) -> None:
        await close(blocks)
        raise StorageError("the disk is full")

    monkeypatch.setattr(BlockStore, "aclose", close_on_a_full_disk)
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)  # which shows what ends a thread
    with connect(swarm[0], data_dir=tmp_path) as dht:
        assert dht.put("connecting:full", b"value").acknowledged
    assert "not all could be written down at the end: the disk is full" in caplog.messages
    assert "Traceback" not in capsys.readouterr().err


def test_a_client_that_nobody_has_any_more_closes_when_its_last_call_has_ended(swarm: tuple[str, ...]) -> None:
    before = nodes_running()
    future = connect(swarm[0]).put("connecting:last", b"value", wait=False)
    (node,) = nodes_running() - before
    assert future.result().acknowledged
    del future
    gc.collect()
    node.join(TIMEOUT_S)
    assert not node.is_alive()


def test_a_data_directory_can_be_used_again_as_soon_as_nobody_has_its_client(
    swarm: tuple[str, ...], tmp_path: Path
) -> None:
    def one() -> bytes:
        return connect(swarm[0], data_dir=tmp_path).peer_id

    assert len({one() for _ in range(5)}) == 1


def test_ctrl_c_as_the_node_s_thread_begins_leaves_none(
    swarm: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, start = nodes_running(), threading.Thread.start

    def start_and_be_interrupted(thread: threading.Thread) -> None:
        start(thread)
        if thread.name == "prime_dht":
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start_and_be_interrupted)
        with pytest.raises(KeyboardInterrupt):
            connect(swarm[0], data_dir=tmp_path)
    for thread in nodes_running() - before:
        thread.join(TIMEOUT_S)
    assert nodes_running() <= before  # of which one may have closed by now


def test_how_long_another_client_takes_to_close_counts_as_joining(swarm: tuple[str, ...], tmp_path: Path) -> None:
    closing, may_close = threading.Event(), threading.Event()

    async def linger(_: PrimeDHT) -> None:
        try:
            await trio.sleep_forever()
        finally:
            closing.set()
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(may_close.wait)

    before = connect(swarm[0], data_dir=tmp_path)
    before.call(linger, wait=False)
    thread = threading.Thread(target=before.close)
    thread.start()
    try:
        assert closing.wait(TIMEOUT_S)
        with pytest.raises(QueryError, match=r"not joined within 0\.2 s"):
            connect(swarm[0], data_dir=tmp_path, timeout=0.2)
    finally:
        may_close.set()
        thread.join()


def test_a_client_that_failed_does_not_keep_its_data_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    may_end = threading.Event()
    let_go_on = node_thread._open

    def let_go_on_and_stay(gates: set[threading.Lock]) -> None:
        let_go_on(gates)
        may_end.wait()

    monkeypatch.setattr(node_thread, "_open", let_go_on_and_stay)
    try:
        for _ in range(2):
            with pytest.raises(QueryError):
                connect(data_dir=tmp_path, timeout=0.5)
    finally:
        may_end.set()


def test_copies_in_one_process_are_the_same_client(swarm: tuple[str, ...]) -> None:
    with connect(swarm[0]) as dht:
        assert pickle.loads(pickle.dumps(dht)) is dht
    again: BlockingDHT = pickle.loads(pickle.dumps(dht))
    with again:
        assert again.health().mode == "client"


def test_neither_libp2p_nor_trio_is_imported_before_somebody_connects() -> None:
    program = "import sys, prime_dht; print(sys.modules.keys() & {'libp2p', 'trio', 'numpy', 'sqlite3'})"
    assert run(sys.executable, "-c", program).out == b"set()\n"
