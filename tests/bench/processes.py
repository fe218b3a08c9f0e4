"""Both ends of what is measured as processes of their own, and the most memory that each of them had."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

_PROC = Path("/proc/self")
_FORGET_PEAK = "5"  # of resident memory; see proc(5)


@contextmanager
def running(module: str, *arguments: object) -> Iterator[tuple[IO[str], IO[str]]]:
    """A module of this package as a program, by its standard input and output; it is killed at the end of the block."""
    command = [sys.executable, "-m", f"{__package__}.{module}", *map(str, arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield process.stdin, process.stdout
        finally:
            process.kill()


def forget_peak() -> None:
    """Have :func:`peak_bytes` count from now on, where the system can."""
    if _PROC.exists():
        _PROC.joinpath("clear_refs").write_text(_FORGET_PEAK)


def peak_bytes() -> int:
    """The most memory that this process had in RAM."""
    if not _PROC.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # which a child begins with its parent's
    (peak,) = (line for line in _PROC.joinpath("status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(peak.split()[1]) * 1024
