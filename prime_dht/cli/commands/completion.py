"""``prime-dht completion``: the Tab key for shells."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from prime_dht.cli.ending import emit

COMPLETE_VARIABLE = "_PRIME_DHT_COMPLETE"
"""Where the script says what is to be completed; click looks for it before it runs a command."""


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print a script that completes commands and options when you press Tab.

    \b
    bash, in ~/.bashrc:
      eval "$(prime-dht completion bash)"
    zsh, in ~/.zshrc, below compinit:
      eval "$(prime-dht completion zsh)"
    fish, once:
      prime-dht completion fish > ~/.config/fish/completions/prime-dht.fish
    """
    complete = get_completion_class(shell)
    assert complete is not None
    script = complete(ctx.find_root().command, {}, "prime-dht", COMPLETE_VARIABLE).source()
    emit(f"{script}\n".encode())
