"""The benchmarks run, write what they measured, and show how many requests operations take. No time is asserted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What is measured with real nodes, of the suites that do not take long."""
    return run_suites(tmp_path_factory, "Ed25519 verify", "join", "operations", "streams")


@pytest.fixture(scope="module")
def partition_results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What is measured of the partition and its sketches."""
    return run_suites(tmp_path_factory, "minimal snapshot, full arc", "partition")


@pytest.fixture(scope="module")
def sync_results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What is measured of rounds."""
    return run_suites(tmp_path_factory, "A sync round", "sync")


def run_suites(tmp_path_factory: pytest.TempPathFactory, shown: str, *suites: str) -> dict[str, Any]:
    """What ``python -m tests.bench`` writes of some suites, once it has shown it."""
    path = tmp_path_factory.mktemp("bench") / "results" / "bench.json"
    only = [word for suite in suites for word in ("--only", suite)]
    command = [sys.executable, "-m", "tests.bench", "--quick", "--json", str(path), *only]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert shown in done.stdout
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded


def test_the_json_holds_the_suites_that_were_asked_for_and_where_they_ran(results: dict[str, Any]) -> None:
    assert list(results["tables"]) == ["join", "operations", "ratios", "operations_sqlite", "streams"]
    assert results["quick"] is True
    assert {"CPUs", "Python", "libp2p", "trio"} <= results["environment"].keys()


def test_every_operation_is_measured_singly_and_with_32_in_flight_beside_what_it_is_made_of(
    results: dict[str, Any],
) -> None:
    measured = {(row["operation"], row["in_flight"]) for row in results["tables"]["operations"]["rows"]}
    for name in ("PING", "FIND_NODE", "stock py-libp2p RPC", "put", "get, quorum 1", "get, quorum 2"):
        assert {(name, 1), (name, 32)} <= measured
    for name in ("Ed25519 verify", "put_many of 512", "get_many of 512, quorum 1"):
        assert (name, 1) in measured
    units = {"p50_ms", "p99_ms", "per_s", "cpu_ms", "rpcs"}
    assert all(units <= row.keys() for row in results["tables"]["operations"]["rows"])


@pytest.mark.parametrize("in_flight", [1, 32])
@pytest.mark.parametrize(
    ("operation", "rpcs"),
    [("PING", 1), ("FIND_NODE", 1), ("put", 3), ("get, quorum 1", 1), ("get, quorum 2", 2)],
)
def test_an_operation_takes_one_request_for_each_replica_it_needs(
    results: dict[str, Any], operation: str, rpcs: int, in_flight: int
) -> None:
    assert requests_per_value(results, operation, in_flight) == rpcs


@pytest.mark.parametrize("operation", ["put_many of 512", "get_many of 512, quorum 1", "get_many of 512, quorum 2"])
def test_a_batch_takes_one_request_for_ten_values_at_most(results: dict[str, Any], operation: str) -> None:
    assert requests_per_value(results, operation, in_flight=1) <= 0.1


def test_a_partition_is_measured_and_keeps_within_its_memory(partition_results: dict[str, Any]) -> None:
    tables = partition_results["tables"]
    assert list(tables) == ["partition", "partition_memory", "sketches", "sketches_symbols"]
    assert all(row["took_us"] > 0 for name in ("partition", "sketches") for row in tables[name]["rows"])
    held, _ = tables["partition_memory"]["rows"]
    assert 0 < held["MB"] <= held["aim_MB"]


def test_a_difference_takes_at_most_twice_as_many_symbols_as_ids(partition_results: dict[str, Any]) -> None:
    rows = partition_results["tables"]["sketches_symbols"]["rows"]
    assert [row["differences"] for row in rows] == [1, 2, 5, 10, 20, 50, 100]
    assert all(1 <= row["per_difference_p50"] <= 2 for row in rows)


def test_rounds_are_measured_beside_the_drill_down_and_keep_within_their_aims(sync_results: dict[str, Any]) -> None:
    rows = sync_results["tables"]["sync_bytes"]["rows"]
    assert {row["where"] for row in rows} == {"scattered", "clustered", "recent"}
    assert all(row["p95_bytes"] <= row["aim_bytes"] and row["within_aim"] == "1/1" for row in rows)


def test_a_store_is_moved_from_one_process_to_another(sync_results: dict[str, Any]) -> None:
    (row,) = sync_results["tables"]["sync_transfer"]["rows"]
    assert row["n"] == 500
    assert row["per_s"] > 0
    assert 0 < row["verify_us"] < row["receiver_cpu_us"]


@pytest.fixture(scope="module")
def blob_results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What is measured of blobs."""
    return run_suites(tmp_path_factory, "A blob of 8 MiB to a file", "blobs")


def test_a_blob_is_fetched_beside_a_raw_stream_and_nothing_of_it_twice(blob_results: dict[str, Any]) -> None:
    raw, limit, one, three = blob_results["tables"]["blobs_fetch"]["rows"]
    assert (raw["what"], raw["of_raw"]) == ("raw stream", 1.0)
    assert (limit["what"], limit["of_limit"]) == ("raw stream, hashed and written", 1.0)
    assert one["fetched_MB"] == pytest.approx(8.389, abs=0.001)
    assert three["fetched_MB"] >= 8.388, "at the end, a block may be asked of two"


def test_a_checkpoint_that_differs_in_a_tensor_costs_that_tensor(blob_results: dict[str, Any]) -> None:
    rows = blob_results["tables"]["blobs_checkpoints"]["rows"]
    of_least = {(row["chunker"], row["second"]): row["of_least"] for row in rows}
    by_tensor = [least for (chunker, _), least in of_least.items() if chunker == "safetensors-1"]
    assert len(by_tensor) == 3
    assert max(by_tensor) < 1.03
    assert of_least["size-1048576", "one tensor inserted"] > 10


@pytest.fixture(scope="module")
def ml_results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What is measured of machine learning."""
    return run_suites(tmp_path_factory, "A model of 5 MB in 25 tensors", "ml")


def test_a_model_goes_between_processes_beside_a_copy_of_its_file(ml_results: dict[str, Any]) -> None:
    copied, pushed, pulled = ml_results["tables"]["ml_models"]["rows"]
    assert (copied["what"], copied["of_copy"]) == ("copy of the file", 1.0)
    assert all(row["MB_per_s"] > 0 and row["node_cpu_s"] > 0 and row["peak_MB"] > 0 for row in (pushed, pulled))


def test_a_round_is_published_and_collected_and_int8_sends_a_quarter(ml_results: dict[str, Any]) -> None:
    rows = {row["what"]: row for row in ml_results["tables"]["ml_round"]["rows"]}
    assert list(rows) == ["publish, none", "collect, none", "publish, int8", "collect, int8"]
    assert 3 < rows["publish, none"]["sent_MB"] <= 4.001
    assert rows["publish, int8"]["sent_MB"] < 1.02


def test_every_rule_is_measured_beside_one_pass(ml_results: dict[str, Any]) -> None:
    rows = ml_results["tables"]["ml_aggregation"]["rows"]
    assert rows[0]["of_one_pass"] == 1.0
    assert len(rows) == 3 + 7


def test_codecs_are_measured_with_and_without_zstd_which_gains_on_gradients(ml_results: dict[str, Any]) -> None:
    ratio = {row["codec"]: row["ratio"] for row in ml_results["tables"]["ml_codecs"]["rows"]}
    for name, least in (("none", 1.0), ("fp16", 2.0), ("bf16", 2.0), ("int8", 3.9), ("topk", 49.0)):
        assert ratio[name] >= least
        assert ratio[f"{name}, zstd"] > 1.2 * ratio[name]


def requests_per_value(results: dict[str, Any], operation: str, in_flight: int) -> float:
    (found,) = (
        row["rpcs"]
        for row in results["tables"]["operations"]["rows"]
        if (row["operation"], row["in_flight"]) == (operation, in_flight)
    )
    return float(found)
