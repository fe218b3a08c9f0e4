"""On which line each key of a TOML document stands, which :mod:`tomllib` does not tell.

The *path* of a key is the keys of the tables around it, and itself. The document has been parsed, so it is valid; what
is read here is only as much of TOML 1.0 as it takes to tell keys from values. The tables in one array
are taken for one.

>>> lines_of_keys('''# first
... a.b = 1
... [t."x y"]
... c = { d = [
...   "# no comment", ] }
... ''')
{('a',): 2, ('a', 'b'): 2, ('t',): 3, ('t', 'x y'): 3, ('t', 'x y', 'c'): 4, ('t', 'x y', 'c', 'd'): 4}
"""

from __future__ import annotations

import re
import tomllib

KeyPath = tuple[str, ...]

_BLANK = re.compile(r"(?:[ \t\n]|#[^\n]*)*")
_DOT = re.compile(r"[ \t]*\.[ \t]*")
_STRING = re.compile(
    # The last of up to five quotation marks close; one or two before them belong to the text.
    r'"""(?:[^"\\]|\\.|"{1,2}(?!"))*"{3,5}'
    r"|'''(?:[^']|'{1,2}(?!'))*'{3,5}"
    r'|"(?:[^"\\\n]|\\.)*"'
    r"|'[^'\n]*'",
    re.DOTALL,
)
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_BARE_VALUE = re.compile(r"[^\n#,\]}]+")


def lines_of_keys(document: str) -> dict[KeyPath, int]:
    """The line, counted from 1, on which each key of a valid TOML document is first named, as a table's name or part
    of a dotted key too."""
    reader = _Reader(document.replace("\r\n", "\n"))
    reader.read_document()
    return reader.lines


class _Reader:
    """Goes through a document once, from left to right."""

    def __init__(self, text: str) -> None:
        self.lines: dict[KeyPath, int] = {}
        self._text = text
        self._at = 0

    def read_document(self) -> None:
        table: KeyPath = ()
        while self._skip(_BLANK) < len(self._text):
            if self._take("["):
                is_array = self._take("[")
                self._skip(_BLANK)
                table = self._read_key(())
                self._skip(_BLANK)
                self._at += 2 if is_array else 1
            else:
                self._read_pair(table)

    def _read_pair(self, table: KeyPath) -> None:
        path = self._read_key(table)
        self._skip(_BLANK)
        self._at += len("=")
        self._read_value(path)

    def _read_key(self, table: KeyPath) -> KeyPath:
        """Read a key, dotted or not, and note its line; returns its path."""
        path = table
        while True:
            line = self._text.count("\n", 0, self._at) + 1
            path = (*path, self._read_key_part())
            self.lines.setdefault(path, line)
            start = self._at
            if self._skip(_DOT) == start:
                return path

    def _read_key_part(self) -> str:
        start = self._at
        if self._text[start] in "\"'":
            self._skip(_STRING)
            (part,) = tomllib.loads(f"{self._text[start : self._at]} = 0")
            return str(part)
        self._skip(_BARE_KEY)
        return self._text[start : self._at]

    def _read_value(self, path: KeyPath) -> None:
        self._skip(_BLANK)
        if self._take("{"):
            while not self._closes("}"):
                self._read_pair(path)
        elif self._take("["):
            while not self._closes("]"):
                self._read_value(path)
        elif self._text[self._at] in "\"'":
            self._skip(_STRING)
        else:
            self._skip(_BARE_VALUE)

    def _closes(self, end: str) -> bool:
        """Go on to the next member of an array or an inline table, or past its end."""
        self._skip(_BLANK)
        self._take(",")
        self._skip(_BLANK)
        return self._take(end)

    def _take(self, text: str) -> bool:
        """Whether a text comes next; then go past it."""
        taken = self._text.startswith(text, self._at)
        self._at += len(text) * taken
        return taken

    def _skip(self, pattern: re.Pattern[str]) -> int:
        """Go past what a pattern matches; returns where that ends."""
        if found := pattern.match(self._text, self._at):
            self._at = found.end()
        return self._at
