"""Whatever is moved, and wherever to: nothing is lost on the way."""

from __future__ import annotations

import errno
from random import Random
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileSystem

from prime_dht.filesystem import PrimeFileSystem

FILES = ("f", "a/f", "a/g", "a/a/f", "b/f", "b/c/g")


def holds(fs: PrimeFileSystem, top: str) -> dict[str, str]:
    """What each file under a directory holds, by its path there."""
    return {path.removeprefix(f"{top}/"): fs.cat_file(path).decode() for path in fs.find(top)}


def fill(fs: PrimeFileSystem, top: str, files: tuple[str, ...]) -> None:
    """Make files, each of which holds its first path."""
    fs.pipe({f"{top}/{path}": path.encode() for path in files})


@pytest.mark.parametrize(
    ("files", "source", "target"),
    [
        (("a/f", "b/f", "c/keep"), ["a/f", "b/f"], "c"),
        (("d/f", "d/s/g"), ["d"], ["e"]),
        (("d/a/f", "d/b/f", "e/keep"), ["d"], "e"),
        (("a/f", "a/g"), ["a/f", "a/g"], ["b"]),
        (("a/f", "a/g"), ["a/f", "a/g"], ["b", "b"]),
        (("y/f", "y/y/f"), "y/*", ""),
        (("y/y/f",), "y/", ""),
    ],
    ids=str,
)
def test_what_would_be_lost_is_not_moved(
    fs: PrimeFileSystem, top: str, files: tuple[str, ...], source: Any, target: Any
) -> None:
    def below(path: str | list[str]) -> str | list[str]:
        return f"{top}/{path}" if isinstance(path, str) else [f"{top}/{one}" for one in path]

    fill(fs, top, files)
    with pytest.raises(OSError, match=r".+") as raised:
        fs.mv(below(source), below(target), recursive=True)
    assert raised.value.errno == errno.EINVAL
    assert holds(fs, top) == {path: path for path in files}


@pytest.mark.parametrize("seed", range(4))
def test_all_that_was_there_is_there_when_something_was_moved(fs: PrimeFileSystem, top: str, seed: int) -> None:
    rng = Random(seed)
    paths = ["", "a", "a/a", "a/f", "b", "b/c", "b/f", "f", "new", "a/new", "new/new"]
    moved = 0
    for number in range(25):
        here = f"{top}/{number}"
        fill(fs, here, FILES)
        source: Any = f"{here}/{rng.choice(paths)}" + rng.choice(["", "", "/", "/*", "/**", "/*/*"])
        target: Any = f"{here}/{rng.choice(paths)}" + rng.choice(["", "", "/"])
        if rng.random() < 0.4:
            source = [source, f"{here}/{rng.choice(paths)}"]
            target = target if rng.random() < 0.5 else [target, f"{here}/{rng.choice(paths)}"]
        options: Any = {"recursive": rng.random() < 0.7, "maxdepth": rng.choice([None, None, 1])}
        try:
            fs.mv(source, target, **options)
        except OSError:
            pass
        else:
            moved += 1
        after = holds(fs, here)
        # A file that something else was moved to is gone, as it should; it is not gone without that.
        gone = set(FILES) - set(after.values())
        assert gone <= {path for path, content in after.items() if path != content}, (source, target, options)
    assert moved


@pytest.mark.parametrize("is_there", [False, True])
@pytest.mark.parametrize("source", ["d", "f"])
def test_a_name_goes_where_a_local_one_goes(
    fs: PrimeFileSystem, top: str, tmp_path_factory: pytest.TempPathFactory, source: str, is_there: bool
) -> None:
    local_root = tmp_path_factory.mktemp("local")
    local = LocalFileSystem()
    held: list[dict[str, bytes]] = []
    for each, root in ((fs, ""), (local, f"{local_root}/")):
        begin, to = f"{root}{top}-{source}", f"{root}{top}-to"
        if source == "d":
            each.makedirs(begin)
            each.pipe_file(f"{begin}/f", b"inner")
        else:
            each.pipe_file(begin, b"file")
        if is_there:
            each.makedirs(to)
        each.mv(begin, to, recursive=True)
        assert not each.exists(begin)
        held.append({path.partition(f"{top}-to")[2]: each.cat_file(path) for path in each.find(to)})
        each.rm(to, recursive=True)
    assert held[0] == held[1]


def test_a_copy_of_a_name_goes_into_a_directory_at_the_top(fs: PrimeFileSystem, top: str) -> None:
    fs.pipe_file(top, b"")
    fs.makedirs(f"{top}-to")
    fs.cp(top, f"{top}-to")
    assert fs.find(f"{top}-to") == [f"{top}-to/{top}"]
