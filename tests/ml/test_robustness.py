"""With 30 % of members bad, robust rules train nearly as well as plain averaging does with none; averaging does not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MARGIN = 3.0
PLAIN = ("average, unscreened", "federated average")
ROBUST = ("coordinate median", "trimmed mean", "Krum", "multi-Krum", "geometric median", "centered clipping")

Accuracies = Mapping[str, Mapping[str, float]]


@pytest.fixture(scope="module")
def accuracies(tmp_path_factory: pytest.TempPathFactory) -> Accuracies:
    """What the script that makes the table of the README measures in its short form, in percent."""
    path = tmp_path_factory.mktemp("robustness") / "accuracies.json"
    command = [sys.executable, "-m", "tests.bench.robustness", "--quick", "--json", str(path)]
    env = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}  # more would wait for each other, on arrays as small as these
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    loaded: Accuracies = json.loads(path.read_text())
    assert tuple(loaded) == (*PLAIN, *ROBUST)
    for name in loaded:
        assert f"| {name} |" in done.stdout
    return loaded


@pytest.mark.parametrize("rule", ROBUST)
def test_a_robust_rule_is_within_the_margin_of_the_clean_average_and_of_its_own_clean_run(
    accuracies: Accuracies, rule: str
) -> None:
    clean_average, clean = accuracies["federated average"]["none"], accuracies[rule]["none"]
    assert clean_average > 90
    assert len(accuracies[rule]) == 5
    assert min(accuracies[rule].values()) >= max(clean_average, clean) - MARGIN


@pytest.mark.parametrize("attack", ["sign-flipped, × 10", "scaled, × 100", "random"])
def test_plain_averaging_falls_far_below(accuracies: Accuracies, attack: str) -> None:
    assert accuracies["federated average"][attack] < accuracies["federated average"]["none"] - 3 * MARGIN


def test_screening_saves_the_average_from_nan_and_from_nothing_else(accuracies: Accuracies) -> None:
    unscreened, screened = (accuracies[name] for name in PLAIN)
    assert unscreened["NaN"] < 20
    assert screened["NaN"] >= screened["none"] - MARGIN
    for attack in ("none", "sign-flipped, × 10", "scaled, × 100", "random"):
        assert screened[attack] == pytest.approx(unscreened[attack], abs=2)
