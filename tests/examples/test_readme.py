"""What README.md shows is what happens."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import MISSING, fields
from enum import Enum
from pathlib import Path

import pytest

from prime_dht import DhtConfig, NodeConfig
from prime_dht.testing.processes import PRIME_DHT, run, running

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text()
ADDRESS = re.compile(r"/ip4/[\d.]+/tcp/\d+/p2p/12D3Koo[\w.]+")


def blocks(language: str) -> list[str]:
    """The fenced code blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def without_times(text: str) -> str:
    return re.sub(r"until .*", "until then", text)


def test_the_quick_start_prints_what_it_says(tmp_path: Path) -> None:
    first, second = (block for block in blocks("console") if "prime-dht" in block)
    command, shown = first.splitlines()
    assert command.startswith("$ prime-dht run ")
    with running(PRIME_DHT[0], *command.split()[2:], cwd=tmp_path) as node:
        address = node.line()
        assert ADDRESS.fullmatch(shown)
        assert ADDRESS.fullmatch(address)
        script = "".join(f"{line[2:]}\n" for line in second.splitlines() if line.startswith("$ "))
        output = "".join(f"{line}\n" for line in second.splitlines() if not line.startswith("$ "))
        # A terminal begins a line of its own for the prompt that follows a value without a newline.
        script = script.replace("get greeting", "get greeting; echo")
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        typed = run("bash", "-c", f"exec 2>&1\n{ADDRESS.sub(address, script)}", env={"PATH": path}, cwd=tmp_path)
    assert without_times(typed.out.decode()) == without_times(output)


def test_the_program_runs(tmp_path: Path) -> None:
    (program,) = blocks("python")
    with running(*PRIME_DHT, "run", "--listen", "/ip4/127.0.0.1/tcp/0") as node:
        ended = run(sys.executable, "-c", ADDRESS.sub(node.line(), program), cwd=tmp_path)
    assert ended.status == 0, ended.err
    assert ended.out.startswith(b"True Found(key=b'/prime/model:digits'")


@pytest.mark.parametrize("config", [NodeConfig, DhtConfig])
def test_its_table_of_a_configuration_has_every_field_and_default(config: type[NodeConfig] | type[DhtConfig]) -> None:
    table = TEXT.partition(f"\n`{config.__name__}` is ")[2].partition("| field | default | meaning |\n|---|---|---|\n")[
        2
    ]
    rows = [row.split(" | ", 2) for row in table.partition("\n\n")[0].splitlines()]
    shown = {name.strip("| `"): default.strip("`") for name, default, _ in rows}
    defaults = {}
    for each in fields(config):
        if each.default_factory is not MISSING:
            defaults[each.name] = f"{type(each.default_factory()).__name__}()"
        else:
            defaults[each.name] = str(each.default) if isinstance(each.default, Enum) else repr(each.default)
    assert shown == defaults


def test_its_layers_are_those_that_make_check_enforces() -> None:
    (layers,) = re.findall(r"^layers = \[\n(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL)
    enforced = re.findall(r"\w+", layers)
    (diagram,) = (block for block in blocks("text") if "prime-dht command" in block)
    shown = [name for row in diagram.splitlines() for name in row[:21].split()]
    assert shown == enforced


def test_the_files_that_it_links_to_exist() -> None:
    links = re.findall(r"\]\((?!https?:)([^)]+)\)", TEXT)
    assert links
    assert all((ROOT / link).exists() for link in links), links


def test_the_make_targets_that_it_names_exist() -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = re.findall(r"(?:`|^\$ )make ([a-z]+)", TEXT, re.MULTILINE)
    assert {"demo", "test"} <= set(named) <= set(targets)
