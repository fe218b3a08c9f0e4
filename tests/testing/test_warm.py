"""A fork is a process like any other: what it is given is all that it has, and however it ends is told."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from prime_dht.testing.processes import Ended, ended, run_warm, running_warm

Script = Callable[[str], str]


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """Makes a file of a program."""

    def written(program: str) -> str:
        path = tmp_path / "script.py"
        path.write_text(program)
        return str(path)

    return written


def test_it_begins_with_a_node_and_without_what_drives_one(script: Script) -> None:
    program = "import sys; print(*(name for name in sys.modules if name.partition('.')[0] in ('libp2p', 'prime_dht')))"
    begun = run_warm(script(program)).out.decode().split()
    assert {"libp2p", "prime_dht.node"} <= set(begun)
    assert not [name for name in begun if name.startswith(("prime_dht.cli", "prime_dht.blocking", "prime_dht.ml"))]


def test_it_has_the_arguments_environment_folder_and_input_that_it_is_given(script: Script, tmp_path: Path) -> None:
    path = script(
        "import os, sys; print(sys.argv, os.environ['GIVEN'], os.getcwd(), len(sys.stdin.read()), sys.path[0])"
    )
    given = run_warm(path, "one", "two", stdin=b"x" * 1_000_000, env={"GIVEN": "value"}, cwd=Path("/"))
    assert given == Ended(0, f"{[path, 'one', 'two']} value / 1000000 {tmp_path}\n".encode(), "")


def test_no_file_is_open_in_it_but_its_standard_streams(script: Script) -> None:
    with running_warm(script("import sys; sys.stdin.read()")), running_warm(script("print(1); input()")) as other:
        assert other.line() == "1"
        folder = Path(f"/proc/{other.process.pid}/fd")
        assert sorted(entry.name for entry in folder.iterdir()) == ["0", "1", "2"]


def test_it_is_a_process_with_one_thread_and_chance_of_its_own(script: Script) -> None:
    path = script("import os, random; print(os.getpid(), len(os.listdir('/proc/self/task')), random.random())")
    first, second = (run_warm(path).out.split() for _ in range(2))
    assert first[1] == second[1] == b"1"
    assert first[0] != second[0]
    assert first[2] != second[2]


@pytest.mark.parametrize(
    ("program", "status", "out", "says"),
    [
        ("print(1)", 0, b"1\n", ""),
        ("import sys; sys.exit(3)", 3, b"", ""),
        ("import sys; sys.exit('why')", 1, b"", "why\n"),
        ("import atexit; atexit.register(print, 'at exit')", 0, b"at exit\n", ""),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM, b"", ""),
        ("1 / 0", 1, b"", "ZeroDivisionError: division by zero\n"),
    ],
)
def test_it_ends_as_the_interpreter_ends(program: str, status: int, out: bytes, says: str, script: Script) -> None:
    told = run_warm(script(program))
    assert (told.status, told.out) == (status, out)
    assert told.err.endswith(says)


def test_ctrl_c_reaches_it(script: Script) -> None:
    program = "try:\n print(1, flush=True)\n input()\nexcept KeyboardInterrupt:\n raise SystemExit(130)"
    with running_warm(script(program)) as waiting:
        assert waiting.line() == "1"
        assert waiting.stop(signal.SIGINT) == Ended(130, b"", "")


def test_sigkill_ends_it_and_nothing_of_it_stays(script: Script) -> None:
    with running_warm(script("print(1, flush=True); input()")) as waiting:
        assert waiting.line() == "1"
        assert waiting.process.poll() is None
        assert waiting.stop(signal.SIGKILL).status == -signal.SIGKILL
        waiting.process.kill()  # which reaches nobody
        pid = waiting.process.pid
    assert ended([pid])


def test_whatever_runs_at_the_end_of_the_block_is_killed(script: Script) -> None:
    with running_warm(script("print(1, flush=True); input()")) as waiting:
        assert waiting.line() == "1"
    assert waiting.process.returncode == -signal.SIGKILL
    assert not os.path.exists(f"/proc/{waiting.process.pid}/fd/0")
