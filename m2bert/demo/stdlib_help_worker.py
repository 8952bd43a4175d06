"""Child process of stdlib_help: imports the modules of the standard library, writes their help as JSON lines.

Run by path, not as part of the package, so that nothing but the standard library is on its mind. Each module is
announced by a line {"begin", "done", "total"} and answered by {"name", "text"}, {"name", "reason"} or {"name"} (the
same module under a second name).
Test: tests/cli/test_stdlib_help.py.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import pkgutil
import pydoc
import re
import sys
import warnings
from collections.abc import Iterator
from typing import Any

# antigravity and this act when imported; idlelib and turtledemo are applications.
LEFT_OUT = frozenset({"antigravity", "this", "idlelib", "turtledemo", "test", "tests"})
NOT_FOUND_BY_WALKING = ("os.path",)
PLAIN: pydoc.TextDoc = pydoc.plaintext  # type: ignore[attr-defined] # missing in the stubs
ADDRESS = re.compile(r" at 0x[0-9A-Fa-f]+|, handle [0-9A-Fa-f]+")
WARNING = re.compile(
    r"\n *\n *The following documentation is automatically generated.{0,400}?listed above\.", re.DOTALL
)
CLASS_RULE = re.compile(r"^ *\|  (-{10,})$")
CLASS_LINE = re.compile(r"^ *\|")
INHERITED = re.compile(r"^ *\|  [A-Z][a-z ]+ inherited from ([\w.]+):$")
CLASS_HEAD = re.compile(r"^    class (\w+)", re.MULTILINE)


def wanted(name: str) -> bool:
    """Whether the module is public, and neither a test nor an application."""
    return not any(part.startswith("_") or part in LEFT_OUT for part in name.split("."))


def module_names() -> list[str]:
    """Names of all wanted modules, parents before children, without importing anything."""
    names = [name for top in sorted(sys.stdlib_module_names) if wanted(top) for name in _with_submodules(top)]
    names[names.index("os") + 1 : names.index("os") + 1] = NOT_FOUND_BY_WALKING
    return names


def _with_submodules(top: str) -> Iterator[str]:
    yield top
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return
    if spec is not None and spec.submodule_search_locations is not None:
        yield from _below(top, list(spec.submodule_search_locations))


def _below(package: str, path: list[str]) -> Iterator[str]:
    for info in pkgutil.iter_modules(path):
        name = f"{package}.{info.name}"
        if wanted(name):
            yield name
            if info.ispkg:
                yield from _below(name, [os.path.join(folder, info.name) for folder in path])


def help_text(module: Any) -> str:
    """What `help(module)` prints, shortened where it repeats itself.

    The addresses of objects go, because they differ from run to run. So do the same warning in every module's
    help, and the members a class inherits from a class that is described elsewhere: they are half of the whole
    library's help, tkinter's alone a fifth.
    """
    text = ADDRESS.sub("", pydoc.render_doc(module, renderer=PLAIN))
    return without_repeats(WARNING.sub("", text))


def without_repeats(text: str) -> str:
    """Leave out inherited members whose class has its own description, and shorten rules to three dashes.

    A base without one (a private class, a class of a private module) is described nowhere else: its section
    stays.
    """
    described = set(CLASS_HEAD.findall(text))
    kept: list[str] = []
    repeats = False
    for line in text.split("\n"):
        if head := INHERITED.match(line):
            module, _, name = head[1].rpartition(".")
            repeats = wanted(module) if module else name in described
            if repeats and kept and CLASS_RULE.match(kept[-1].replace("---", "-" * 10)):
                kept.pop()
        elif CLASS_RULE.match(line) or not CLASS_LINE.match(line):
            repeats = False
        if not repeats:
            kept.append(CLASS_RULE.sub(lambda rule: rule[0].replace(rule[1], "---"), line))
    return "\n".join(kept)


def answer(name: str, seen: dict[int, str]) -> dict[str, str]:
    """The message for one module. `seen` maps the identities of modules already answered to their names."""
    try:
        module = importlib.import_module(name)
        if id(module) in seen:
            return {"name": name}
        seen[id(module)] = name
        return {"name": name, "text": help_text(module)}
    except BaseException as error:  # an import may raise anything, SystemExit included
        reason = " ".join(str(error).split())[:200]
        return {"name": name, "reason": f"{type(error).__name__}: {reason}"}


def main(after: str, limit: str) -> None:
    """Answer for every module behind `after` (all of them when it is empty), of the first `limit` (or of all)."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        warnings.simplefilter("ignore")
        sys.path[:] = [folder for folder in sys.path if folder]  # not the current folder
        sys.path_importer_cache.clear()
        names = module_names()[: int(limit) if limit else None]
        seen: dict[int, str] = {}
        for done, name in enumerate(names):
            if after and done <= names.index(after):
                continue
            print(json.dumps({"begin": name, "done": done, "total": len(names)}), file=out, flush=True)
            print(json.dumps(answer(name, seen)), file=out, flush=True)


if __name__ == "stdlib_help_worker":
    main(sys.argv[2], sys.argv[3])
    os._exit(0)  # threads and exit handlers that an import started must not hold us up
