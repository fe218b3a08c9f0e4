"""``examples/demo.py`` does what it shows, notices when it does not, and leaves nothing behind however it ends."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from prime_dht.testing.processes import Ended, Running, ended, run, running

EXAMPLES = Path(__file__).parents[2] / "examples"
README = Path(__file__).parents[2] / "README.md"


def shape(table: str) -> list[str]:
    """The rows of a table without what differs from run to run: numbers and column widths."""
    return [" ".join(re.sub(r"\d[\d,.]*", "N", row).split()) for row in table.strip().splitlines()]


def processes_in(row: str) -> list[int]:
    pids = [int(word) for word in row.partition("pids")[2].split()]
    assert len(pids) == 5
    return pids


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ended, Path]:
    """The demo run to its end, and the directory where it may keep files meanwhile."""
    directory = tmp_path_factory.mktemp("demo")
    # What a user has set for nodes of their own must not matter.
    env = {"TMPDIR": str(directory), "PRIME_DHT_PEER": "/ip4/127.0.0.1/tcp/1/p2p/typo"}
    return run(sys.executable, str(EXAMPLES / "demo.py"), env=env), directory


def test_it_succeeds_and_its_table_is_the_one_in_the_readme(whole: tuple[Ended, Path]) -> None:
    demo, _ = whole
    assert (demo.status, demo.err) == (0, "")
    shown = README.read_text().partition("$ make demo\n")[2].partition("```")[0]
    assert shape(demo.out.decode()) == shape(shown)


def test_its_table_fits_a_terminal_of_80_columns(whole: tuple[Ended, Path]) -> None:
    assert max(len(row) for row in whole[0].out.decode().splitlines()) <= 80


def test_it_leaves_no_process_and_no_file(whole: tuple[Ended, Path]) -> None:
    demo, directory = whole
    assert ended(processes_in(demo.out.decode().splitlines()[1]))
    assert list(directory.iterdir()) == []


@contextmanager
def staying(directory: Path) -> Iterator[tuple[Running, list[int]]]:
    """The demo when it is over but its nodes still run, and the processes of its nodes."""
    with running(sys.executable, str(EXAMPLES / "demo.py"), "--stay", env={"TMPDIR": str(directory)}) as demo:
        pids = processes_in(demo.line_with("pids"))
        assert demo.line_with("prime-dht get")
        yield demo, pids


def test_ctrl_c_ends_it_and_its_nodes_and_removes_its_files(tmp_path: Path) -> None:
    with staying(tmp_path) as (demo, pids):
        assert demo.stop(signal.SIGINT) == Ended(130, b"", "")
        assert ended(pids)
    assert list(tmp_path.iterdir()) == []


def test_its_nodes_stop_even_when_it_is_killed(tmp_path: Path) -> None:
    with staying(tmp_path) as (demo, pids):
        demo.stop(signal.SIGKILL)
        assert ended(pids)


def test_sigterm_ends_it_while_its_nodes_start(tmp_path: Path) -> None:
    with running(sys.executable, str(EXAMPLES / "demo.py"), env={"TMPDIR": str(tmp_path)}) as demo:
        assert demo.line_with("train")
        assert demo.stop(signal.SIGTERM).status == 143
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("fault", "row"),
    [
        ("demo.NODES = 3; demo.load = lambda file: demo.digits.initial()", "answers differently"),
        ("demo.sys.executable = '/no/such/python'", "start 5 nodes"),
    ],
    ids=["another model comes back", "nodes do not start"],
)
def test_a_step_that_fails_is_named_and_the_status_says_so(fault: str, row: str, tmp_path: Path) -> None:
    script = f"import sys; sys.path.insert(0, {str(EXAMPLES)!r}); import demo; {fault}; sys.exit(demo.main())"
    failed = run(sys.executable, "-c", script, env={"TMPDIR": str(tmp_path)})
    assert failed.status == 1
    assert row in failed.err
    assert "Traceback" not in failed.err
    assert failed.out.decode().endswith("FAILED\n")
    assert list(tmp_path.iterdir()) == []
