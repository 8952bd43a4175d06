"""Conditions on documents, as `--where` takes them: `year >= 2020 AND source = 'reports'`.

A small part of SQL, read here and never handed on as text: a store writes its own SQL from what was understood.

    NAME = <> != < <= > >= VALUE     NAME [NOT] IN (VALUE, ...)     NAME [NOT] BETWEEN VALUE AND VALUE
    NAME [NOT] LIKE 'text'           NAME IS [NOT] NULL             AND, OR, NOT, (...)

NAME: of a document's metadata, or `id` and `source`, which documents have of their own where their metadata do not have
them; "NAME" where it is a word of the list above. VALUE: 'text' ('' for a quote in it), a number, true or false. Texts
are compared by their characters, so dates as ISO 8601 has them are in order. A document without the name, or with a
value of another type under it, meets no comparison, as in SQL, and no denied one either. In LIKE % stands for any
characters and _ for one.
Test: tests/search/test_where.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import lark

from m2bert.errors import M2BertError
from m2bert.search.metadata import NAME, Value

MOST_CHARACTERS = 4000
OWN = ("id", "source")
"""Names that documents have of their own."""

Operator = Literal["=", "!=", "<", "<=", ">", ">="]
_DENIED: dict[str, Operator] = {"=": "!=", "!=": "=", "<": ">=", ">=": "<", ">": "<=", "<=": ">"}


@dataclass(frozen=True)
class Comparison:
    """`name operator value`."""

    name: str
    operator: Operator
    value: Value


@dataclass(frozen=True)
class Among:
    """`name IN (values)`, or denied NOT IN. There is at least one value."""

    name: str
    values: tuple[Value, ...]
    denied: bool = False


@dataclass(frozen=True)
class Like:
    """`name LIKE pattern`, or denied NOT LIKE; the case of letters counts."""

    name: str
    pattern: str
    denied: bool = False


@dataclass(frozen=True)
class Missing:
    """`name IS NULL`, or denied IS NOT NULL: the document has no value of any type under the name."""

    name: str
    denied: bool = False


@dataclass(frozen=True)
class Every:
    """All of the parts, joined by AND."""

    parts: tuple[Condition, ...]


@dataclass(frozen=True)
class Some:
    """One of the parts at least, joined by OR."""

    parts: tuple[Condition, ...]


Condition = Comparison | Among | Like | Missing | Every | Some
"""A condition; NOT is carried down to the tests, so a store need not know it."""

_GRAMMAR = r"""
?start: either
?either: both (OR both)*
?both: simple (AND simple)*
?simple: NOT simple -> negation | "(" either ")" | test
?test: name OPERATOR value -> comparison
    | name [NOT] IN "(" value ("," value)* ")" -> among
    | name [NOT] BETWEEN value AND value -> between
    | name [NOT] LIKE TEXT -> like
    | name IS [NOT] NULL -> missing
name: WORD | QUOTED
?value: TEXT | NUMBER | TRUE | FALSE
OR.2: /or\b/i
AND.2: /and\b/i
NOT.2: /not\b/i
IN.2: /in\b/i
BETWEEN.2: /between\b/i
LIKE.2: /like\b/i
IS.2: /is\b/i
NULL.2: /null\b/i
TRUE.2: /true\b/i
FALSE.2: /false\b/i
OPERATOR: "<>" | "!=" | "<=" | ">=" | "=" | "<" | ">"
TEXT: /'(?:[^']|'')*'/
NUMBER: /[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?/
WORD: /[A-Za-z_][A-Za-z0-9_]*/
QUOTED: /"[A-Za-z_][A-Za-z0-9_]*"/
%ignore /\s+/
"""


def parse_where(text: str) -> Condition:
    """The condition that a text says. Raises M2BertError, with the place, for anything else."""
    if not isinstance(text, str) or not text.strip():
        raise M2BertError(
            f"search: where must be a condition, got {text!r}; for example \"year >= 2020 AND type = 'pdf'\""
        )
    if len(text) > MOST_CHARACTERS:
        raise M2BertError(
            f"search: where must have at most {MOST_CHARACTERS:,} characters, got {len(text):,}; ask for less at once"
        )
    try:
        found: Any = _parser().parse(text)
    except lark.exceptions.VisitError as error:
        raise error.orig_exc from error
    except lark.exceptions.UnexpectedInput as error:
        ended = isinstance(error, lark.exceptions.UnexpectedToken) and error.token.type == "$END"
        place = "at its end" if ended else f"at {text[error.pos_in_stream :][:20]!r}"
        raise M2BertError(
            f"search: where must be comparisons such as year >= 2020, joined by AND, OR and NOT, got something else "
            f"{place}; texts stand in single quotes"
        ) from error
    condition: Condition = found
    return condition


def names_of(condition: Condition) -> set[str]:
    """The names that a condition speaks of."""
    if isinstance(condition, Every | Some):
        return set().union(*map(names_of, condition.parts))
    return {condition.name}


def denied(condition: Condition) -> Condition:
    """The condition that NOT makes of one, as SQL has it."""
    if isinstance(condition, Every):
        return Some(tuple(map(denied, condition.parts)))
    if isinstance(condition, Some):
        return Every(tuple(map(denied, condition.parts)))
    if isinstance(condition, Comparison):
        return replace(condition, operator=_DENIED[condition.operator])
    return replace(condition, denied=not condition.denied)


class _Meaning(lark.Transformer[Any, Any]):
    """What was read, as conditions."""

    def start(self, children: list[Any]) -> Condition:
        return _joined(Some, children)

    either = start

    def both(self, children: list[Any]) -> Condition:
        return _joined(Every, children)

    def negation(self, children: list[Any]) -> Condition:
        return denied(children[-1])

    def name(self, children: list[Any]) -> str:
        name = str(children[0]).strip('"')
        if not NAME.fullmatch(name):
            raise M2BertError(f"search: a name in where must have at most 63 characters, got {len(name)}; shorten it")
        return name

    def comparison(self, children: list[Any]) -> Condition:
        name, operator, value = children
        return Comparison(name, "!=" if operator == "<>" else operator.value, value)

    def among(self, children: list[Any]) -> Condition:
        name, negation, _, *values = children
        return Among(name, tuple(values), negation is not None)

    def between(self, children: list[Any]) -> Condition:
        name, negation, _, low, _, high = children
        found = Every((Comparison(name, ">=", low), Comparison(name, "<=", high)))
        return found if negation is None else denied(found)

    def like(self, children: list[Any]) -> Condition:
        name, negation, _, pattern = children
        return Like(name, pattern, negation is not None)

    def missing(self, children: list[Any]) -> Condition:
        return Missing(children[0], children[2] is not None)

    def TEXT(self, token: lark.Token) -> str:
        return token[1:-1].replace("''", "'")

    def NUMBER(self, token: lark.Token) -> float:
        value = float(token)
        if not math.isfinite(value):
            raise M2BertError(f"search: a number in where must be finite, got {token[:40]}; give a smaller one")
        return value

    def TRUE(self, token: lark.Token) -> bool:
        return True

    def FALSE(self, token: lark.Token) -> bool:
        return False


def _joined(kind: type[Every] | type[Some], children: Sequence[Any]) -> Condition:
    parts: list[Condition] = []
    for child in children:
        if not isinstance(child, lark.Token):
            parts += child.parts if isinstance(child, kind) else [child]
    return parts[0] if len(parts) == 1 else kind(tuple(parts))


@cache
def _parser() -> lark.Lark:
    return lark.Lark(_GRAMMAR, parser="lalr", transformer=_Meaning(), maybe_placeholders=True)
