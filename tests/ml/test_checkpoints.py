"""Checkpoints of a training run: saved in the background, restored, and what becomes of them when something dies."""

from __future__ import annotations

import shutil
import signal
import sys
import threading
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import trio

from prime_dht import (
    BlobError,
    Checkpoints,
    ConfigError,
    LearningDHT,
    PrimeDHT,
    PrimeDHTError,
    QueryError,
    ValidationError,
    connect,
)
from prime_dht.ml.models import pulling, pushing
from prime_dht.ml.models.model import Model
from prime_dht.ml.models.pulling import pull
from prime_dht.ml.models.pushing import push
from prime_dht.ml.models.version import ModelVersion, description_key, subkey_of, weights_key
from prime_dht.ml.tensors import Array
from prime_dht.testing.processes import run, running


def weights(step: int) -> dict[str, Array]:
    """Over what fits into an entry."""
    return {"w": np.full(20_000, step, np.float32)}


class Gate:
    """Keeps pushes from beginning until it is opened."""

    def __init__(self) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()

    async def push(self, *arguments: Any, **named: Any) -> ModelVersion:
        self.reached.set()
        await trio.to_thread.run_sync(self.opened.wait, abandon_on_cancel=True)  # type: ignore[call-arg]  # old stubs
        return await push(*arguments, **named)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    gate = Gate()
    monkeypatch.setattr(pushing, "push", gate.push)
    return gate


def steps_of(dht: LearningDHT, checkpoints: Checkpoints) -> list[object]:
    return [one.metadata["step"] for one in dht.model_versions(checkpoints.model_id)]


def test_every_nth_step_is_saved_and_the_last_one_restored_anywhere(dht: LearningDHT, reader: LearningDHT) -> None:
    with Checkpoints(dht, "run-1", every=10) as checkpoints:
        assert checkpoints.restore() is None
        due = [step for step in range(31) if checkpoints.step(step, weights(step), {"loss": 1 / (step + 1)})]
    assert due == [10, 20, 30]
    last = Checkpoints(reader, "run-1", every=10).restore()
    assert last is not None
    assert (last.step, last.tensors["w"][0], last.model.version.metadata["loss"]) == (30, 30, 1 / 31)


def test_the_last_few_are_kept_in_as_many_slots_and_one_more(dht: LearningDHT) -> None:
    with Checkpoints(dht, "run-2", every=1, keep=2) as checkpoints:
        for step in range(1, 8):
            checkpoints.step(step, weights(step))
            checkpoints.wait()
            assert steps_of(dht, checkpoints) == [max(step - 1, 1), step][-min(step, 2) :]
    versions = dht.model_versions(checkpoints.model_id)
    assert [one.version for one in versions] == [6, 7]
    for key in (weights_key(checkpoints.model_id), description_key(checkpoints.model_id)):
        assert {found.subkey for found in dht.get_all(key)} == {one.subkey for one in versions}
    assert {one.subkey for one in versions} <= {subkey_of(0), subkey_of(1), subkey_of(2)}


def test_a_run_goes_on_with_the_slots_of_the_one_before_it(dht: LearningDHT) -> None:
    for first in (1, 4):
        with Checkpoints(dht, "run-3", every=1, keep=3) as checkpoints:
            for step in range(first, first + 3):
                checkpoints.step(step, weights(step))
                checkpoints.wait()
    assert steps_of(dht, checkpoints) == [4, 5, 6]
    with Checkpoints(dht, "run-3", every=1, keep=1) as checkpoints:
        checkpoints.step(7, weights(7))
    assert steps_of(dht, checkpoints) == [7]


def test_while_one_is_saved_only_the_newest_waits_and_arrays_may_change(dht: LearningDHT, gate: Gate) -> None:
    array = np.zeros(20_000, np.float32)
    steps: list[int] = []
    checkpoints = Checkpoints(dht, "run-4", every=1)
    for step in range(1, 6):
        array[:] = step
        steps.append(step)
        assert checkpoints.step(step, {"w": array}, {"steps": steps})
        assert gate.reached.wait(30)
    with pytest.raises(TimeoutError):
        checkpoints.wait(0)
    array[:] = 100
    steps.append(100)
    gate.opened.set()
    checkpoints.close()
    assert steps_of(dht, checkpoints) == [1, 5]
    last = checkpoints.restore()
    assert last is not None
    assert last.tensors["w"][0] == 5
    assert last.model.version.metadata["steps"] == [1, 2, 3, 4, 5]


def test_what_goes_wrong_in_the_background_is_raised_by_the_next_step_which_is_saved_nevertheless(
    dht: LearningDHT,
) -> None:
    checkpoints = Checkpoints(dht, "run-5", every=1)
    too_much = {"log": "x" * 70_000}
    checkpoints.step(1, weights(1), too_much)
    with pytest.raises(ValidationError, match="what is said of a version takes"):
        checkpoints.wait()
    checkpoints.step(2, weights(2), too_much)
    assert checkpoints._saving is not None
    checkpoints._saving.result()
    with pytest.raises(ValidationError, match="what is said of a version takes"):
        checkpoints.step(3, weights(3))
    checkpoints.close()
    assert steps_of(dht, checkpoints) == [3]


def test_what_cannot_be_saved_at_all_is_raised_by_the_step(dht: LearningDHT) -> None:
    with Checkpoints(dht, "run-6", every=1) as checkpoints, pytest.raises(ValidationError, match="dtype complex128"):
        checkpoints.step(1, {"w": np.zeros(2, complex)})


def test_a_client_that_closes_meanwhile_ends_the_saving_and_the_next_step_says_so(
    swarm: tuple[str, ...], gate: Gate, tmp_path: Path
) -> None:
    with connect(swarm[0], data_dir=tmp_path) as dht:
        checkpoints = Checkpoints(dht, "run-7", every=1)
        for step in (1, 2):
            checkpoints.step(step, weights(step))
            assert gate.reached.wait(30)
        dht.close()
        gate.opened.set()
    with pytest.raises(PrimeDHTError):
        checkpoints.close()
    with pytest.raises(PrimeDHTError):
        checkpoints.step(3, weights(3))


def test_when_the_process_is_killed_while_it_saves_the_one_before_is_restored(
    swarm: tuple[str, ...], reader: LearningDHT, tmp_path: Path
) -> None:
    body = """
import os, signal, sys
import numpy as np
from prime_dht import Checkpoints, connect
from prime_dht.node.writer import Writer

dht = connect(sys.argv[1], data_dir=sys.argv[2])
checkpoints = Checkpoints(dht, "run-8", every=1, keep=1)
for step in (1, 2):
    checkpoints.step(step, {"w": np.full(20_000, step, np.float32)})
    checkpoints.wait()

put = Writer.put
async def put_weights_and_die(self, statement, **named):
    if statement.key.startswith(b"/prime/meta:"):
        os.kill(os.getpid(), signal.SIGKILL)
    return await put(self, statement, **named)
Writer.put = put_weights_and_die
checkpoints.step(3, {"w": np.full(20_000, 3, np.float32)})
checkpoints.wait()
"""
    with running(sys.executable, "-c", body, swarm[0], str(tmp_path / "data")) as process:
        ended = process.end()
    assert (ended.status, ended.err) == (-signal.SIGKILL, "")
    last = Checkpoints(reader, "run-8", every=1).restore()
    assert last is not None
    assert (last.step, last.tensors["w"][0]) == (2, 2)
    assert list((tmp_path / "data" / "models").glob("*")) == []  # the snapshot went with the process


def test_a_forked_child_saves_its_own_and_leaves_what_is_being_saved_to_its_parent(
    swarm: tuple[str, ...], tmp_path: Path
) -> None:
    body = """
import os, sys, threading, warnings
import numpy as np
import trio
from prime_dht import Checkpoints, connect
from prime_dht.ml.models import pushing as module

warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)  # Python 3.12 has it
push, reached, opened, parent = module.push, threading.Event(), threading.Event(), os.getpid()
async def push_when_opened(*arguments, **named):
    reached.set()
    if os.getpid() == parent:
        await trio.to_thread.run_sync(opened.wait)
    return await push(*arguments, **named)
module.push = push_when_opened

dht = connect(sys.argv[1], data_dir=sys.argv[2])
checkpoints = Checkpoints(dht, "run-12", every=1)
checkpoints.step(1, {"w": np.zeros(2)})
reached.wait()
checkpoints.step(2, {"w": np.zeros(2)})
if not (child := os.fork()):
    checkpoints.wait()
    checkpoints.step(3, {"w": np.zeros(2)})
    checkpoints.close()
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
opened.set()
checkpoints.close()
print(sorted(one.metadata["step"] for one in dht.model_versions(checkpoints.model_id)))
"""
    cache = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    ended = run(sys.executable, "-c", body, swarm[0], str(tmp_path / "data"), env=cache)
    assert (ended.status, ended.out, ended.err) == (0, b"0\n[1, 2, 3]\n", "")


def test_one_whose_weights_are_gone_or_no_weights_is_passed_over(dht: LearningDHT, reader: LearningDHT) -> None:
    with Checkpoints(dht, "run-9", every=1) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.step(step, weights(step))
            checkpoints.wait()
    dht.push_model(checkpoints.model_id, {"w": np.zeros(2)}, {"step": "no number"})
    first, second, third, _ = dht.model_versions(checkpoints.model_id)
    key = weights_key(checkpoints.model_id)
    dht.delete(key, subkey=third.subkey)
    restorer = Checkpoints(reader, "run-9", every=1, publisher=dht.peer_id)
    last = restorer.restore()
    assert last is not None
    assert last.step == 2
    for one in (first, second):
        dht.delete(key, subkey=one.subkey)
    shutil.rmtree(reader.models_dir)  # where the second still is
    with pytest.raises(BlobError, match=r"the weights of 'checkpoints/run-9', version 3 of .* are gone"):
        restorer.restore()


def test_one_that_does_not_come_in_time_is_passed_over(
    dht: LearningDHT, reader: LearningDHT, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Checkpoints(dht, "run-slow", every=1) as checkpoints:
        for step in (1, 2):
            checkpoints.step(step, weights(step))
            checkpoints.wait()
    slow = {2}

    async def pull_unless_slow(dht: PrimeDHT, version: ModelVersion, *, folder: Path) -> Model:
        if version.version in slow:
            raise QueryError(f"version {version.version} was not done within 1 s")
        return await pull(dht, version, folder=folder)

    monkeypatch.setattr(pulling, "pull", pull_unless_slow)
    restorer = Checkpoints(reader, "run-slow", every=1)
    last = restorer.restore()
    assert last is not None
    assert last.step == 1
    slow.add(1)
    with pytest.raises(QueryError, match="version 2 was not done within 1 s"):
        restorer.restore()


def test_one_whose_file_here_was_cut_off_is_restored_all_the_same(dht: LearningDHT, reader: LearningDHT) -> None:
    with Checkpoints(dht, "run-11", every=1) as checkpoints:
        for step in (1, 2):
            checkpoints.step(step, weights(step))
            checkpoints.wait()
    restorer = Checkpoints(reader, "run-11", every=1)
    last = restorer.restore()
    assert last is not None
    last.model.path.chmod(0o600)
    with last.model.path.open("rb+") as file:
        file.truncate(1000)
    again = restorer.restore()
    assert again is not None
    assert (again.step, again.tensors["w"][0]) == (2, 2)


def test_those_of_strangers_are_left_alone_if_a_publisher_is_named(dht: LearningDHT, reader: LearningDHT) -> None:
    with Checkpoints(reader, "run-10", every=1) as theirs:
        theirs.step(1, weights(1))
    assert Checkpoints(dht, "run-10", every=1, publisher=dht.peer_id).restore() is None
    with Checkpoints(dht, "run-10", every=1, keep=1) as ours:
        ours.step(1, weights(2))
    assert len(dht.model_versions(ours.model_id)) == 2


@pytest.mark.parametrize("number", [200.0, "200", None])
def test_a_step_is_a_whole_number(dht: LearningDHT, number: Any) -> None:
    checkpoints = Checkpoints(dht, "run-13", every=100)
    with pytest.raises(ValidationError, match="the number of a step is a whole number"):
        checkpoints.step(number, weights(1))
    checkpoints.close()


def test_a_step_may_be_numbered_by_numpy(dht: LearningDHT) -> None:
    with Checkpoints(dht, "run-14", every=100) as checkpoints:
        for number in np.arange(199, 201):
            checkpoints.step(number, weights(int(number)))
    last = checkpoints.restore()
    assert last is not None
    assert last.step == 200


def test_one_that_is_saved_is_saved_even_if_an_older_one_cannot_be_deleted(
    dht: LearningDHT, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise QueryError("no replica took the tombstone")

    with Checkpoints(dht, "run-15", every=1, keep=1) as checkpoints:
        checkpoints.step(1, weights(1))
        checkpoints.wait()
        with monkeypatch.context() as patched:
            patched.setattr(PrimeDHT, "delete", fail)
            checkpoints.step(2, weights(2))
            checkpoints.wait()
        assert steps_of(dht, checkpoints) == [1, 2]
        checkpoints.step(3, weights(3))
    assert steps_of(dht, checkpoints) == [3]


def test_what_makes_no_sense_is_refused(dht: LearningDHT) -> None:
    for every, keep in ((0, 1), (1, 0)):
        with pytest.raises(ConfigError, match="must be at least 1"):
            Checkpoints(dht, "run", every=every, keep=keep)
    for wrong in (cast("int", 2.0), cast("int", "2")):
        with pytest.raises(ConfigError, match="must be whole numbers"):
            Checkpoints(dht, "run", every=1, keep=wrong)
    with pytest.raises(ValidationError, match="is no model id"):
        Checkpoints(dht, "run 11", every=1)
    with pytest.raises(ValidationError, match="run_id names the run, and is not None"):
        Checkpoints(dht, cast("str", None), every=1)


def test_a_run_may_have_the_number_of_a_job_for_its_id(dht: LearningDHT) -> None:
    assert Checkpoints(dht, cast("str", 4711), every=1).model_id == Checkpoints(dht, "4711", every=1).model_id
