"""The examples that share models and checkpoints, each in processes of its own."""

from __future__ import annotations

import sys
from pathlib import Path

from prime_dht.testing.processes import run, run_warm, running_node

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name: str) -> str:
    return str(EXAMPLES / name)


def test_share_model_pulls_what_another_process_trained_and_pushed(tmp_path: Path) -> None:
    env = {"XDG_CACHE_HOME": str(tmp_path)}
    with running_node() as (_, address):
        pushed = run_warm(example("share_model.py"), "push", address, env=env, cwd=tmp_path)
        assert pushed.status == 0, pushed.err
        *rounds, last = pushed.out.decode().splitlines()
        assert [line.partition(":")[0] for line in rounds] == [f"round {number}" for number in range(1, 9)]
        assert (tmp_path / "accuracy_by_round.png").read_bytes().startswith(b"\x89PNG")
        said, _, accuracy = last.rpartition(" ")
        assert said == "pushed version 1: 19,210 parameters, accuracy"
        assert float(accuracy.rstrip("%")) > 95
        pulled = run_warm(example("share_model.py"), "pull", address, env=env)
        assert pulled.status == 0, pulled.err
        listed, used = pulled.out.decode().splitlines()
        assert listed.startswith("version 1: 64-256-10, ReLU, {'accuracy': 0.9")
        assert used == f"pulled version 1: accuracy {accuracy}"
        assert "spreading 77,136 of 77,136 bytes" in pushed.err
        assert "fetching 77,136 of 77,136 bytes" in pulled.err


def test_torch_checkpoint_without_torch_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError")
    ended = run(
        sys.executable, example("torch_checkpoint.py"), "/ip4/127.0.0.1/tcp/1", env={"PYTHONPATH": str(tmp_path)}
    )
    assert (ended.status, ended.out) == (2, b"")
    assert ended.err == "torch_checkpoint.py needs torch: pip install torch\n"


def test_a_mistake_is_one_line() -> None:
    ended = run_warm(example("share_model.py"), "pull", "typo")
    assert ended.status == 1
    assert "typo" in ended.err
    assert ended.err.count("\n") == 1
