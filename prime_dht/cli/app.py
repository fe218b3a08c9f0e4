"""The ``prime-dht`` command itself: finds subcommands, and turns whatever ends them into a status and a line."""

from __future__ import annotations

import importlib
import logging
import pkgutil
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress

import click
from click.core import ParameterSource

from prime_dht.cli import commands
from prime_dht.cli.ending import EndedBySignal, Status, complain, expected, signal_in

logger = logging.getLogger(__name__)


class Subcommands(click.Group):
    """The modules of :mod:`prime_dht.cli.commands`, imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return [module.name.replace("_", "-") for module in pkgutil.iter_modules(commands.__path__)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        module = importlib.import_module(f"{commands.__name__}.{cmd_name.replace('-', '_')}")
        command = module.command
        assert isinstance(command, click.Command)
        return command


@click.group(
    cls=Subcommands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="prime-dht", prog_name="prime-dht", message="%(prog)s %(version)s")
def prime_dht() -> None:
    """Run a node of a prime_dht swarm, put values into the swarm, get them out.

    \b
    Examples:
      prime-dht run --data-dir ./data            start a node; it prints its addresses
      prime-dht put greeting hello --peer ADDR   store a value through that node
      prime-dht get greeting --peer ADDR         read it back
      prime-dht add weights.bin --peer ADDR      store a file of any size; it prints the CID, for cat
      prime-dht swarm 20                         twenty nodes on this machine, to try things with
      prime-dht config --defaults > node.toml    a file with every setting, for --config
      eval "$(prime-dht completion bash)"        the Tab key completes from now on

    \b
    Exit status:
      0  done
      1  not found; or, of ping, health, group show, store check and import, something is wrong
      2  a mistake in the arguments, or something failed: one line on standard error says what
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``prime-dht``; ``arguments`` are those of the process by default. Returns the exit status."""
    try:
        status: int | None = prime_dht.main(arguments, prog_name="prime-dht", standalone_mode=False)
        return status or Status.DONE
    except EndedBySignal as ended:
        return ended.status
    except (KeyboardInterrupt, click.Abort):
        return EndedBySignal(signal.SIGINT).status
    except click.exceptions.NoArgsIsHelpError as error:  # a group of commands alone; its help names them
        with suppress(OSError):
            error.show()
        return Status.FAILED
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx is not None else _command_path(arguments or sys.argv[1:])
        complain(f"{_told(error).rstrip('.')} (see {command} --help)", level=logging.ERROR)
        return Status.FAILED
    except click.ClickException as error:
        complain(error.format_message(), level=logging.ERROR)
        return Status.FAILED
    except Exception as error:  # a person at a terminal is owed one line, whatever happened; -v shows where
        if (ended_within := signal_in(error)) is not None:
            return ended_within.status
        if (message := expected(error)) is not None:
            complain(message, level=logging.ERROR)
            return Status.FAILED
        complain(f"this is a bug in prime_dht, please report it: {error!r} (-v shows where)", level=logging.CRITICAL)
        logger.debug("where it happened:", exc_info=error)
        return Status.BUG


def _told(error: click.UsageError) -> str:
    """What is wrong, with the variable of the environment instead of the option whose value it gave."""
    if isinstance(error, click.BadParameter) and error.ctx is not None and error.param is not None:
        name, variable = error.param.name, error.param.envvar
        if name and variable and error.ctx.get_parameter_source(name) is ParameterSource.ENVIRONMENT:
            return f"{variable}: {error.message}"
    return error.format_message()


def _command_path(arguments: Sequence[str]) -> str:
    """The subcommand that arguments are for; click does not say it of an option that lacks its argument."""
    path = "prime-dht"
    command: click.Command = prime_dht
    for word in arguments:
        found = command.get_command(click.Context(command), word) if isinstance(command, click.Group) else None
        if found is None:
            break
        path, command = f"{path} {word}", found
    return path
