"""``examples/trainer.py`` as a scheduler runs it: started, watched, failing, started again, stopped."""

from __future__ import annotations

import importlib
import json
import signal
import threading
from pathlib import Path

import pytest

from prime_dht import connect
from prime_dht.testing.processes import run_warm, running_node, running_warm

TRAINER = str(Path(__file__).parents[2] / "examples" / "trainer.py")


def test_it_is_run_watched_started_again_and_stopped(tmp_path: Path) -> None:
    def events(printed: str) -> dict[str, list[dict[str, object]]]:
        by_name: dict[str, list[dict[str, object]]] = {}
        for line in printed.splitlines():
            event = json.loads(line)
            by_name.setdefault(event["event"], []).append(event)
        return by_name

    def health() -> dict[str, object]:
        document: dict[str, object] = json.loads((tmp_path / "health.json").read_text())
        return document

    with running_node() as (_, address):
        common = {"TRAINER_PEER": address, "TRAINER_OF": "2", "TRAINER_PUSH_EVERY": "3"}
        first = common | {
            "TRAINER_JSON": "1",
            "TRAINER_DATA_DIR": str(tmp_path / "0"),
            "TRAINER_HEALTH_FILE": str(tmp_path / "health.json"),
        }
        with running_warm(TRAINER, "--rounds", "4", "--round-timeout", "4", env=first) as trainer:
            second = run_warm(TRAINER, "--rank", "1", "--rounds", "3", env=common)
            ended = trainer.end()

        assert (second.status, second.err) == (0, "")
        printed = second.out.decode().splitlines()
        assert "done" in printed
        assert sum(line.startswith("round round=") for line in printed) == 3

        # The second one was to train three rounds, so in the fourth the first one is alone.
        assert (ended.status, ended.err) == (1, "round 3: only 1 of 2 trainers took part\n")
        happened = events(ended.out.decode())
        assert {"ready", "peer", "round"} <= happened.keys()
        assert [(event["round"], event["used"]) for event in happened["round"]] == [(0, 2), (1, 2), (2, 2)]
        assert (health()["state"], health()["last_round"]) == ("stopped", 2)

        # What it has pushed is where it goes on.
        with running_warm(TRAINER, "--rounds", "9", env=first) as trainer:
            (resumed,) = events(trainer.line_with("resumed"))["resumed"]
            assert (resumed["version"], resumed["round"]) == (1, 2)
            assert health()["state"] == "running"
            ended = trainer.stop(signal.SIGTERM)
        assert (ended.status, ended.err) == (143, "")
        assert health()["state"] == "stopped"


def test_its_rounds_are_those_of_its_run_alone() -> None:
    with running_node() as (_, address):
        ended = run_warm(TRAINER, "--run", "one", "--rounds", "1", "--peer", address)
        assert (ended.status, ended.err) == (0, "")
        with connect(address) as dht:
            assert len(dht.collect(0, run="one", minimum=1).gradients) == 1
            assert len(dht.collect(0).gradients) == 0


def test_the_health_file_is_written_again_when_its_folder_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(TRAINER).parent)
    folder, away = tmp_path / "here", tmp_path / "away"
    folder.mkdir()
    written = threading.Event()

    class Service:
        """Runs while the folder is there, then gone, then back."""

        def __init__(self) -> None:
            self.state = "running"
            self.steps = [lambda: folder.rename(away), lambda: away.rename(folder), written.set]

        def wait(self, _: float) -> bool:
            if self.steps:
                self.steps.pop(0)()
            return written.is_set()

        def stop(self) -> None:
            self.state = "stopped"

        def health(self) -> Service:
            return self

        def as_json(self) -> str:
            return json.dumps([self.state, len(self.steps)])

    path = folder / "health.json"
    with importlib.import_module("trainer").health_file(path, Service()):
        assert written.wait(60)
        assert json.loads(path.read_text()) == ["running", 1]
    assert json.loads(path.read_text()) == ["stopped", 0]


def test_trainers_meet_though_somebody_has_put_much_before_them(tmp_path: Path) -> None:
    with running_node() as (_, address):
        folders = {}
        for name in ("one", "other"):
            with connect(address, data_dir=tmp_path / name) as dht:
                folders[dht.peer_id] = tmp_path / name
        (_, before), (_, trainer) = sorted(folders.items())
        with connect(address, data_dir=before) as dht:
            for number in range(40):
                dht.put("trainers:crowd", bytes(60_000), subkey=b"noise %d" % number)
        ended = run_warm(TRAINER, "--run", "crowd", "--rounds", "1", "--peer", address, "--data-dir", str(trainer))
        assert (ended.status, ended.err) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "environment", "mistake"),
    [
        ("--rank 2 --of 2", {}, "--rank 2 is not in 0 ..= 1"),
        ("", {"TRAINER_RANK": "first"}, "'first'"),
        ("--peer typo", {}, "typo"),
        ("--push-every 0", {}, "--push-every is at least 1, not 0"),
        ("--round-timeout nan", {}, "--round-timeout is above 0, not nan"),
        ("", {"TRAINER_RUN": "digits 7"}, "--run: 'digits 7' is no model id"),
        ("", {"TRAINER_RUN": "digits:7"}, "--run: a run is named by up to 64 letters"),
        ("", {}, "there is nobody to ask"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(arguments: str, environment: dict[str, str], mistake: str) -> None:
    ended = run_warm(TRAINER, *arguments.split(), env=environment)
    assert (ended.status, ended.out, ended.err.count("\n")) == (2, b"", 1)
    assert mistake in ended.err
