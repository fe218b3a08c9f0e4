"""Whether a database file is sound: what SQLite says of it, and whether each row is what its envelope says.

Signatures are not verified again: a statement whose SHA-256 is the op id under which it is stored is the one that was
verified when it came.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Generator
from dataclasses import dataclass

from prime_dht.entries.codec import decode_entry
from prime_dht.errors import ValidationError
from prime_dht.ids import PeerId
from prime_dht.storage.sqlite_entries import COLUMNS, columns_of
from prime_dht.storage.sqlite_records import PROVIDER_SIZE, RECORD_SIZE
from prime_dht.storage.sqlite_schema import STEM_BYTES, stem_of

MOST_PROBLEMS = 100
"""That a report lists; more say nothing more."""

_ROWS_AT_A_TIME = 1000

_ROWS = f"""
    SELECT entries.id, peer, value, {COLUMNS} FROM entries LEFT JOIN publishers ON publishers.id = publisher
    WHERE entries.id > ? ORDER BY entries.id LIMIT {_ROWS_AT_A_TIME}
"""  # noqa: S608
_SIZE = f"{STEM_BYTES} + length(statement) + ifnull(length(value), 0)"
_SHARED_SLOTS = """
    SELECT count(*) FROM (
        SELECT 1 FROM entries NOT INDEXED GROUP BY key, publisher, subkey HAVING count(*) > 1
    )
"""
_COUNTS = f"""
    SELECT 'keys', keys, (SELECT count(DISTINCT key) FROM entries) FROM totals
    UNION ALL SELECT 'entries', entries, (SELECT count(*) FROM entries) FROM totals
    UNION ALL SELECT 'ops', ops, (SELECT count(sector) FROM entries) FROM totals
    UNION ALL SELECT 'bytes', bytes, (SELECT ifnull(sum({_SIZE}), 0) FROM entries) FROM totals
    UNION ALL SELECT 'plain records', records, (SELECT count(*) FROM records) FROM totals
    UNION ALL SELECT 'bytes of plain records', record_bytes, (SELECT ifnull(sum({RECORD_SIZE}), 0) FROM records)
        FROM totals
    UNION ALL SELECT 'providers', providers, (SELECT count(*) FROM providers) FROM totals
    UNION ALL SELECT 'bytes of providers', provider_bytes, (SELECT ifnull(sum({PROVIDER_SIZE}), 0) FROM providers)
        FROM totals
"""  # noqa: S608
_MISCOUNTED_PUBLISHERS = f"""
    SELECT count(*) FROM publishers
    LEFT JOIN (SELECT publisher, count(*) AS held, sum({_SIZE}) AS held_bytes FROM entries GROUP BY publisher)
        ON publisher = publishers.id
    WHERE entries IS NOT held OR bytes IS NOT held_bytes
"""  # noqa: S608


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReport:
    """What a check found: how many entries it looked at, and what is wrong, in sentences; at most 100 of them."""

    entries: int
    problems: tuple[str, ...]


def examine(connection: sqlite3.Connection) -> Generator[tuple[int, int], None, CheckReport]:
    """Check a store; yields now and then how many of how many entries are done.

    Raises:
        sqlite3.DatabaseError: it is so damaged that it cannot be read to its end.
    """
    problems: list[str] = []
    for (verdict,) in connection.execute(f"PRAGMA integrity_check({MOST_PROBLEMS})"):
        if verdict != "ok":
            problems.append(f"SQLite: {verdict}")
    (total,) = connection.execute("SELECT count(*) FROM entries").fetchone()
    done, last_id = 0, 0
    yield done, total
    while rows := connection.execute(_ROWS, (last_id,)).fetchall():
        for row_id, publisher, value, *columns in rows:
            problem = _problem(publisher, value, tuple(columns))
            if problem:
                problems.append(f"entry {row_id}: {problem}")
        done, last_id = done + len(rows), rows[-1][0]
        yield done, total
    (shared,) = connection.execute(_SHARED_SLOTS).fetchone()
    if shared:
        problems.append(f"{shared} slots hold more than one entry")
    for what, said, counted in connection.execute(_COUNTS):
        if said != counted:
            problems.append(f"it counts {said} {what}, but holds {counted}")
    (miscounted,) = connection.execute(_MISCOUNTED_PUBLISHERS).fetchone()
    if miscounted:
        problems.append(f"the counts of {miscounted} publishers are wrong")
    return CheckReport(entries=done, problems=tuple(problems[:MOST_PROBLEMS]))


def _problem(publisher: bytes | None, value: bytes | None, columns: tuple[bytes | int | None, ...]) -> str:
    """What is wrong with a row, if anything is."""
    *_, statement = columns
    if publisher is None or not isinstance(statement, bytes):
        return "its publisher is not known"
    try:
        entry = decode_entry(stem_of(PeerId(publisher)) + statement, value)
    except ValidationError as error:
        return str(error)
    wrong = [
        name.strip()
        for name, stored, expected in zip(COLUMNS.split(","), columns, columns_of(entry), strict=True)
        if stored != expected
    ]
    return f"not what its envelope says: {', '.join(wrong)}" if wrong else ""
