"""What an import costs: `import m2bert` next to nothing, the store without a client that it does not use."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from m2bert._lazy import postponed


def in_a_fresh_process(code: str) -> Any:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_importing_the_package_takes_less_than_a_fifth_of_a_second() -> None:
    code = (
        "import json, sys, time\nbefore = time.process_time()\nimport m2bert\nspent = time.process_time() - before\n"
        "print(json.dumps([spent, sorted({'torch', 'numpy', 'lancedb', 'transformers'} & set(sys.modules))]))"
    )
    runs = [in_a_fresh_process(code) for _ in range(3)]
    assert min(seconds for seconds, _ in runs) < 0.2
    assert [loaded for _, loaded in runs] == [[], [], []]


def test_the_store_loads_no_client_of_a_service_which_stays_whole() -> None:
    code = (
        "import json, sys\nimport m2bert.search.stores.lance\n"
        "before = 'lance_namespace_urllib3_client.api' in sys.modules\n"
        "import lance_namespace_urllib3_client as client\n"
        "print(json.dumps([before, client.TableApi.__name__, client.__version__[0].isdigit()]))"
    )
    assert in_a_fresh_process(code) == [False, "TableApi", True]


def test_opening_a_store_loads_no_pandas_which_can_be_loaded_later() -> None:
    pytest.importorskip("pandas")
    code = (
        "import json, sys\nfrom m2bert.cli.models import Running\nfrom m2bert.cli.search import open_to_read\n"
        "from m2bert.errors import M2BertError\n"
        "try:\n    open_to_read('nowhere', None, Running())\nexcept M2BertError:\n    pass\n"
        "before = ['pyarrow.dataset' in sys.modules, 'pandas' in sys.modules]\n"
        "import pyarrow as pa\nprint(json.dumps([*before, pa.table({'a': [1, 2]}).to_pandas()['a'].sum().item()]))"
    )
    assert in_a_fresh_process(code) == [True, False, 3]


@pytest.fixture()
def slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """A package `slow_package` that waits for this event when it is run."""
    folder = tmp_path / "slow_package"
    folder.mkdir()
    (folder / "__init__.py").write_text(
        "import sys\nfrom slow_package import part\ngate = sys.modules['builtins'].slow_gate\n"
        "assert gate.wait(20)\nruns = sys.modules['builtins'].slow_runs\nruns.append(1)\nlate = part.VALUE + 1\n"
    )
    (folder / "part.py").write_text("VALUE = 41\n")
    gate = threading.Event()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("builtins.slow_gate", gate, raising=False)
    monkeypatch.setattr("builtins.slow_runs", [], raising=False)
    for name in ("slow_package", "slow_package.part"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return gate


def test_a_postponed_package_runs_once_when_a_name_is_asked_for(slow: threading.Event) -> None:
    import builtins

    runs = builtins.slow_runs  # type: ignore[attr-defined]
    with postponed("slow_package"):
        part = importlib.import_module("slow_package.part")
    assert part.VALUE == 41 and runs == []
    package = importlib.import_module("slow_package")
    assert package.part is part and runs == []
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(getattr, package, "late") for _ in range(2)]
        slow.set()
        assert [each.result(20) for each in asked] == [42, 42] and runs == [1]
    assert not hasattr(package, "nothing") and "__getattr__" not in vars(package)


def test_outside_packages_are_run_as_ever(slow: threading.Event) -> None:
    slow.set()
    with postponed("another_package"):
        assert importlib.import_module("slow_package").late == 42
    assert [type(finder).__name__ for finder in sys.meta_path].count("_Postponing") == 0
