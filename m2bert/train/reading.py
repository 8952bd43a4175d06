"""Settings as users give them: a YAML or JSON file, `--set NAME=VALUE`, flags; each wins over the one before.

Tests: tests/train/test_settings.py, tests/train/test_pretrain.py.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from m2bert.bounds import SETTINGS, read_whole
from m2bert.errors import M2BertError

ConfigT = TypeVar("ConfigT")
# Names that settings had before they took those of transformers' TrainingArguments.
RENAMED = {
    "accumulate": "gradient_accumulation_steps",
    "log_steps": "logging_steps",
    "schedule": "lr_scheduler_type",
    "warmup": "warmup_ratio",
}


# Settings are a mapping of lists and mappings of values.
MOST_LEVELS = 20
LARGEST_NUMBER = 10**300
LONGEST_SHOWN = 200


@functools.cache
def _yaml_loader() -> Any:
    """YAML with the numbers of its version 1.2: 1e-3 is one, and 512:1 is text, not minutes and seconds.

    Without aliases, by which a few lines can stand for more than the memory holds, and not deeper than MOST_LEVELS.
    """
    import yaml  # type: ignore[import-untyped]

    class Loader(yaml.SafeLoader):
        levels = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("aliases (*name) must not be used; write the value out")
            if self.levels >= MOST_LEVELS:
                raise yaml.YAMLError(f"values must not lie deeper than {MOST_LEVELS} levels")
            self.levels += 1
            node = super().compose_node(parent, index)
            self.levels -= 1
            return node

    numbers = {"int": r"[-+]?[0-9][0-9_]*\Z", "float": r"([-+]?(\.[0-9]|[0-9])[0-9_]*(\.[0-9_]*)?([eE][-+]?[0-9]+)?"}
    numbers["float"] += r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))\Z"
    tags = {f"tag:yaml.org,2002:{kind}": re.compile(rule) for kind, rule in numbers.items()}
    Loader.yaml_implicit_resolvers = {
        first: [(tag, rule) for tag, rule in rules if tag not in tags]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    for tag, rule in tags.items():
        Loader.add_implicit_resolver(tag, rule, list("-+.0123456789"))
    return Loader


def config_from_mapping(kind: type[ConfigT], values: Mapping[str, Any], who: str) -> ConfigT:
    """Build a settings dataclass. Raises M2BertError for keys it does not have and for values of a wrong type."""
    defaults = kind()
    known = {item.name for item in dataclasses.fields(defaults)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - known)
    for name in unknown:
        if name in RENAMED:
            raise M2BertError(f"{who}: the setting {name} is now called {RENAMED[name]}; rename it")
    if unknown:
        got = ", ".join(f"{name:.40}" for name in unknown[:5])
        rest = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise M2BertError(f"{who}: settings must be among {', '.join(sorted(known))}, got {got}{rest}")
    checked = {}
    for name, value in values.items():
        default = getattr(defaults, name)
        if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
            value = float(value) if abs(value) < LARGEST_NUMBER else math.inf
        if not isinstance(value, type(default)) or (isinstance(value, bool) != isinstance(default, bool)):
            raise M2BertError(f"{who}: {name} must be of type {type(default).__name__}, got {_shown(value)}; change it")
        checked[name] = value
    return kind(**checked)


def read_settings(path: str | Path, who: str) -> dict[str, Any]:
    """Settings from a YAML or JSON file. Raises M2BertError when it cannot be read or is no mapping."""
    import yaml

    try:
        if Path(path).stat().st_size > SETTINGS.value << 10:
            raise M2BertError(f"{who}: {str(path)!r} is {SETTINGS.said()}; name the file of settings")
        values = yaml.load(read_whole(Path(path)).decode("utf-8"), Loader=_yaml_loader())
    except M2BertError:
        raise
    except (OSError, ValueError, yaml.YAMLError) as error:  # a ValueError is of a date or a number that there is not
        reason = " ".join(str(error).split())[:LONGEST_SHOWN]
        raise M2BertError(f"{who}: {str(path)!r} must be a readable YAML or JSON file ({reason}); mend it") from error
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise M2BertError(f"{who}: {str(path)!r} must hold settings as `name: value`, got {type(values).__name__}")
    return values


def parse_shares(text: str, name: str, *, lengths: bool) -> dict[Any, float]:
    """`a:1,b:2` as a mapping; keys are whole numbers when `lengths`. Raises M2BertError when it is not that."""
    shares: dict[Any, float] = {}
    try:
        for item in text.split(","):
            # A bare length stands for a share of 1; names of data sets may hold colons.
            key, _, value = item.strip().rpartition(":") if ":" in item else (item.strip(), "", "1")
            shares[int(key) if lengths else key] = float(value)
    except ValueError as error:
        raise M2BertError(f"train: --{name} must read NAME:NUMBER,NAME:NUMBER, got {text!r}; mend it") from error
    return shares


def gather_settings(who: str, path: str, pairs: list[str], flags: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a file, then of `--set NAME=VALUE`, then of flags that were given (not None, '' or []).

    Texts stand for mappings: `a:1,b:2` for lengths and weights, the name of a file for the fields of a model.
    """
    values = read_settings(path, who) if path else {}
    values |= dict(_named_value(pair, who) for pair in pairs)
    values |= {name: value for name, value in flags.items() if value not in (None, "", [])}
    for name in ("lengths", "weights"):
        if name in values:
            values[name] = _shares(name, values[name], who)
    if isinstance(values.get("model"), str):
        values["model"] = read_settings(values["model"], who)
    return values


def _named_value(pair: str, who: str) -> tuple[str, Any]:
    import yaml

    name, equals, text = pair.partition("=")
    if not equals:
        raise M2BertError(f"{who}: --set must read NAME=VALUE, got {pair!r}; mend it")
    try:
        return name, yaml.load(text, Loader=_yaml_loader())
    except (ValueError, yaml.YAMLError) as error:
        raise M2BertError(
            f"{who}: --set {pair:.{LONGEST_SHOWN}} must be NAME=VALUE with a value in YAML; mend it"
        ) from error


def _shares(name: str, value: Any, who: str) -> Any:
    if isinstance(value, str | int):
        return parse_shares(str(value), name, lengths=name == "lengths")
    if not isinstance(value, dict):
        return value
    try:
        return {int(key) if name == "lengths" else str(key): float(share) for key, share in value.items()}
    except (TypeError, ValueError, OverflowError) as error:
        raise M2BertError(f"{who}: {name} must map to numbers, got {_shown(value)}; mend it") from error


def _shown(value: Any) -> str:
    return f"{value!r:.{LONGEST_SHOWN}}"
