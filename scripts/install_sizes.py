"""What an install brings: `python scripts/install_sizes.py`, with a Python that has all extras (`make test`).

Prints a table in Markdown of the package without extras and of what each extra adds to it: packages and their files in
MB (10^6 bytes), the largest first. The packages are those that pyproject.toml and what it names require, as installed
here; this package itself does not count.
Test: tests/test_install_sizes.py.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
NAMED = 5  # of the packages of a row, the largest
OURS = "m2bert"


def main() -> None:
    """Print the table."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    base = required(project["dependencies"])
    rows = [("no extras", base)]
    for extra, requirements in project["optional-dependencies"].items():
        every = required([*project["dependencies"], *requirements])
        rows.append((f"`{extra}` adds", {name: found for name, found in every.items() if name not in base}))
    print("| | packages | MB | the largest |\n|---|---|---|---|")
    for name, packages in rows:
        sizes = {package: size(found) for package, found in packages.items() if package != OURS}
        largest = sorted(sizes, key=lambda package: -sizes[package])[:NAMED]
        words = ", ".join(f"{package} {sizes[package]:,.0f}" for package in largest)
        print(f"| {name} | {len(sizes)} | {sum(sizes.values()):,.0f} | {words} |")


def required(requirements: Iterable[str]) -> dict[str, Distribution]:
    """All packages that these requirements bring, by name."""
    found: dict[str, Distribution] = {}
    waiting = [(Requirement(text), frozenset({""})) for text in requirements]
    seen = set()
    while waiting:
        requirement, extras = waiting.pop()
        if requirement.marker and not any(requirement.marker.evaluate({"extra": extra}) for extra in extras):
            continue
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        mine = frozenset(requirement.extras) or frozenset({""})
        if (name, mine) in seen:
            continue
        seen.add((name, mine))
        found[name] = distribution(name)
        waiting += [(Requirement(text), mine) for text in found[name].requires or ()]
    return found


def size(package: Distribution) -> float:
    """The bytes of a package's files, in MB."""
    paths = [Path(str(file.locate())) for file in package.files or ()]
    return sum(path.stat().st_size for path in paths if path.exists()) / 1e6


if __name__ == "__main__":
    main()
