"""The container recipe as far as it can be judged without an engine that builds it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import typer
import yaml

from m2bert.cli import build_app

ROOT = Path(__file__).resolve().parents[2]
KNOWN = {
    "FROM", "RUN", "WORKDIR", "COPY", "ENV", "USER", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK", "ENTRYPOINT", "CMD",
}  # fmt: skip


def instructions() -> list[tuple[str, str]]:
    """(name, rest) of every instruction, comments left out and continued lines joined."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    joined = lines.replace("\\\n", " ").splitlines()
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in joined if line.strip()]


def options_of_serve() -> set[str]:
    group: Any = typer.main.get_command(build_app())
    return {name for parameter in group.commands["serve"].params for name in parameter.opts}


def check_command(arguments: list[str]) -> None:
    """Every option is one of `m2bert serve`."""
    options = {argument for argument in arguments if argument.startswith("-")}
    assert options and options <= options_of_serve()


def test_the_recipe_is_whole() -> None:
    found = instructions()
    assert {name for name, _ in found} == KNOWN
    stages = [rest.split() for name, rest in found if name == "FROM"]
    named = {words[2] for words in stages if len(words) == 3 and words[1] == "AS"}
    for name, rest in found:
        if name == "COPY":
            source = re.match(r"--from=(\w+) ", rest)
            assert source[1] in named if source else (ROOT / rest.split()[0]).exists()
        if name in ("ENTRYPOINT", "CMD"):
            json.loads(rest)
    last = found[max(place for place, (name, _) in enumerate(found) if name == "FROM") :]
    assert [rest for name, rest in last if name == "USER"] == ["m2bert"]
    assert [name for name, _ in last].index("USER") < [name for name, _ in last].index("ENTRYPOINT")
    by_name = dict(last)
    assert json.loads(by_name["ENTRYPOINT"]) == ["m2bert", "serve"]
    check_command(json.loads(by_name["CMD"]))


def test_compose_is_whole() -> None:
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
    assert set(compose) == {"services", "volumes"} and set(compose["services"]) == {"m2bert", "database"}
    check_command(compose["services"]["m2bert"]["command"])
    for service in compose["services"].values():
        assert ("image" in service) != ("build" in service)
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert compose["services"]["database"]["image"].startswith("pgvector/pgvector")
