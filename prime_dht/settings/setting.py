"""What settings there are: the fields of the configuration, with what the code says of them."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from enum import Enum
from functools import cache
from itertools import pairwise
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from prime_dht.config import NodeConfig
from prime_dht.errors import ConfigError
from prime_dht.settings.toml_lines import KeyPath

VARIABLE_PREFIX = "PRIME_DHT_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One setting.

    Attributes:
        path: where it stands.
        table: the class that has its field.
        form: the type of its values: bool, int, float, str, Path, tuple or frozenset; object if it has choices.
        choices: the values it can have, by their names in the file; none if it is not an enumeration.
        default: its value where nobody gives another.
    """

    path: KeyPath
    table: type[Any] = field(repr=False)
    form: type[Any]
    choices: Mapping[str, object]
    default: object

    @property
    def key(self) -> str:
        return self.path[-1]

    @property
    def variable(self) -> str:
        return VARIABLE_PREFIX + "_".join(self.path).upper()

    @property
    def is_size(self) -> bool:
        """Whether it counts bytes."""
        return self.form is int and self.key.endswith("_bytes")

    @property
    def is_duration(self) -> bool:
        """Whether it is in seconds; all fields that are no whole numbers are."""
        return self.form is float

    @property
    def meaning(self) -> str:
        """The docstring below its field, as plain text."""
        return _meanings()[self.path]

    def of(self, config: NodeConfig) -> object:
        """What it is in a configuration."""
        value: object = config
        for part in self.path:
            value = getattr(value, part)
        return value


@cache
def all_settings() -> Mapping[KeyPath, Setting]:
    """Every setting by its path, in the order of the fields, those of a table after those around it."""
    return {setting.path: setting for setting in _settings_of(NodeConfig, ())}


def all_tables() -> set[KeyPath]:
    """The path of every table."""
    return {path[:depth] for path in all_settings() for depth in range(1, len(path))}


def _settings_of(table: type[Any], path: KeyPath) -> Iterator[Setting]:
    hints = get_type_hints(table)
    for each in fields(table):
        if not is_table(each):
            form, choices = _form_of(hints[each.name])
            yield Setting(path=(*path, each.name), table=table, form=form, choices=choices, default=each.default)
    for each in filter(is_table, fields(table)):
        yield from _settings_of(hints[each.name], (*path, each.name))


def is_table(each: Field[Any]) -> bool:
    """Whether a field of a configuration is a table of settings, and not one itself."""
    return each.default is MISSING


def _form_of(hint: Any) -> tuple[type[Any], Mapping[str, object]]:
    if NoneType in get_args(hint):
        (hint,) = {*get_args(hint)} - {NoneType}
    if get_origin(hint) is Literal:
        return object, {choice: choice for choice in get_args(hint)}
    if isinstance(hint, type) and issubclass(hint, Enum):
        return object, {choice.value: choice for choice in hint}
    return get_origin(hint) or hint, {}


@cache
def _meanings() -> Mapping[KeyPath, str]:
    tables = {setting.table: setting.path[:-1] for setting in all_settings().values()}
    try:
        return {(*path, key): text for table, path in tables.items() for key, text in _docstrings_of_fields(table)}
    except OSError as error:
        raise ConfigError("what settings mean stands in prime_dht's source, which is not installed") from error


def _docstrings_of_fields(table: type[Any]) -> Iterator[tuple[str, str]]:
    (definition,) = ast.parse(inspect.getsource(table)).body
    assert isinstance(definition, ast.ClassDef)
    for statement, below in pairwise(definition.body):
        match statement, below:
            case ast.AnnAssign(target=ast.Name(key)), ast.Expr(ast.Constant(str(docstring))):
                yield key, _plain(docstring)


def _plain(docstring: str) -> str:
    """A docstring without its markup, in the words of the file."""
    words = {"None": "not set", "True": "true", "False": "false"}
    return re.sub(r"``(.+?)``", lambda code: words.get(code[1], code[1]), inspect.cleandoc(docstring))
