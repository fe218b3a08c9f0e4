"""The lines of keys, against documents that were put together knowing them, and against what tomllib finds."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prime_dht.settings.toml_lines import KeyPath, lines_of_keys

BARE = st.text("abcXYZ019_-", min_size=1, max_size=4)
KEYS = BARE | st.text(st.characters(codec="utf-8", exclude_characters="\x7f"), max_size=6)
BLANKS = st.sampled_from(["", " ", "\t", "  "])
COMMENTS = st.sampled_from(["", " # a = 1", "# [x]", ' # """', "#"])
VALUES = st.sampled_from(
    [
        "1",
        "1979-05-27 07:32:00Z",
        "-inf",
        "true",
        '"# no comment"',
        r'"a \" = b"',
        r'"\\"',
        "'C:\\'",
        "''",
        '""',
        '"""\n[t]\na = 1\n"""',
        '""""two"" at the start and five at the end"""""',
        r'"""a \""" b"""',
        '""""""',
        "'''\nx = 1\n''''",
        "''''''''",
        "[]",
        "[ \"]\", # ]\n  '[',\n\n 2 ]",
        "[[1, 2], [{ inner = [\n3] }]]",
        "[ 1,\n 2,\n]",
        "{}",
        "{ }",
    ]
)


def spelled(key: str, quoted: int) -> str:
    """A key as it may stand in a document."""
    if key and not set(key) - set("abcXYZ019_-") and quoted == 0:
        return key
    if quoted == 1 and key.isprintable() and "'" not in key:
        return f"'{key}'"
    return (
        '"' + "".join(f"\\U{ord(char):08x}" if char in '"\\' or not char.isprintable() else char for char in key) + '"'
    )


@st.composite
def documents(draw: st.DrawFn) -> tuple[str, dict[KeyPath, int]]:
    """A document, and the line of each of its keys outside of values."""
    lines: dict[KeyPath, int] = {}
    text = ""

    def dotted(table: KeyPath, parts: list[str]) -> str:
        for end in range(1, len(parts) + 1):
            lines.setdefault((*table, *parts[:end]), text.count("\n") + 1)
        dot = draw(BLANKS) + "." + draw(BLANKS)
        return dot.join(spelled(part, draw(st.integers(0, 2))) for part in parts)

    tables = draw(st.lists(KEYS, unique=True, max_size=3))
    for table in (None, *tables):
        path: KeyPath = ()
        if table is not None:
            rest = draw(st.lists(KEYS, max_size=2))
            brackets = draw(st.sampled_from(["[]", "[[]]"]))
            half = len(brackets) // 2
            header = dotted((), [table, *rest])
            text += f"{brackets[:half]}{draw(BLANKS)}{header}{draw(BLANKS)}{brackets[half:]}{draw(COMMENTS)}\n"
            path = (table, *rest)
        for key in draw(st.lists(KEYS.filter(lambda key: key not in tables), unique=True, max_size=4)):
            text += draw(BLANKS) + draw(COMMENTS) + "\n" + draw(BLANKS)
            name = dotted(path, [key, *draw(st.lists(KEYS, max_size=2))])
            text += f"{name}{draw(BLANKS)}={draw(BLANKS)}{draw(VALUES)}{draw(COMMENTS)}\n"
    return text, lines


def paths(table: dict[str, object], around: KeyPath = ()) -> Iterator[KeyPath]:
    """Of every key, the elements of arrays taken for one."""
    for key, value in table.items():
        yield (*around, key)
        inner = [value]
        while inner:
            match inner.pop():
                case dict() as below:
                    yield from paths(below, (*around, key))
                case list() as elements:
                    inner += elements
                case _:
                    pass


@settings(derandomize=True, deadline=None)
@given(documents(), st.booleans())
def test_each_key_is_found_on_its_line(document: tuple[str, dict[KeyPath, int]], windows: bool) -> None:
    text, expected = document
    found = lines_of_keys(text.replace("\n", "\r\n") if windows else text)
    assert found.keys() == set(paths(tomllib.loads(text)))
    assert {path: found[path] for path in expected} == expected


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ("", {}),
        ("\n\n# a = 1", {}),
        ("a = 1", {("a",): 1}),
        (
            "a = {b = [\n1,\n], c.d = 2}\ne = 3",
            {("a",): 1, ("a", "b"): 1, ("a", "c"): 3, ("a", "c", "d"): 3, ("e",): 4},
        ),
        ("[a]\n[a.b]\nc = 1\n[d]", {("a",): 1, ("a", "b"): 2, ("a", "b", "c"): 3, ("d",): 4}),
        ("[[a]]\nb = 1\n[[a]]\nb = 2\nc = 3", {("a",): 1, ("a", "b"): 2, ("a", "c"): 5}),
        ('a = """\n\\"""\nb = 1\n"""\nc = 2', {("a",): 1, ("c",): 5}),
        ("'a.b' . \"c\\n\" = 1", {("a.b",): 1, ("a.b", "c\n"): 1}),
        ("3.14159 = 'pi'", {("3",): 1, ("3", "14159"): 1}),
    ],
)
def test_what_only_looks_like_a_key_is_none(document: str, expected: dict[KeyPath, int]) -> None:
    tomllib.loads(document)
    assert lines_of_keys(document) == expected
