"""``examples/blocking.py``: two workers, one after the other, find the slope and each other's gradients."""

from __future__ import annotations

import sys
from pathlib import Path

from prime_dht import connect
from prime_dht.testing.processes import run, run_warm, running_node

EXAMPLE = str(Path(__file__).parents[2] / "examples" / "blocking.py")


def test_two_workers_fit_the_same_slope() -> None:
    with running_node() as (_, address):
        for name in ("alice", "bob"):
            ended = run_warm(EXAMPLE, address, name)
            shown = f"{name}: slope 3.0, 20 of 20 gradients shared\n".encode()
            assert (ended.status, ended.out, ended.err) == (0, shown, "")


def test_what_others_put_that_is_no_number_is_passed_over() -> None:
    with running_node() as (_, address):
        with connect(address) as stranger:
            stranger.publish(0, {"w": [1.0]})
            stranger.put("slope-gradient:0", b"no number")
            stranger.put("slope-gradient:1", b"nan")
            ended = run_warm(EXAMPLE, address, "alice")
            assert [one.publisher for one in stranger.get_all("gradient:0")] == [stranger.peer_id]
        assert (ended.status, ended.out) == (0, b"alice: slope 3.0, 20 of 20 gradients shared\n")


def test_it_says_how_it_is_used_and_what_is_wrong() -> None:
    assert b"usage: blocking.py" in run(sys.executable, EXAMPLE, "--help").out
    ended = run_warm(EXAMPLE, "typo", "alice")
    assert (ended.status, ended.err.count("\n")) == (1, 1)
    assert "typo" in ended.err
