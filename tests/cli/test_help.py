"""What every command says of itself."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from prime_dht.cli import main
from prime_dht.cli.app import prime_dht
from prime_dht.testing.processes import run


def commands(group: click.Group, path: str = "prime-dht") -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield f"{path} {name}", command
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}")


ALL = dict(commands(prime_dht))


@pytest.mark.parametrize("path", ALL)
def test_each_command_has_a_summary_a_help_for_each_option_and_an_example(path: str) -> None:
    command = ALL[path]
    assert command.help is not None
    assert path in command.help, "an example"
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name


@pytest.mark.parametrize("path", ["prime-dht", "prime-dht group", "prime-dht store"])
def test_who_names_no_command_is_told_of_all_and_that_one_was_missing(
    path: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(path.split()[1:]) == 2
    told = capfd.readouterr()
    assert (told.out, told.err.startswith(f"Usage: {path} ")) == ("", True)
    assert "\nCommands:\n" in told.err


@pytest.mark.parametrize("package", ["prime_dht", "prime_dht.cli"])
def test_the_package_run_as_a_program_is_the_command(package: str) -> None:
    ended = run(sys.executable, "-m", package, "nothing")
    assert (ended.status, ended.out) == (2, b"")
    assert ended.err == "prime-dht: No such command 'nothing' (see prime-dht --help)\n"


def test_every_command_that_a_person_needs_is_there() -> None:
    needed = (
        "run put get get-all delete add cat pin unpin blobs gc lookup ping peers id provide providers health swarm "
        "config completion group store"
    )
    assert {f"prime-dht {name}" for name in needed.split()} <= set(ALL)
    assert {f"prime-dht group {name}" for name in ("create", "invite", "show")} <= set(ALL)


@pytest.mark.parametrize("path", [path for path in ALL if " store" not in path and path != "prime-dht group"])
def test_what_has_a_result_can_give_it_as_json(path: str) -> None:
    flags = {flag for parameter in ALL[path].params for flag in parameter.opts}
    assert "--json" in flags or path in ("prime-dht run", "prime-dht completion")


@pytest.mark.parametrize(
    ("arguments", "done_without"),
    [
        ("--help", {"libp2p", "trio", "numpy", "prime_dht.node"}),
        ("completion bash", {"libp2p", "trio", "numpy", "prime_dht.node"}),
        ("config", {"libp2p", "trio", "numpy", "prime_dht.node"}),
        ("id --data-dir .", {"numpy", "prime_dht.node"}),
    ],
)
def test_what_asks_no_swarm_does_not_wait_for_the_import_of_what_does(
    arguments: str, done_without: set[str], tmp_path: Path
) -> None:
    program = "import sys; from prime_dht.cli import main; main(sys.argv[1:]); print(*sys.modules, file=sys.stderr)"
    ended = run(sys.executable, "-c", program, *arguments.split(), cwd=tmp_path)
    assert ended.out
    assert not done_without & set(ended.err.split())
