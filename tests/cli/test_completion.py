"""``prime-dht completion``, and what its scripts ask when somebody presses Tab."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from prime_dht.testing.processes import PRIME_DHT, Ended, prime_dht, run


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_has_the_shell_ask_this_command(shell: str) -> None:
    script = prime_dht("completion", shell)
    assert (script.status, script.err) == (0, "")
    assert f"_PRIME_DHT_COMPLETE={shell}_complete".encode() in script.out


def completions(*words: str) -> list[str]:
    """What bash is told for a command line whose last word is incomplete."""
    env = {
        "_PRIME_DHT_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(("prime-dht", *words)),
        "COMP_CWORD": str(len(words)),
    }
    answer = prime_dht(env=env)
    assert (answer.status, answer.err) == (0, "")
    return answer.out.decode().split()


def test_commands_options_and_choices_are_completed() -> None:
    assert {"plain,get", "plain,get-all"} <= set(completions("ge"))
    assert "plain,--mdns" in completions("run", "--m")
    assert completions("run", "--log-format", "j") == ["plain,json"]
    assert completions("completion", "f") == ["plain,fish"]


def test_the_script_completes_in_bash() -> None:
    press_tab = "COMP_WORDS=(prime-dht ru); COMP_CWORD=1; _prime_dht_completion prime-dht; echo ${COMPREPLY[@]}"
    path = f"{Path(PRIME_DHT[0]).parent}:{os.environ['PATH']}"
    answer = run("bash", "-c", f'eval "$(prime-dht completion bash)"; {press_tab}', env={"PATH": path})
    assert answer == Ended(0, b"run\n", "")
