"""``prime-dht`` and the examples as a user runs them: real processes, real signals, real pipes.

:func:`run` and :func:`running` start them as a shell does. What says *warm* forks them, four times as quick, from a
process that has imported libp2p: :mod:`prime_dht.testing.warm`. It is for tests of what a process does once it has
imported what it needs.

Nothing here sleeps: it waits for lines and exits, and a process that keeps it waiting too long is killed, which shows
as a missing line or a wrong exit status.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from prime_dht.testing.warm import Fork

TIMEOUT_S = 240.0
"""Generous: it only has to end tests that would hang."""

PRIME_DHT = (str(Path(sys.executable).with_name("prime-dht")),)
"""The console script that an install puts beside the interpreter."""

LOOPBACK = "/ip4/127.0.0.1/tcp/0"


@dataclass(frozen=True, slots=True)
class Ended:
    """What a process left behind."""

    status: int
    out: bytes
    err: str


def run(*command: str, stdin: bytes = b"", env: dict[str, str] | None = None, cwd: Path | None = None) -> Ended:
    """Run a command to its end. It sees ``env`` and the test's environment, except for settings of prime-dht."""
    done = subprocess.run(  # noqa: S603
        command, input=stdin, capture_output=True, timeout=TIMEOUT_S, env=_environment(env), cwd=cwd, check=False
    )
    return Ended(done.returncode, done.stdout, done.stderr.decode())


def prime_dht(*arguments: str, stdin: bytes = b"", env: dict[str, str] | None = None, cwd: Path | None = None) -> Ended:
    """Run ``prime-dht``, warm, to its end."""
    return run_warm(*PRIME_DHT, *arguments, stdin=stdin, env=env, cwd=cwd)


def run_warm(
    script: str, *arguments: str, stdin: bytes = b"", env: dict[str, str] | None = None, cwd: Path | None = None
) -> Ended:
    """Run a Python script, warm, to its end. It sees the environment that :func:`run` would give it."""
    with running_warm(script, *arguments, env=env, cwd=cwd) as started:
        return started.exchange(stdin)


class Running:
    """A process that runs for now.

    Attributes:
        process: it, with pipes for its standard streams.
    """

    def __init__(self, process: subprocess.Popen[bytes] | Fork) -> None:
        self.process = process

    def line(self) -> str:
        """The next line of its standard output, without the newline; empty if it ends instead."""
        return self._next(self.process.stdout)

    def error_line(self) -> str:
        """The next line of its standard error."""
        return self._next(self.process.stderr)

    def line_with(self, text: str) -> str:
        """The next line of its standard output that contains a text; empty if it ends before."""
        with self._watched():
            assert self.process.stdout is not None
            for line in self.process.stdout:
                if text in line.decode():
                    return line.decode().rstrip("\n")
        return ""

    def stop(self, signum: int) -> Ended:
        """Send it a signal and wait until it ends; what it has written since is in the result."""
        self.process.send_signal(signum)
        return self.end()

    def end(self) -> Ended:
        """Wait until it ends by itself; its standard input stays open."""
        with self._watched():
            streams = (self.process.stdout, self.process.stderr)
            out, err = (b"" if stream is None else stream.read() for stream in streams)
            return Ended(self.process.wait(), out, err.decode())

    def status(self) -> int:
        """Wait until it ends by itself, though nobody reads what it writes."""
        with self._watched():
            return self.process.wait()

    def exchange(self, stdin: bytes) -> Ended:
        """Write all of its standard input, close that, and wait until it ends."""
        with self._watched():
            out, err = self.process.communicate(stdin)
            return Ended(self.process.wait(), out, err.decode())

    def _next(self, stream: IO[bytes] | None) -> str:
        assert stream is not None
        with self._watched():
            return stream.readline().decode().rstrip("\n")

    @contextmanager
    def _watched(self) -> Iterator[None]:
        watchdog = threading.Timer(TIMEOUT_S, self.process.kill)
        watchdog.start()
        try:
            yield
        finally:
            watchdog.cancel()


@contextmanager
def running(
    *command: str,
    stdout: int | IO[bytes] = subprocess.PIPE,
    stderr: int | IO[bytes] = subprocess.PIPE,
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
) -> Iterator[Running]:
    """A command in the background; it is killed at the end of the block if it still runs."""
    with subprocess.Popen(  # noqa: S603
        command, stdin=subprocess.PIPE, stdout=stdout, stderr=stderr, env=_environment(env), cwd=cwd
    ) as process:
        try:
            yield Running(process)
        finally:
            process.kill()


@contextmanager
def running_warm(
    script: str, *arguments: str, env: dict[str, str] | None = None, cwd: Path | None = None
) -> Iterator[Running]:
    """A Python script, warm, in the background; it is killed at the end of the block if it still runs."""
    with Fork(script, *arguments, env=_environment(env), cwd=cwd) as process:
        try:
            yield Running(process)
        finally:
            process.kill()


@contextmanager
def running_node(*arguments: str) -> Iterator[tuple[Running, str]]:
    """``prime-dht run``, warm, that is ready, and its address."""
    with running_warm(*PRIME_DHT, "run", "--listen", LOOPBACK, *arguments) as node:
        address = node.line()
        assert address, node.end().err
        yield node, address


def ended(pids: Sequence[int]) -> bool:
    """Wait until processes, not necessarily children, have ended; ``False`` if that takes too long."""
    for pid in pids:
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            if not select.select([descriptor], [], [], TIMEOUT_S)[0]:
                return False
        finally:
            os.close(descriptor)
    return True


def _environment(env: dict[str, str] | None) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PRIME_DHT_")}
    return {**inherited, **(env or {})}
