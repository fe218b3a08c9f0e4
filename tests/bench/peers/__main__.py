"""``python -m tests.bench.peers``: install the peers, measure them and us, print tables, write JSON."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import venv
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..tables import Row, Table, render

ROOT = Path(__file__).parents[3]
ENVIRONMENTS = ROOT / ".venv-peers"
INSTALL_TIMEOUT_S = 1200
MEASURE_TIMEOUT_S = 600

OURS = {"put": "put", "get": "get, quorum 1"}
AIMS = {
    ("hivemind", "put"): 15.0,
    ("hivemind", "get"): 10.0,
    ("opendht", "put"): 1.0,
    ("opendht", "get"): 1.0,
    ("kad_dht", "put"): 200.0,
    ("kad_dht", "get"): 200.0,
}
"""How many times as many operations per second ours is to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """A peer.

    Attributes:
        name: on the package index, and of its environment.
        requirement: what pip installs.
        module: in this package, measures it.
        size: what a person should know before it is installed.
    """

    name: str
    requirement: str
    module: str
    size: str


PACKAGES = (
    Package(name="kademlia", requirement="kademlia>=2.2,<3", module="kademlia_udp", size="a few MB"),
    Package(name="opendht", requirement="opendht>=4,<5", module="opendht_udp", size="about 20 MB"),
    Package(name="hivemind", requirement="hivemind>=1.1.10,<2", module="hivemind_dht", size="PyTorch, up to 6 GB"),
)


class UnavailableError(Exception):
    """A peer cannot be measured; the message says why."""


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.peers", description=__doc__)
    names = [package.name for package in PACKAGES]
    parser.add_argument("--only", action="append", choices=names, help="this peer alone; may be given again")
    parser.add_argument("--quick", action="store_true", help="a moment of each, to see that it works")
    parser.add_argument("--json", type=Path, default=Path("bench/peers.json"), help="where results go (%(default)s)")
    options = parser.parse_args(arguments)
    packages = [package for package in PACKAGES if not options.only or package.name in options.only]

    unavailable: list[Row] = []
    installed = []
    for package in packages:
        try:
            _install(package)
        except UnavailableError as error:
            unavailable.append({"peer": package.name, "why": str(error)})
        else:
            installed.append(package)

    ours = [_measure_ours(quick=options.quick)]
    rows: list[dict[str, Any]] = []
    for package in installed:
        try:
            rows += _measure(package, quick=options.quick)
        except UnavailableError as error:
            unavailable.append({"peer": package.name, "why": str(error)})
    ours.append(_measure_ours(quick=options.quick))

    tables = [
        Table(
            name="peers",
            title="16 nodes on loopback, 1 KiB random values; ours is the mean of a run before and one after",
            rows=_compare(ours, rows),
        )
    ]
    if unavailable:
        tables.append(Table(name="skipped", title="Not measured", rows=unavailable))
    for table in tables:
        print(f"\n{render(table)}")
    results = {
        "environment": ours[0]["environment"],
        "quick": options.quick,
        "tables": {table.name: asdict(table) for table in tables},
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    print(f"\nwritten to {options.json}")


def _install(package: Package) -> None:
    """Make a peer's environment unless it is there.

    Raises:
        UnavailableError: it cannot be made; nothing is left of it.
    """
    environment = ENVIRONMENTS / package.name
    done = environment / ".installed"
    if done.exists():
        return
    print(f"installing {package.name} into {environment.relative_to(ROOT)} (once; {package.size})", flush=True)
    venv.create(environment, with_pip=True, clear=True)
    command = [environment / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    try:
        _run([*map(str, command), package.requirement], timeout_s=INSTALL_TIMEOUT_S)
    except UnavailableError as error:
        raise UnavailableError(f"pip cannot install it: {error}") from error
    done.touch()


def _measure(package: Package, *, quick: bool) -> list[dict[str, Any]]:
    print(f"measuring {package.name}", flush=True)
    python = ENVIRONMENTS / package.name / "bin" / "python"
    scale = ["--rounds", "1", "--operations", "40"] if quick else []
    output = _run([str(python), "-m", f"tests.bench.peers.{package.module}", *scale], timeout_s=MEASURE_TIMEOUT_S)
    result = json.loads(output.splitlines()[-1])
    return [{"package": package.name, **row, "peer": f"{row['peer']} ({result['version']})"} for row in result["rows"]]


def _measure_ours(*, quick: bool) -> dict[str, Any]:
    """What ``python -m tests.bench`` measures of our nodes and of py-libp2p's."""
    print("measuring prime_dht and py-libp2p's kad_dht", flush=True)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "ours.json"
        suites = ["--only", "operations", "--only", "kad_dht", "--json", str(path)]
        command = [sys.executable, "-m", "tests.bench", *suites, *(["--quick"] if quick else [])]
        _run(command, timeout_s=MEASURE_TIMEOUT_S)
        loaded: dict[str, Any] = json.loads(path.read_text())
        return loaded


def _run(command: Sequence[str], *, timeout_s: float) -> str:
    """A command's standard output. What it starts ends with it, also what it forgot to end.

    Raises:
        UnavailableError: it fails, or takes too long.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            output, errors = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired as error:
            raise UnavailableError(f"not done within {timeout_s:g} s") from error
        finally:
            _end_session(process.pid)
    if process.returncode:
        last = (errors.strip().splitlines() or ["it says nothing"])[-1]
        raise UnavailableError(f"exit status {process.returncode}: {last[:160]}")
    return output


def _end_session(leader: int) -> None:
    with suppress(ProcessLookupError):  # mostly nothing is left
        os.killpg(leader, signal.SIGKILL)


def _compare(ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Our rows, then theirs, each with how many times as many operations per second ours does."""
    per_s: dict[tuple[str, int], float] = {}
    rows: list[Row] = []
    for operation, name in OURS.items():
        for in_flight in (1, 32):
            runs = [_row(run, "operations", name, in_flight) for run in ours]
            per_s[operation, in_flight] = sum(run["per_s"] for run in runs) / len(runs)
            mean = {column: sum(run[column] for run in runs) / len(runs) for column in ("p50_ms", "p99_ms", "cpu_ms")}
            rows.append(_table_row("prime_dht", operation, in_flight, {**mean, "per_s": per_s[operation, in_flight]}))
    kad_dht = [
        {"package": "kad_dht", "peer": "py-libp2p's kad_dht", **row, "operation": row["operation"].split()[-1]}
        for row in ours[0]["tables"]["kad_dht"]["rows"]
        if "per_s" in row
    ]
    for row in [*kad_dht, *theirs]:
        operation, in_flight = row["operation"], row["in_flight"]
        times = per_s[operation, in_flight] / row["per_s"]
        aim = AIMS.get((row["package"], operation))
        rows.append(_table_row(row["peer"], operation, in_flight, row, times=times, aim=aim))
    return rows


def _row(run: Mapping[str, Any], table: str, operation: str, in_flight: int) -> Mapping[str, Any]:
    found: Mapping[str, Any] = next(
        row for row in run["tables"][table]["rows"] if (row["operation"], row["in_flight"]) == (operation, in_flight)
    )
    return found


def _table_row(
    peer: str,
    operation: str,
    in_flight: int,
    measured: Mapping[str, float],
    *,
    times: float | None = None,
    aim: float | None = None,
) -> Row:
    return {
        "peer": peer,
        "operation": operation,
        "in_flight": in_flight,
        **{column: measured[column] for column in ("p50_ms", "p99_ms", "per_s", "cpu_ms")},
        "ours_times_theirs": times,
        "aim_at_least": aim,
    }


if __name__ == "__main__":
    main()
