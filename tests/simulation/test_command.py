"""What ``make simulate`` says when a seed fails, and when none does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from . import attempts
from .__main__ import main, show
from .attempts import Result, attempt

FAILED = Result(seed=7, failures=("m1 does not know m2",), log=("0:00:01 m1 joins", "0:00:02 BROKEN"), virtual_s=2.0)


def test_a_failing_seed_comes_with_what_led_to_it_and_how_to_see_it_again(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    show(FAILED, again=FAILED, logs=tmp_path / "logs")
    said = capsys.readouterr().out
    assert "m1 does not know m2" in said
    assert "0:00:01 m1 joins" in said
    assert "make simulate FIRST=7 SEEDS=1" in said
    assert "in the same way, to the byte" in said
    assert (tmp_path / "logs" / "seed-7.log").read_text().splitlines() == list(FAILED.log)


def test_a_seed_that_fails_in_two_ways_is_said_to(capsys: pytest.CaptureFixture[str]) -> None:
    show(FAILED, again=replace(FAILED, log=()), logs=None)
    assert "IN ANOTHER WAY" in capsys.readouterr().out


def test_a_node_that_crashes_is_a_failure_of_its_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(_seed: int) -> None:
        raise KeyError("a defect")

    monkeypatch.setattr(attempts, "simulate", crash)
    result = attempt(7)
    assert result.failures == ("a node crashed",)
    assert "a defect" in result.log[0]


def test_the_command_says_how_many_seeds_there_were(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--first", "3", "--seeds", "0"]) == 0
    assert "0 seeds from 3 on, 0 failed" in capsys.readouterr().out
