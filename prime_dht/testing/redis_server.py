"""A real Redis server for tests: a process on loopback, whose data lies in a directory of its own."""

from __future__ import annotations

import signal
import socket
import subprocess
from pathlib import Path
from typing import Self

EXECUTABLE = "redis-server"
CLIENT = "redis-cli"


class RedisServer:
    """A ``redis-server`` that can be killed and started again, with the same port and data; ends with its block.

    It keeps an append-only file and waits for the disk with each write, unless ``settings`` say otherwise; these are
    Redis's own, with ``_`` for ``-``.
    """

    def __init__(self, directory: Path, **settings: str) -> None:
        self.port = free_port()
        self._settings = {
            "port": str(self.port),
            "bind": "127.0.0.1",
            "dir": str(directory),
            "save": "",
            "appendonly": "yes",
            "appendfsync": "always",
        } | settings
        self._process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Start, and wait until it accepts connections.

        Raises:
            RuntimeError: it ended instead.
        """
        options = (word for name, value in self._settings.items() for word in (f"--{name.replace('_', '-')}", value))
        process = subprocess.Popen([EXECUTABLE, *options], stdout=subprocess.PIPE, text=True)  # noqa: S603
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if "Ready to accept connections" in line:
                self._process = process
                return
        process.wait()
        process.stdout.close()
        raise RuntimeError(f"redis-server ended: {''.join(said)}")

    def kill(self) -> None:
        """End it with SIGKILL, and wait for that."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None

    def suspend(self) -> None:
        """Let it do nothing until it is resumed. What is sent to it meanwhile it finds then."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def command(self, *words: str) -> str:
        """Have a command carried out by Redis's own client, and return what it prints."""
        command = [CLIENT, "-p", str(self.port), "--no-auth-warning", *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()  # noqa: S603


def free_port() -> int:
    """A port on loopback that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
