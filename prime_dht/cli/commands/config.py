"""``prime-dht config``: how a node would be configured, and why."""

from __future__ import annotations

import inspect
import json
import math
import re
import textwrap
from collections.abc import Callable
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

import click

from prime_dht.cli import options
from prime_dht.cli.ending import emit, show
from prime_dht.quantities import duration_text, size_text

if TYPE_CHECKING:
    from prime_dht.settings import Setting, Settings

COMMENT_WIDTH = 100

INTRODUCTION = """\
The configuration of a prime_dht node, as `prime-dht run --config FILE.toml` reads it.

Durations are seconds, or text such as "90s", "30m", "12h" or "7d"; sizes are bytes, or text such as "64KiB" or
"16MiB". A relative path counts from the directory of this file. Environment variables stand over it: PRIME_DHT_ and
the name in capitals, such as PRIME_DHT_LISTEN, PRIME_DHT_DHT_ALPHA or PRIME_DHT_DHT_LIMITS_MAX_TTL_S, with spaces
between the members of a list. Options of the command line stand over both."""


@click.command("config")
@click.option("--defaults", is_flag=True, help="Print the defaults, and beside each its environment variable.")
@click.option("--show-secrets", is_flag=True, help="Print the password in redis_url as it is, not as ***.")
@options.as_json
@options.configuring
def command(settings: Settings, defaults: bool, show_secrets: bool, as_json: bool) -> None:
    """Print the configuration that `run` would have with the same options.

    It is TOML that --config takes. Beside each setting stands where its value comes from: a line of the file, an
    environment variable, an option, or nowhere else: it is the default.

    \b
    Examples:
      prime-dht config --defaults > node.toml
      prime-dht config --config node.toml --listen /ip4/0.0.0.0/tcp/4001
    """
    from prime_dht.settings import all_settings, load_settings

    if defaults:
        settings = load_settings()
    elif not show_secrets:
        shown = replace(settings.config, redis_url=_without_password(settings.config.redis_url))
        settings = replace(settings, config=shown)
    if as_json:
        described = {
            ".".join(path): {
                "value": _of_json(_plain(setting.of(settings.config))),
                "origin": settings.origins[path],
                "variable": setting.variable,
            }
            for path, setting in all_settings().items()
        }
        show(described, "", as_json=True)
    else:
        emit(_document(settings, note=_variable if defaults else _origin).encode(errors="backslashreplace"))


def _without_password(url: str | None) -> str | None:
    """A URL whose reader learns no password.

    >>> _without_password("redis://me:s3cret@example.org:6379/1")
    'redis://me:***@example.org:6379/1'
    """
    return None if url is None else re.sub(r"(//[^:@/]*):.*@", r"\1:***@", url)


def _origin(settings: Settings, setting: Setting) -> str:
    return settings.origins[setting.path]


def _variable(_: Settings, setting: Setting) -> str:
    return setting.variable


def _document(settings: Settings, *, note: Callable[[Settings, Setting], str]) -> str:
    """A configuration as a documented file, with a note beside each setting."""
    from prime_dht.settings import all_settings

    lines = [*_comment(INTRODUCTION)]
    table: tuple[str, ...] = ()
    for setting in all_settings().values():
        lines.append("")
        if setting.path[:-1] != table:
            table = setting.path[:-1]
            about, _, _ = (inspect.getdoc(setting.table) or "").partition("\n\n")
            lines += [f"[{'.'.join(table)}]", *_comment(about), ""]
        lines += _comment(setting.meaning)
        if setting.choices:
            lines += _comment(f"One of {', '.join(setting.choices)}.")
        value = setting.of(settings.config)
        given = f"# {setting.key} is not set" if value is None else f"{setting.key} = {_toml(setting, _plain(value))}"
        lines.append(f"{given}  # {note(settings, setting)}")
    return "\n".join(lines) + "\n"


def _comment(text: str) -> list[str]:
    paragraphs = text.split("\n\n")
    return [f"# {line}" for paragraph in paragraphs for line in textwrap.wrap(paragraph, COMMENT_WIDTH - len("# "))]


def _plain(value: object) -> object:
    """A setting's value as JSON has it."""
    match value:
        case Enum():
            return value.value
        case Path():
            return str(value.absolute())
        case frozenset():
            return sorted(value)
        case _:
            return value


def _of_json(value: object) -> object:
    """JSON has no number without end; what has none is null there."""
    return None if value == math.inf else value


def _toml(setting: Setting, value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case tuple() | list():
            members = "".join(f"  {_quoted(each)},\n" for each in value)
            return f"[\n{members}]" if len(value) > 1 else f"[{', '.join(map(_quoted, value))}]"
        case float() if value >= 60.0 and not value % 60.0:
            return _quoted(duration_text(value))
        case int() if setting.is_size and size_text(value) != str(value):
            return _quoted(size_text(value))
        case int() | float():
            return repr(value)
        case _:
            return _quoted(str(value))


def _quoted(text: str) -> str:
    """A TOML string. It is JSON's, but for DEL, which TOML wants escaped."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
