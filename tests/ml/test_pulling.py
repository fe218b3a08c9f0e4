"""Where a model is pulled to: one pull at a time to a file, and only where a file can be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from prime_dht import LearningDHT
from prime_dht.errors import ValidationError
from prime_dht.ml.weights import to_safetensors


@pytest.mark.parametrize("length", [3, 1 << 17], ids=["in the entry", "a blob"])
def test_pulls_to_one_file_at_the_same_time_take_turns(
    length: int, dht: LearningDHT, reader: LearningDHT, tmp_path: Path
) -> None:
    weights = {"w": np.arange(length)}
    dht.push_model(f"turns/{length}", weights)
    to = tmp_path / "model.safetensors"
    pulls = [each.pull_model(f"turns/{length}", to=to, wait=False) for each in (dht, reader) for _ in range(4)]
    assert {pull.result().path for pull in pulls} == {to}
    assert to.read_bytes() == to_safetensors(weights)
    assert [path for path in tmp_path.iterdir() if path.is_file()] == [to]


@pytest.mark.parametrize("name", ["null\0", "\udc00", "null\0/model", "\udc00/model"])
def test_a_place_that_no_file_can_have_is_refused(name: str, dht: LearningDHT, tmp_path: Path) -> None:
    dht.push_model("nowhere", {"w": np.zeros(3)})
    with pytest.raises(ValidationError, match="not the name of a file"):
        dht.pull_model("nowhere", to=tmp_path / name)
