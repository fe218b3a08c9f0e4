"""Which key and subkey a path has, and which paths there cannot be."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prime_dht.filesystem.paths import (
    MAX_KEY_BYTES,
    MAX_NAME_BYTES,
    directories_above,
    directory_key,
    is_name,
    is_root,
    name_of,
    normal,
    parent_of,
    place_of,
)

PEER = "12D3KooWK99VoVxNE7XzyBwXEzW7xhK7Gpv85r9F3V3fyKSUKPH5"

names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(is_name)
paths = st.lists(names, min_size=1, max_size=5).map("/".join).filter(lambda path: not is_root(path))


@given(paths)
@settings(derandomize=True)
def test_a_name_lies_under_the_key_of_its_directory(path: str) -> None:
    if path.split("/")[0] in ("own", "group"):
        return
    place = place_of(path)
    assert place.subkey == name_of(path).encode()
    assert place.key == directory_key(parent_of(path)) == b"/prime/dir:" + parent_of(path).encode()


@given(paths, paths)
@settings(derandomize=True)
def test_two_paths_have_two_places(one: str, other: str) -> None:
    if one != other:
        assert place_of(one) != place_of(other)


@given(paths)
@settings(derandomize=True)
def test_a_normal_path_is_normal_however_many_slashes_it_had(path: str) -> None:
    assert normal(path) == path
    assert normal("//" + path.replace("/", "///") + "/") == path


def test_percent_signs_spaces_and_other_scripts_are_taken_as_they_are() -> None:
    assert place_of("à b/%2e%2e").subkey == b"%2e%2e"
    assert place_of("日本/模型.bin").key == "/prime/dir:日本".encode()


def test_each_peer_and_each_group_has_a_tree_of_its_own() -> None:
    assert place_of(f"own/{PEER}/a/b").key == f"/prime/own/{PEER}/dir:a".encode()
    assert place_of(f"group/{'0a' * 32}/b").key == f"/prime/group/{'0a' * 32}/dir:".encode()
    assert list(directories_above(f"own/{PEER}/a/b")) == [f"own/{PEER}/a"]


@pytest.mark.parametrize(
    ("path", "number"),
    [
        ("a/../b", errno.EINVAL),
        ("./b", errno.EINVAL),
        ("a/b\0c", errno.EINVAL),
        ("a/\udcff", errno.EILSEQ),
        ("é" * (MAX_NAME_BYTES // 2) + "x", errno.ENAMETOOLONG),
        ("/".join(["x" * 200] * 7), errno.ENAMETOOLONG),
        ("own/somebody/a", errno.EINVAL),
        ("group/everybody/a", errno.EINVAL),
    ],
)
def test_a_path_that_cannot_be_is_refused_with_a_reason(path: str, number: int) -> None:
    with pytest.raises(OSError, match=r".+") as raised:
        place_of(path)
    assert raised.value.errno == number
    assert raised.value.filename is not None


def test_the_longest_paths_are_taken() -> None:
    assert len(place_of("x" * MAX_NAME_BYTES).subkey) == MAX_NAME_BYTES
    deep = "/".join(["x" * 200] * 5)
    assert len(place_of(deep + "/y").key) <= MAX_KEY_BYTES
