"""Training text from the help of installed third-party packages: `python scripts/collect_package_help.py TEXT PAIRS`.

TEXT gets one line {"text", "source"} per module: its help, for `m2bert finetune --cloze`. PAIRS gets lines {"query",
"positive", "dataset"}: the first sentence of a function's or class's docstring, and the module's own docstring with
the first sentences of its other members, for `--pairs`. Modules of the standard library are left out: the demo
searches those. Importing a package runs its code; run this where you trust what is installed.
"""

from __future__ import annotations

import contextlib
import gzip
import importlib
import importlib.metadata
import inspect
import io
import json
import pkgutil
import re
import sys
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import Any

# Our own, build tools, machine-made text, and what repeats parts of the standard library.
LEFT_OUT = {"m2bert", "m2ops", "pip", "setuptools", "pkg_resources", "antlr4", "sympy", "moto", "samtranslator"}
LEFT_OUT |= {
    "typing_extensions",
    "importlib_metadata",
    "importlib_resources",
    "backports",
    "tomli",
    "zipp",
    "exceptiongroup",
}
TEST_PART = re.compile(r"(^|\.)_|(^|\.)(tests?|testing|conftest|benchmarks?|setup|__main__)(\.|$)")
MODULES_PER_PACKAGE, CHARACTERS_PER_MODULE = 120, 60_000


def modules_of(package: str) -> Iterator[str]:
    """Names of a package's public modules, itself first, at most MODULES_PER_PACKAGE."""
    yield package
    count = 1
    with contextlib.suppress(BaseException):
        paths = getattr(importlib.import_module(package), "__path__", [])
        for info in pkgutil.walk_packages(paths, package + ".", onerror=lambda name: None):
            if not TEST_PART.search(info.name):
                yield info.name
                count += 1
            if count >= MODULES_PER_PACKAGE:
                return


def first_sentence(thing: Any) -> str:
    """First sentence of a docstring, without line breaks; empty if it is not prose."""
    text = " ".join((inspect.getdoc(thing) or "").strip().split("\n\n")[0].split())
    sentence = re.split(r"(?<=[.!?])\s", text, maxsplit=1)[0]
    words = sentence.split()
    return sentence if 4 <= len(words) <= 40 and sum(word[0].isalpha() for word in words) > len(words) / 2 else ""


def members_of(module: ModuleType) -> list[tuple[str, Any]]:
    """Public functions and classes defined in a module, and the classes' methods."""
    found: list[tuple[str, Any]] = []
    for name, thing in vars(module).items():
        if name.startswith("_") or getattr(thing, "__module__", None) != module.__name__:
            continue
        if inspect.isclass(thing):
            found += [(n, m) for n, m in vars(thing).items() if not n.startswith("_") and inspect.isfunction(m)]
        if inspect.isclass(thing) or inspect.isroutine(thing):
            found.append((name, thing))
    return found


def describe(module: ModuleType) -> tuple[str, list[tuple[str, str]]]:
    """Help text of a module, and (name, first sentence) of its members."""
    parts, sentences = [f"{module.__name__}\n\n{inspect.getdoc(module) or ''}"], []
    for name, thing in members_of(module):
        parts.append(f"{name}\n    " + (inspect.getdoc(thing) or "").replace("\n", "\n    "))
        sentence = first_sentence(thing)
        if sentence:
            sentences.append((name, sentence))
    return "\n\n".join(parts)[:CHARACTERS_PER_MODULE], sentences


def main(text_path: str, pairs_path: str) -> None:
    """Write both files."""
    packages = sorted(set(importlib.metadata.packages_distributions()) - LEFT_OUT - set(sys.stdlib_module_names))
    seen: set[str] = set()
    with gzip.open(text_path, "wt", encoding="utf-8") as texts, gzip.open(pairs_path, "wt", encoding="utf-8") as pairs:
        for package in packages:
            if TEST_PART.search(package) or not package.isidentifier():
                continue
            for name in modules_of(package):
                with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                    try:
                        text, sentences = describe(importlib.import_module(name))
                    except BaseException:
                        continue  # a module that does not import here has no help to read
                if len(text) < 600 or text in seen:
                    continue
                seen.add(text)
                texts.write(json.dumps({"text": text, "source": "package_help"}) + "\n")
                own = (inspect.getdoc(sys.modules[name]) or "")[:1500]
                for i, (_, sentence) in enumerate(sentences[:12]):
                    others = [f"{n}: {s}" for j, (n, s) in enumerate(sentences) if j != i]
                    if len(others) >= 3:
                        positive = f"{name}\n{own}\n" + "\n".join(others[:40])
                        row = {"query": sentence, "positive": positive, "dataset": "package_help"}
                        pairs.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(*sys.argv[1:])
