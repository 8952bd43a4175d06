"""What a run file says of its making: versions that are installed, the machine, the time."""

from __future__ import annotations

import json
import os
import platform
from datetime import UTC, datetime, timedelta
from importlib import metadata
from pathlib import Path
from typing import Any

import m2bert
import m2bert.provenance
from m2bert.provenance import PACKAGES, machine, provenance, versions


def test_versions_are_those_of_the_installed_packages(monkeypatch: Any) -> None:
    found = versions()
    assert found["m2bert"] == m2bert.__version__ and found["python"] == platform.python_version()
    assert set(found) - {"m2bert", "python"} == {name for name in PACKAGES if any(metadata.distributions(name=name))}
    assert found["numpy"] == __import__("numpy").__version__
    monkeypatch.setattr(m2bert.provenance, "PACKAGES", ("numpy", "no-such-package-anywhere"))
    assert set(versions()) == {"m2bert", "python", "numpy"}


def test_the_processor_is_named_where_the_system_tells(monkeypatch: Any, tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    monkeypatch.setattr(m2bert.provenance, "CPU_INFO", info)
    bare = machine()
    assert bare == {"system": platform.platform(), "processor": platform.machine(), "cpu_count": os.cpu_count()}
    info.write_bytes(b"processor\t: 0\nmodel name\t: Some CPU: caf\xe9 @ 2 GHz\nmodel name\t: Another\n")
    assert machine() == bare | {"model": "Some CPU: caf\ufffd @ 2 GHz"}
    info.write_text("processor : 0\nCPU part : 0xd0c\n")
    assert machine() == bare


def test_provenance_is_plain_data_with_the_time_in_utc() -> None:
    found = json.loads(json.dumps(provenance()))
    assert set(found) == {"versions", "machine", "created"}
    age = datetime.now(UTC) - datetime.fromisoformat(found["created"])
    assert timedelta(seconds=-1) <= age < timedelta(minutes=1)
