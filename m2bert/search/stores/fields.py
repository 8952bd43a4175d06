"""Metadata as columns of a LanceDB table, one for every name and type, and conditions as its SQL.

The JSON that the table keeps is the whole truth; these columns only serve conditions. They appear when a document with
the name does.
Test: tests/search/test_where.py.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import pyarrow as pa

from m2bert.errors import M2BertError
from m2bert.search.filters import OWN, Among, Comparison, Condition, Every, Like, Missing, Some, names_of
from m2bert.search.metadata import Metadata, Value, metadata_of_text
from m2bert.search.stores import Key, Query

MOST_FIELDS = 100
TYPES = {"text": pa.string(), "number": pa.float64(), "flag": pa.bool_()}


def fields_of(metadata: Iterable[Metadata]) -> set[str]:
    """The names of the columns for these."""
    return {_column(name, value) for each in metadata for name, value in each.items() if value is not None}


def missing_fields(wanted: Collection[str], there: Collection[str]) -> list[pa.Field]:
    """The columns of `wanted` that a table with the columns `there` lacks. Raises M2BertError for too many."""
    missing = sorted(set(wanted) - set(there))
    if missing and (count := len(missing) + len(known_fields(there))) > MOST_FIELDS:
        raise M2BertError(
            f"store: the documents of a store must have at most {MOST_FIELDS} different names in their metadata, got "
            f"{count}, the last one {_name(missing[-1])!r}; leave some out"
        )
    return [pa.field(column, TYPES[column.split("_", 1)[0]]) for column in missing]


def known_fields(columns: Iterable[str]) -> list[str]:
    """Those of a table's columns that are of metadata."""
    return [column for column in columns if column.split("_of_")[0] in TYPES and "_of_" in column]


def known_names(columns: Iterable[str]) -> list[str]:
    """The names of metadata that a table's columns are of."""
    return sorted({_name(column) for column in known_fields(columns)})


def field_columns(metadata: pa.ChunkedArray | pa.Array, columns: Collection[str]) -> dict[str, pa.Array]:
    """The columns of these names for rows of metadata as JSON; null where a row has no such value."""
    values: dict[str, list[Value | None]] = {column: [None] * len(metadata) for column in columns}
    for row, text in enumerate(metadata.to_pylist()):
        for name, value in metadata_of_text(text).items():
            if (column := _column(name, value)) not in values:
                raise M2BertError(f"store: rows have metadata {name!r} that add() was not told of; pass their fields")
            values[column][row] = value
    return {column: pa.array(those, TYPES[column.split("_", 1)[0]]) for column, those in values.items()}


def to_sql(condition: Condition, columns: Collection[str]) -> str:
    """A condition as SQL over a table's columns. Raises M2BertError for a name that it has not."""
    known = known_names(columns)
    if unknown := sorted(names_of(condition) - {*known, *OWN}):
        listed = f"it knows {', '.join(known[:20])}" if known else "its documents have no metadata"
        raise M2BertError(f"search: no document of the store has {unknown[0]!r}, which where asks for; {listed}")
    return _sql(condition, set(columns))


def sql_of_keys(keys: Collection[Key]) -> str:
    """SQL that is true for exactly these documents."""
    by_source: dict[str, list[str]] = defaultdict(list)
    for source, identity in keys:
        by_source[source].append(quoted(identity))
    lists = {source: ", ".join(ids) for source, ids in by_source.items()}
    return " OR ".join(f"(source = {quoted(source)} AND id IN ({ids}))" for source, ids in lists.items())


def sql_of_query(query: Query, columns: Sequence[str]) -> str | None:
    """SQL that is true for the documents that a query may find; None, for all."""
    tests = [] if query.source is None else [f"source = {quoted(query.source)}"]
    if query.where is not None:
        tests.append(to_sql(query.where, columns))
    return " AND ".join(tests) or None


def sql_of_rows(ids: Collection[int]) -> str:
    """SQL that is true for these row ids."""
    return f"_rowid IN ({', '.join(map(str, ids))})"


def quoted(text: str) -> str:
    """A text as SQL has it."""
    return "'" + text.replace("'", "''") + "'"


def _sql(condition: Condition, columns: set[str]) -> str:
    if isinstance(condition, Every | Some):
        joined = (" AND " if isinstance(condition, Every) else " OR ").join(_sql(x, columns) for x in condition.parts)
        return f"({joined})"
    if isinstance(condition, Missing):
        there = [place for kind in TYPES if (place := _place(kind, condition.name, columns))]
        tests = [f"{place} IS {'NOT ' if condition.denied else ''}NULL" for place in there]
        return f"({(' OR ' if condition.denied else ' AND ').join(tests)})"
    if isinstance(condition, Like):
        operator = f"{'NOT ' * condition.denied}LIKE {quoted(condition.pattern)}"
        return _tested("text", condition.name, columns, operator)
    if isinstance(condition, Comparison):
        operator = f"{condition.operator} {_literal(condition.value)}"
        return _tested(_kind(condition.value), condition.name, columns, operator)
    return _among(condition, columns)


def _among(condition: Among, columns: set[str]) -> str:
    """Every type has a list of its own; a value is in one column alone."""
    lists: dict[str, list[str]] = {}
    for value in condition.values:
        lists.setdefault(_kind(value), []).append(_literal(value))
    tests = []
    for kind in lists:
        operator = f"{'NOT ' * condition.denied}IN ({', '.join(lists[kind])})"
        tests.append(_tested(kind, condition.name, columns, operator))
    return f"({' OR '.join(tests)})"


def _tested(kind: str, name: str, columns: set[str], operator: str) -> str:
    """A test of the value of a type under a name. Of a document's own, a column at a time: a test of a function of
    both, coalesce, would have no index."""
    column = f"`{kind}_of_{name}`"
    if name in OWN and kind == "text":
        own = f"{name} {operator}"
        return f"({column} {operator} OR ({column} IS NULL AND {own}))" if column[1:-1] in columns else own
    return f"{column} {operator}" if column[1:-1] in columns else "false"


def _place(kind: str, name: str, columns: set[str]) -> str | None:
    """Where values of a type lie under a name; None where no row has one."""
    column = f"{kind}_of_{name}"
    if name in OWN and kind == "text":
        return f"coalesce(`{column}`, {name})" if column in columns else name
    return f"`{column}`" if column in columns else None


def _literal(value: Value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return quoted(value) if isinstance(value, str) else repr(float(value))


def _kind(value: Value) -> str:
    return "flag" if isinstance(value, bool) else "text" if isinstance(value, str) else "number"


def _column(name: str, value: Any) -> str:
    return f"{_kind(value)}_of_{name}"


def _name(column: str) -> str:
    return column.split("_of_", 1)[1]
