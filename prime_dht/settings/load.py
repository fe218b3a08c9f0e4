"""Where values of settings come from: a file, the environment, flags; and what is wrong with them."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from prime_dht.config import NodeConfig
from prime_dht.errors import ConfigError, ValidationError
from prime_dht.quantities import parse_duration_s, parse_size_bytes
from prime_dht.settings.setting import VARIABLE_PREFIX, Setting, all_settings, all_tables, is_table
from prime_dht.settings.toml_lines import KeyPath, lines_of_keys

DEFAULT = "default"
"""The origin of what nobody has set."""

_OTHER_NAMES: dict[str, KeyPath] = {"PRIME_DHT_PEER": ("peers",), "PRIME_DHT_REDIS": ("redis_url",)}
_OPTIONS: dict[str, KeyPath] = {"NETWORK": ("dht", "network_id"), "CLIENT": ("dht", "mode")}
"""Options of the command line whose settings have other names."""

_NO_SETTINGS = frozenset({"PRIME_DHT_CONFIG", "PRIME_DHT_TIMEOUT", "PRIME_DHT_LOG_FORMAT"})
"""Variables that the command line reads, and that are no part of a node's configuration."""


class Given(NamedTuple):
    """A value that somebody gave a setting, as its field has it, and its origin."""

    value: object
    origin: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """A configuration, and the origin of every setting in it, by path."""

    config: NodeConfig
    origins: Mapping[KeyPath, str]


def load_settings(
    file: Path | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[KeyPath, Given] | None = None,
) -> Settings:
    """Put a configuration together.

    Args:
        file: the file to read; none by default.
        environment: variables, such as ``os.environ``; none by default. Those that are no settings are left alone.
        flags: what stands over both, by path.

    Raises:
        ConfigError: the file cannot be read or is no TOML; a key is unknown, or a variable nearly one that is known;
            a value is wrong by itself, or beside others.
    """
    given = {
        **dict(_from_file(file) if file is not None else ()),
        **dict(_from_environment(environment or {})),
        **(flags or {}),
    }
    try:
        config: NodeConfig = _build(NodeConfig, (), given)
    except ConfigError as error:
        raise ConfigError(_blamed(str(error), given)) from error
    origins = dict.fromkeys(all_settings(), DEFAULT) | {path: each.origin for path, each in given.items()}
    return Settings(config=config, origins=origins)


def _build(table: type[Any], path: KeyPath, given: Mapping[KeyPath, Given]) -> Any:
    values: dict[str, Any] = {}
    for each in fields(table):
        here = (*path, each.name)
        if is_table(each):
            values[each.name] = _build(get_type_hints(table)[each.name], here, given)
        elif here in given:
            values[each.name] = given[here].value
    return table(**values)


def _blamed(message: str, given: Mapping[KeyPath, Given]) -> str:
    """What a configuration says of itself, after the origins of the values that it speaks of."""
    words = set(re.findall(r"\w+", message))
    origins = [each.origin for path, each in given.items() if path[-1] in words]
    return f"{', '.join(origins)}: {message}" if origins else message


def _from_environment(environment: Mapping[str, str]) -> Iterator[tuple[KeyPath, Given]]:
    path_of = {setting.variable: path for path, setting in all_settings().items()} | _OTHER_NAMES
    origins: dict[KeyPath, str] = {}
    for variable, text in environment.items():
        if not variable.startswith(VARIABLE_PREFIX) or variable in _NO_SETTINGS or not text:
            continue
        if variable not in path_of:
            _check_for_slip(variable, path_of)
            continue
        path = path_of[variable]
        if path in origins:
            raise ConfigError(f"{origins[path]} and {variable} are the same setting: give one of them")
        origins[path] = variable
        setting = all_settings()[path]
        yield path, Given(_converted(setting, _toml_value(setting, text), origin=variable), variable)


def _check_for_slip(variable: str, known: Iterable[str]) -> None:
    """Refuse a variable that is nearly a known one. Others are left alone: orchestrators set such as PRIME_DHT_PORT."""
    ours = [each.removeprefix(VARIABLE_PREFIX) for each in known]
    name = variable.removeprefix(VARIABLE_PREFIX)
    said = next((path for path in all_settings() if path[-1].upper() == name), _OPTIONS.get(name))
    if said is not None:
        near = [all_settings()[said].variable.removeprefix(VARIABLE_PREFIX)]
    else:
        near = get_close_matches(name, ours, n=1, cutoff=0.85)
    if near:
        raise ConfigError(f"{variable}: there is no such setting; did you mean {VARIABLE_PREFIX}{near[0]}?")


def _toml_value(setting: Setting, text: str) -> object:
    """What a variable's text would be in the file."""
    if setting.form in (tuple, frozenset):
        return text.split()
    if setting.form is bool:
        return {"true": True, "1": True, "false": False, "0": False}.get(text.lower(), text)
    if setting.form in (int, float):
        try:
            return setting.form(text)
        except ValueError:
            return text  # it may have a unit
    return text


def _from_file(file: Path) -> Iterator[tuple[KeyPath, Given]]:
    try:
        text = file.read_bytes().decode()
        document = tomllib.loads(text)
        lines = lines_of_keys(text)
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{file}:{line}: not UTF-8") from error
    except RecursionError as error:
        raise ConfigError(f"{file}: nested too deeply") from error
    except ValueError as error:  # a number of too many digits is no TOMLDecodeError
        raise ConfigError(_syntax_error(file, text, str(error))) from error
    yield from _from_table(document, (), file, lines)


def _from_table(
    table: Mapping[str, object], path: KeyPath, file: Path, lines: Mapping[KeyPath, int]
) -> Iterator[tuple[KeyPath, Given]]:
    for key, value in table.items():
        here = (*path, key)
        origin = f"{file}:{lines[here]}"
        if here in all_tables():
            if not isinstance(value, dict):
                raise ConfigError(f"{origin}: {key} is a table: write [{'.'.join(here)}], and its keys below")
            yield from _from_table(value, here, file, lines)
        elif here in all_settings():
            converted = _converted(all_settings()[here], value, origin=origin)
            if isinstance(converted, Path):
                converted = file.parent / converted
            yield here, Given(converted, origin)
        else:
            raise ConfigError(f"{origin}: {_unknown_key(here)}")


def _unknown_key(here: KeyPath) -> str:
    *table, key = here
    said = f'unknown key "{key}"' + (f" in [{'.'.join(table)}]" if table else "")
    known = {*all_settings(), *all_tables()}
    for path in known:
        if path[-1] == key:
            return f"{said}; it belongs in [{'.'.join(path[:-1])}]" if path[:-1] else f"{said}; it belongs in no table"
    near = get_close_matches(key.lower(), [path[-1] for path in known if path[:-1] == here[:-1]], n=1)
    return f'{said}; did you mean "{near[0]}"?' if near else said


def _syntax_error(file: Path, text: str, message: str) -> str:
    found = re.fullmatch(r"(.*) \(at (?:line (\d+), column \d+|end of document)\)", message, re.DOTALL)
    if found is None:
        return f"{file}: {message}"
    return f"{file}:{found[2] or len(text.splitlines())}: {found[1]}"


def _converted(setting: Setting, value: object, *, origin: str) -> object:
    """A value as TOML has it, as the field has it."""
    try:
        return _convert(setting, value)
    except (ValidationError, OverflowError) as error:
        raise ConfigError(f"{origin}: {setting.key}: {error}") from error


def _convert(setting: Setting, value: object) -> object:
    form = setting.form
    match value:
        case bool():  # before the numbers, of which Python counts it as one
            if form is bool:
                return value
        case int() if form in (int, float):
            if not -(1 << 63) <= value < 1 << 63:
                raise ValidationError("a whole number has at most 64 bits")
            return form(value)
        case float() if form is float:
            return value
        case str() if form is str:
            return value
        case str() if form is Path:
            if not value or "\0" in value:
                raise ValidationError(f"{value!r} is not the path of anything")
            return Path(os.path.expanduser(value))  # which leaves what it cannot expand as it is
        case str() if setting.is_duration:
            return parse_duration_s(value)
        case str() if setting.is_size:
            return parse_size_bytes(value)
        case str() if value in setting.choices:
            return setting.choices[value]
        case list() if form in (tuple, frozenset) and all(isinstance(each, str) for each in value):
            return form(value)
    raise ValidationError(f"{value!r} is not {_expected(setting)}")


def _expected(setting: Setting) -> str:
    if setting.choices:
        return " or ".join(setting.choices)
    if setting.is_size:
        return 'a size: bytes, or text such as "64KiB"'
    return {
        bool: "true or false",
        int: "a whole number",
        float: 'a duration: seconds, or text such as "12h"',
        tuple: "a list of texts",
        frozenset: "a list of texts",
    }.get(setting.form, "a text")
