"""Conditions (m2bert.search.filters) as SQL of PostgreSQL over the column `facts`, a document's metadata as jsonb.

Whether values are equal is asked by jsonpath, which compares only values of one type and has an index for equality;
which is less, by expressions that large stores have indexes of (m2bert.search.stores.postgres_indexes). Every value
travels as a parameter. Test: tests/search/test_stores.py, tests/search/test_postgres.py.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from m2bert.errors import M2BertError
from m2bert.search.filters import OWN, Among, Comparison, Condition, Every, Like, Missing, Some, names_of
from m2bert.search.metadata import Value
from m2bert.search.stores.postgres_tables import as_text

OPERATORS = {"=": "==", "!=": "!="}
# Characters of a text that an index has: it has no room for more than 2,704 bytes.
INDEXED_CHARACTERS = 200
Sql = tuple[str, list[Any]]
"""SQL with a %s for each of its parameters."""


def to_sql(condition: Condition, known: Collection[str]) -> Sql:
    """A condition as SQL. known: names that documents have. Raises M2BertError for one that none of them has."""
    if unknown := sorted(names_of(condition) - set(known) - set(OWN)):
        listed = f"it knows {', '.join(sorted(known)[:20])}" if known else "its documents have no metadata"
        raise M2BertError(f"search: no document of the store has {unknown[0]!r}, which where asks for; {listed}")
    return _sql(condition)


def _sql(condition: Condition) -> Sql:
    if isinstance(condition, Every | Some):
        parts = [_sql(part) for part in condition.parts]
        joined = (" AND " if isinstance(condition, Every) else " OR ").join(part for part, _ in parts)
        return f"({joined})", [value for _, values in parts for value in values]
    if isinstance(condition, Missing):
        there = "true" if condition.name in OWN else "jsonb_exists(facts, %s)"
        return f"{'' if condition.denied else 'NOT '}{there}", [] if condition.name in OWN else [condition.name]
    if isinstance(condition, Like):
        place, values = _text(condition.name)
        return f"{place} {'NOT ' * condition.denied}LIKE %s", [*values, as_text(_closed(condition.pattern))]
    if isinstance(condition, Comparison):
        if condition.operator in OPERATORS or condition.name in OWN or isinstance(condition.value, bool):
            operator = OPERATORS.get(condition.operator, condition.operator)
            return _compared(condition.name, operator, [condition.value])
        return _ranged(condition.name, condition.operator, condition.value)
    return _among(condition)


def ordered(kind: str, name: str) -> str:
    """What the index of a name's values of a kind, `number` or `string`, is of; null where a document has none.

    name: of metadata, which is letters, digits and _ (m2bert.search.metadata.NAME).
    """
    value = f"CASE WHEN jsonb_typeof(facts -> '{name}') = '{kind}' THEN facts ->> '{name}' END"
    return f"({value})::float8" if kind == "number" else f'"left"({value}, {INDEXED_CHARACTERS}) COLLATE "C"'


def _ranged(name: str, operator: str, value: str | float) -> Sql:
    """A text is compared by its beginning, which the index has, and then as a whole."""
    if not isinstance(value, str):
        return f"{ordered('number', name)} {operator} %s::float8", [value]
    text, (place, own) = as_text(value), _text(name)
    tests = f"{ordered('string', name)} {operator[0]}= %s AND ({place}) {operator} %s"
    return f"({tests})", [text[:INDEXED_CHARACTERS], *own, text]


def _among(condition: Among) -> Sql:
    """Of every type by itself: a value of a type that is not listed meets neither IN nor NOT IN."""
    kinds: dict[str, list[Value]] = {}
    for value in condition.values:
        kind = "flag" if isinstance(value, bool) else "text" if isinstance(value, str) else "number"
        kinds.setdefault(kind, []).append(value)
    tests = [_compared(condition.name, "!=" if condition.denied else "==", values) for values in kinds.values()]
    return f"({' OR '.join(test for test, _ in tests)})", [value for _, values in tests for value in values]


def _compared(name: str, operator: str, values: list[Value]) -> Sql:
    """Whether the value compares so with some of the values, of one type; for != with all of them."""
    if name in OWN and isinstance(values[0], str):
        place, own = _text(name)
        joined = " AND " if operator == "!=" else " OR "
        sign = "=" if operator == "==" else operator
        tests = joined.join(f"({place}) {sign} %s" for _ in values)
        return f"({tests})", [part for value in values for part in (*own, as_text(str(value)))]
    joined = " && " if operator == "!=" else " || "
    tests = joined.join(f"@ {operator} {_literal(value)}" for value in values)
    return "facts @? %s::jsonpath", [f'$."{name}" ? ({tests})']


def _text(name: str) -> Sql:
    """Where the text under a name lies; null where a document has none."""
    place = "CASE WHEN jsonb_typeof(facts -> %s) = 'string' THEN facts ->> %s END"
    own = f"coalesce({place}, {name})" if name in OWN else place
    return f'{own} COLLATE "C"', [name, name]


def _literal(value: Value) -> str:
    return json.dumps(as_text(value) if isinstance(value, str) else value)


def _closed(pattern: str) -> str:
    """A pattern whose last character is not a sign that quotes the next one."""
    odd = (len(pattern) - len(pattern.rstrip("\\"))) % 2
    return pattern + "\\" * odd
