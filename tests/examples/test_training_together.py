"""``examples/federated_digits.py`` and ``diloco.py``: they learn, show how, and leave nothing behind when they end."""

from __future__ import annotations

import re
import signal
import sys
from pathlib import Path

import pytest

from prime_dht.testing.processes import run, run_warm, running_node, running_warm

EXAMPLES = Path(__file__).parents[2] / "examples"
FEDERATED, DILOCO = (str(EXAMPLES / f"{name}.py") for name in ("federated_digits", "diloco"))
PNG = b"\x89PNG\r\n"


def check(example: str, shown: str, *arguments: str, folder: Path) -> None:
    """A short run: it says of each round what it should, comes within 2 points of training in one place, and draws."""
    ended = run_warm(example, "--workers", "2", "--rounds", "8", *arguments, cwd=folder)
    assert (ended.status, ended.err) == (0, "")
    *rounds, last = ended.out.decode().splitlines()
    assert len(rounds) == 8
    assert all(shown in line for line in rounds)
    together, central = map(float, re.findall(r"([\d.]+)%", last))
    assert central > 95
    assert together >= central - 2
    assert (folder / "accuracy_by_round.png").read_bytes().startswith(PNG)


def test_federated_averaging_in_a_swarm_of_its_own_is_as_good_as_training_in_one_place(tmp_path: Path) -> None:
    check(FEDERATED, "made of 2 of 2 (all images in one place: ", folder=tmp_path)


def test_diloco_in_a_swarm_that_is_there_is_as_good_though_it_sends_a_tenth(tmp_path: Path) -> None:
    with running_node() as (_, address):
        shown = "bytes from each instead of 9,640 at each of 40 steps"
        check(DILOCO, shown, "--codec", "topk", "--peer", address, folder=tmp_path)


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_no_worker_outlives_it(signum: int, status: int, tmp_path: Path) -> None:
    with running_warm(FEDERATED, "--workers", "2", "--rounds", "10000", cwd=tmp_path) as example:
        assert example.line().startswith("round  1: ")
        ended = example.stop(signum)  # when all that have its standard streams have ended
        assert (ended.status, ended.err) == (status, "")


@pytest.mark.parametrize("is_started", [False, True])
@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_what_ends_it_while_a_worker_starts_leaves_none_half_started(
    signum: int, status: int, is_started: bool
) -> None:
    program = f"""
import signal, workers
from multiprocessing import active_children
from multiprocessing.context import ForkServerProcess

start = ForkServerProcess.start

def start_while_it_ends(process):
    if {is_started}:
        start(process)
    signal.raise_signal({signum})
    if not {is_started}:
        start(process)

ForkServerProcess.start = start_while_it_ends

def main():
    try:
        with workers.working(print, count=2, peer=None):
            return 0
    finally:
        assert not active_children()

if __name__ == "__main__":
    workers.run(main)
"""
    ended = run(sys.executable, "-c", program, env={"PYTHONPATH": str(EXAMPLES)})
    assert (ended.status, ended.out, ended.err) == (status, b"", "")


@pytest.mark.parametrize(
    ("arguments", "status", "mistake"),
    [
        ("--rule meen", 2, "meen"),
        ("--workers 0", 2, "'0' is not a number from 1 up"),
        ("--plot nowhere/plot.png", 2, "there is no folder nowhere"),
        ("--workers 2 --rule krum", 2, "krum cannot stand 0 liars among 2 workers"),
        ("--workers 1 --peer typo", 1, "typo"),
    ],
)
def test_a_mistake_is_one_line(arguments: str, status: int, mistake: str, tmp_path: Path) -> None:
    ended = run_warm(FEDERATED, *arguments.split(), cwd=tmp_path)
    assert (ended.status, ended.out, ended.err.count("\n")) == (status, b"", 1)
    assert mistake in ended.err


@pytest.mark.parametrize("example", [FEDERATED, DILOCO])
def test_each_says_how_it_is_used(example: str) -> None:
    ended = run(sys.executable, example, "--help")
    assert (ended.status, ended.err) == (0, "")
    assert b"--workers" in ended.out
