"""What README.md shows is what happens."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from prime_dht.testing.processes import PRIME_DHT, run, running

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text()
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
ADDRESS = re.compile(r"/ip4/[\d.]+/tcp/\d+/p2p/12D3Koo[\w.]+")


def blocks(language: str) -> list[str]:
    """The fenced code blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def without_times(text: str) -> str:
    return re.sub(r"until .*", "until then", text)


def test_the_quick_start_prints_what_it_says(tmp_path: Path) -> None:
    first, second, _ = (block for block in blocks("console") if "prime-dht" in block)
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
        typed = run("bash", "-c", f"exec 2>&1\n{ADDRESS.sub(address, script)}", env={"PATH": PATH}, cwd=tmp_path)
    assert without_times(typed.out.decode()) == without_times(output)


def test_a_file_comes_back_as_it_was(tmp_path: Path) -> None:
    (shown,) = (block for block in blocks("console") if "prime-dht cat" in block)
    (tmp_path / "weights.safetensors").write_bytes(b"weights" * 500_000)
    script = "".join(f"{line[2:]}\n" for line in shown.splitlines())
    with running(*PRIME_DHT, "run", "--listen", "/ip4/127.0.0.1/tcp/0") as node:
        environment = {"PATH": PATH, "PRIME_DHT_PEER": node.line()}
        typed = run("bash", "-c", f"set -e\n{script}", env=environment, cwd=tmp_path)
    assert (typed.status, typed.out) == (0, b""), typed.err
    assert (tmp_path / "again.safetensors").exists()


def test_the_programs_run(tmp_path: Path) -> None:
    programs = [program for program in blocks("python") if "import" in program]
    assert len(programs) == 2
    for program in programs:
        with running(*PRIME_DHT, "run", "--listen", "/ip4/127.0.0.1/tcp/0") as node:
            ended = run(sys.executable, "-c", ADDRESS.sub(node.line(), program), cwd=tmp_path)
        assert ended.status == 0, ended.err
        assert ended.out == b"True b'weights'\n"


BEFORE_LEARNING = """
import numpy as np
import prime_dht
from libp2p.crypto.ed25519 import create_new_key_pair
from prime_dht.entries.capability import grant
from prime_dht.ml.aggregation import TrimmedMean, aggregate
from prime_dht.ml.rounds import RoundMember
from prime_dht.ml.tensors import spec_of

class network:
    state_dict = staticmethod(lambda: {"w": np.ones((3, 4), np.float32)})

dht = prime_dht.connect(["/ip4/127.0.0.1/tcp/1/p2p/12D3Koo..."], data_dir="data")
tensors = gradient = network.state_dict()
number, loss, batch, members = 3, 0.5, range(8), [dht.peer_id]
root = create_new_key_pair().private_key
capability = grant(root, member=dht.peer_id, expires_at_us=1 << 60, network_id="prime")
"""

AFTER_LEARNING = """
print(version.version, np.array_equal(weights["w"], tensors["w"]), start, np.allclose(mean["w"], 1))
print(committed.aggregate.tensors["w"].sum(), prime_dht.Checkpoints(dht, "run-7", every=1).restore().step)
dht.close()
"""


def test_the_learning_does_what_it_says(tmp_path: Path) -> None:
    """With one member, of whom none can be bad."""
    told = "".join(fragment for fragment in blocks("python") if "import" not in fragment).replace("bad=1", "bad=0")
    program = f"{BEFORE_LEARNING}{told}{AFTER_LEARNING}"
    with running(*PRIME_DHT, "run", "--listen", "/ip4/127.0.0.1/tcp/0") as node:
        ended = run(sys.executable, "-c", ADDRESS.sub(node.line(), program), cwd=tmp_path)
    assert (ended.status, ended.out.decode()) == (0, "1 True None True\n12.0 500\n"), ended.err


def test_a_mistake_in_a_file_is_reported_as_it_shows(tmp_path: Path) -> None:
    (shown,) = (block for block in blocks("text") if "unknown key" in block)
    (tmp_path / "node.toml").write_text("\n\n\n\n[dht]\n\nreplicaton_factor = 3\n")
    ended = run(*PRIME_DHT, "run", "--config", "node.toml", cwd=tmp_path)
    assert (ended.status, ended.err) == (2, shown)


def test_the_file_of_defaults_is_one_that_a_node_takes(tmp_path: Path) -> None:
    for command in ("config --defaults", "config --config node.toml"):
        assert f"prime-dht {command}" in TEXT
        ended = run(*PRIME_DHT, *command.split(), cwd=tmp_path)
        assert ended.status == 0, ended.err
        (tmp_path / "node.toml").write_bytes(ended.out)


def test_the_commands_that_it_names_exist() -> None:
    (commands,) = re.findall(r"^Commands:\n(.*)", run(*PRIME_DHT, "--help").out.decode(), re.MULTILINE | re.DOTALL)
    there = set(re.findall(r"^  ([a-z-]+)  ", commands, re.MULTILINE))
    named = set(re.findall(r"(?:`|\(|\$ |^)prime-dht ([a-z][a-z-]+)", TEXT, re.MULTILINE))
    assert {"run", "put", "get", "health", "swarm", "group", "config"} <= named <= there


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
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = re.findall(r"(?:`|^\$ )make ([a-z-]+)", TEXT, re.MULTILINE)
    assert {"demo", "test"} <= set(named) <= set(targets)
