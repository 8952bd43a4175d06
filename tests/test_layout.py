"""The laws of the layout: which way imports point, what a reference may call, what belongs to every operator.

Each law is a function from source texts to a list of violations. Every test also shows it violations, so that
a law that finds nothing is known to look.
"""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import m2bert

ROOT = Path(__file__).resolve().parent.parent
# The order of the rooms: a module imports from its own room and from floors further down, never from a neighbour.
FLOORS = (
    ("cli",),
    ("demo", "serve", "integrations"),
    ("train", "search", "bench"),
    ("data", "encoders"),
    ("model",),
    ("ranking", "pretrained", "files", "jsonl", "provenance"),
    ("bounds", "memory"),
    ("errors",),
)
# These see ids, text and arrays: no torch is loaded until an encoder is asked for.
WITHOUT_TORCH = (
    "ranking",
    "search",
    "bench",
    "demo",
    "serve",
    "cli",
    "errors",
    "bounds",
    "memory",
    "files",
    "jsonl",
    "provenance",
)
TORCH_FREE = ("csrc/cpu", "csrc/cuda", "csrc/plan")
BAD_STEM = re.compile(r"(^|_)(utils?|helpers?|common|misc)(_|$)")


def read_modules(package: str) -> dict[str, str]:
    """Module name -> source of every Python file of a package."""
    sources = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        if not all(part.isidentifier() for part in path.relative_to(ROOT).parent.parts):
            continue  # the one line that a shipped model's folder has for transformers
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        sources[name] = path.read_text(encoding="utf-8")
    return sources


def is_below(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


def runtime_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes except those under `if TYPE_CHECKING:`, which are never run."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from runtime_nodes(node)


def imports(source: str, *, at_import_only: bool = False) -> set[str]:
    """Modules a source imports, anywhere or only when imported itself; `from a import b` gives a and a.b."""
    tree = ast.parse(source)
    nodes = tree.body if at_import_only else runtime_nodes(tree)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def floor(module: str) -> int | None:
    """The floor of a module's room; None for the package itself, whose names are lazy, and for other packages."""
    room = module.split(".")[1] if module.startswith("m2bert.") else ""
    return next((number for number, rooms in enumerate(FLOORS) if room in rooms), None)


def upward_imports(sources: dict[str, str]) -> list[str]:
    """Imports of a floor further up or of a neighbour, and imports of m2bert by m2ops."""
    found = []
    for module, source in sources.items():
        for target in imports(source):
            upward = is_below(module, ("m2ops",)) and is_below(target, ("m2bert",))
            here, there = floor(module), floor(target)
            if here is not None and there is not None:
                upward |= there < here or (there == here and module.split(".")[1] != target.split(".")[1])
            if upward:
                found.append(f"{module} imports {target}")
    return sorted(found)


def homeless(sources: dict[str, str]) -> list[str]:
    """Modules of m2bert in no room; those whose names begin with an underscore hold the package together."""
    return [name for name in sources if name.startswith("m2bert.") and floor(name) is None and "._" not in name]


def circular_imports(sources: dict[str, str]) -> list[str]:
    """Modules that import themselves through others when they are imported."""
    graph = {
        module: {target for target in imports(source, at_import_only=True) if target in sources and target != module}
        for module, source in sources.items()
    }
    found = []
    for module in graph:
        reached, waiting = set(), list(graph[module])
        while waiting:
            target = waiting.pop()
            if target not in reached:
                reached.add(target)
                waiting += graph[target]
        if module in reached:
            found.append(module)
    return found


def torch_includes(sources: dict[str, str]) -> list[str]:
    """Includes of torch or Python headers in kernels."""
    pattern = re.compile(r'^\s*#\s*include\s*[<"]((?:torch|ATen|c10|pybind11)/[^>"]+|Python\.h)', re.MULTILINE)
    return [f"{name} includes {header}" for name, source in sources.items() for header in pattern.findall(source)]


def functions(sources: dict[str, str]) -> dict[str, ast.FunctionDef]:
    """Name -> definition of every function at the top of the modules; names are unique across m2ops."""
    trees = [ast.parse(source) for source in sources.values()]
    return {node.name: node for tree in trees for node in tree.body if isinstance(node, ast.FunctionDef)}


def kernel_calls_of_references(sources: dict[str, str]) -> list[str]:
    """References that reach torch.ops, by themselves or through a function they call."""
    defined, found = functions(sources), []
    for reference in (name for name in defined if name.endswith("_ref")):
        reached, waiting = set(), [reference]
        while waiting:
            name = waiting.pop()
            if name in reached:
                continue
            reached.add(name)
            for node in ast.walk(defined[name]):
                if isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.ops":
                    found.append(f"{reference} reaches torch.ops in {name}")
                if isinstance(node, ast.Name) and node.id in defined:
                    waiting.append(node.id)
    return sorted(found)


def schema_names(ops_cpp: str) -> list[str]:
    """Operators of the table of contents, without backward halves and what another operator alone calls (`_name`)."""
    names = re.findall(r'm\.def\(\s*"(\w+)\(', ops_cpp)
    return [name for name in names if not name.endswith("_bwd") and not name.startswith("_")]


def incomplete_operators(names: list[str], sources: dict[str, str], tests: str, benchmarks: str) -> list[str]:
    """Operators without a reference of the same arguments, a shape per tensor, a test, or a benchmark."""
    defined, found = functions(sources), []
    for name in names:
        if name not in defined or f"{name}_ref" not in defined:
            found.append(f"{name} has no {name if name not in defined else name + '_ref'}")
            continue
        op, reference = defined[name], defined[f"{name}_ref"]
        if ast.dump(op.args) != ast.dump(reference.args):
            found.append(f"{name}_ref must take the arguments of {name}")
        docstring = ast.get_docstring(op) or ""
        tensors = [each for each in op.args.args if each.annotation and "Tensor" in ast.unparse(each.annotation)]
        for tensor in tensors:
            if not re.search(rf"(?<!\w){tensor.arg}(?:, \w+)*: \S", docstring):
                found.append(f"{name} does not give the shape of {tensor.arg}")
        for kind, text in (("test", tests), ("benchmark", benchmarks)):
            if not re.search(rf"\b{name}\b", text):
                found.append(f"{name} has no {kind}")
    return found


def badly_named(paths: list[str]) -> list[str]:
    """Files named after nothing in particular; the one exception is the header shared by all CUDA kernels."""
    return [path for path in paths if BAD_STEM.search(Path(path).name.split(".")[0]) and path != "csrc/cuda/common.cuh"]


def joined(pattern: str) -> str:
    return "\n".join(
        path.read_text(encoding="utf-8") for path in sorted(ROOT.glob(pattern)) if path.name != Path(__file__).name
    )


PACKAGES = {**read_modules("m2ops"), **read_modules("m2bert")}


def test_imports_point_down():
    assert upward_imports(PACKAGES) == []
    assert upward_imports({"m2ops._x": "import m2bert.errors"}) == ["m2ops._x imports m2bert.errors"]
    assert upward_imports({"m2bert.bench.new": "def f():\n    from m2bert.cli import main"}) != []
    assert upward_imports({"m2bert.bench.new": "from m2bert.search.index import SearchIndex"}) != []
    assert upward_imports({"m2bert.model.modeling": "from m2bert.encoders.embedder import Embedder"}) != []
    assert upward_imports({"m2bert.encoders.embedder": "from m2bert.model.modeling import M2BertModel"}) == []


def test_every_module_has_a_room():
    assert homeless(PACKAGES) == []
    assert homeless({"m2bert.new": "", "m2bert._lazy": "", "m2bert.cli.new": ""}) == ["m2bert.new"]
    folders = {path.parent.name for path in ROOT.glob("m2bert/*/*.py")}
    for name in folders & {room for rooms in FLOORS for room in rooms}:
        assert importlib.import_module(f"m2bert.{name}").__doc__, f"{name} does not say what it is for"


def test_imports_have_no_circles():
    assert circular_imports(PACKAGES) == []
    assert circular_imports({"a": "import b", "b": "from c import x", "c": "import a", "d": "import a"}) == [
        "a",
        "b",
        "c",
    ]


def test_kernels_include_neither_torch_nor_python():
    files = [path for folder in TORCH_FREE for path in sorted((ROOT / folder).rglob("*")) if path.is_file()]
    sources = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in files}
    assert len(sources) > 5
    assert torch_includes(sources) == []
    for header in (
        "<torch/csrc/stable/tensor.h>",
        '"ATen/ATen.h"',
        "<c10/core/Device.h>",
        "<pybind11/pybind11.h>",
        "<Python.h>",
    ):
        assert len(torch_includes({"csrc/cpu/x.h": f"#pragma once\n  # include {header}\n"})) == 1


def test_references_never_reach_a_kernel():
    sources = read_modules("m2ops")
    assert any(name.endswith("_ref") for name in functions(sources))
    assert kernel_calls_of_references(sources) == []
    hidden = {
        "m2ops._x": "def x(u): return torch.ops.m2ops.x(u)\ndef step(u): return x(u)\ndef x_ref(u): return step(u)\n"
    }
    assert kernel_calls_of_references(hidden) == ["x_ref reaches torch.ops in x"]
    assert kernel_calls_of_references({"m2ops._x": "def x_ref(u): return torch.fft.rfft(u)"}) == []


def test_every_operator_is_complete():
    names = schema_names((ROOT / "csrc" / "ops.cpp").read_text(encoding="utf-8"))
    assert {"fft_conv", "monarch_mixer"} <= set(names)
    sources = read_modules("m2ops")
    assert incomplete_operators(names, sources, joined("tests/*/test_*.py"), joined("benchmarks/*.py")) == []
    lame = {"m2ops._x": 'def x(u: Tensor, v: Tensor):\n    """u: (dim,)."""\ndef x_ref(u: Tensor):\n    pass'}
    assert incomplete_operators(["x", "y"], lame, "x(1)", "") == [
        "x_ref must take the arguments of x",
        "x does not give the shape of v",
        "x has no benchmark",
        "y has no y",
    ]


def test_no_file_is_named_after_nothing():
    folders = ("csrc", "m2ops", "m2bert", "tests", "benchmarks", "examples", "scripts")
    files = [str(path.relative_to(ROOT)) for folder in folders for path in (ROOT / folder).rglob("*.*")]
    assert badly_named(files) == []
    assert badly_named(["m2ops/utils.py", "tests/test_helpers.py", "csrc/common.h", "m2bert/community.py"]) == [
        "m2ops/utils.py",
        "tests/test_helpers.py",
        "csrc/common.h",
    ]


TEST_FILE = re.compile(r"\btests/[\w/]+\.py\b")


def missing_tests(sources: dict[str, str]) -> list[str]:
    """Of files, given with their sources, the tests that they name and that no file is."""
    named = ((name, test) for name, source in sources.items() for test in TEST_FILE.findall(source))
    return [f"{name} names {test}" for name, test in named if not (ROOT / test).is_file()]


def test_tests_that_files_name_are_there():
    files = [path for folder in ("m2ops", "m2bert", "scripts", "csrc") for path in (ROOT / folder).rglob("*.*")]
    kinds = {".py", ".h", ".cpp", ".cu", ".cuh", ".inl"}
    sources = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in files if path.suffix in kinds}
    assert missing_tests(sources) == []
    assert sum(bool(TEST_FILE.search(source)) for source in sources.values()) > 100
    assert missing_tests({"a.py": "Test: tests/test_layout.py, tests/test_no.py."}) == ["a.py names tests/test_no.py"]


LOAD_ALL = """
import importlib, pkgutil, socket
def refuse(*args, **kwargs):
    raise AssertionError("network used on import")
socket.socket.connect = socket.getaddrinfo = refuse
import m2bert, m2ops
for package in (m2ops, m2bert):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        # Integrations import what others wrote.
        name, loaded = module.name, not module.name.startswith("m2bert.integrations.")
        if loaded and not name.rpartition(".")[2].startswith(("__main__", "lib", "_C")):
            importlib.import_module(module.name)
"""


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)


def test_importing_prints_nothing_and_uses_no_network():
    done = run_python(LOAD_ALL)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_rooms_of_ids_and_text_load_without_torch():
    rooms = tuple(f"m2bert.{room}" for room in WITHOUT_TORCH)
    modules = [name for name in PACKAGES if is_below(name, rooms)]
    assert len(modules) > 30
    loads = "\n".join(f"import {name}\nassert 'torch' not in sys.modules, '{name} loads torch'" for name in modules)
    done = run_python(f"import sys\n{loads}")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_public_names_are_the_promised_ones():
    assert set(m2bert.__all__) == {
        "__version__", "DocumentEmbedding", "Embedder", "M2BertConfig", "M2BertError", "M2BertForMaskedLM",
        "M2BertForSequenceClassification", "M2BertModel", "SearchIndex", "load_model", "load_reference",
        "model_folder",
    }  # fmt: skip
    for name in m2bert.__all__:
        assert getattr(m2bert, name) is not None
    with pytest.raises(AttributeError, match=r"'m2bert' has no attribute 'Embeder'; it has .*Embedder"):
        m2bert.Embeder  # noqa: B018


def test_every_face_hands_out_what_it_names():
    for room in ("bench", "data", "demo", "encoders", "integrations", "model", "ranking", "search", "serve", "train"):
        face = importlib.import_module(f"m2bert.{room}")
        assert face.__all__, room
        for name in face.__all__:
            assert getattr(face, name).__module__.startswith(f"m2bert.{room}."), f"{room} does not define {name}"


@pytest.mark.parametrize(
    ("old", "name", "new"),
    [
        ("checkpoints", "save_model", "model.checkpoints"),
        ("configuration", "M2BertConfig", "model.configuration"),
        ("documents", "read_corpus", "search.documents"),
        ("evaluate", "evaluate_tasks", "bench.evaluate"),
        ("layers", "TokenWeights", "model.pooling"),
        ("layers", "Encoder", "model.layers"),
        ("modeling", "M2BertModel", "model.modeling"),
        ("mteb_adapter", "as_mteb_model", "bench.mteb_adapter"),
        ("pretrain", "PretrainConfig", "train.pretrain"),
        ("systems", "EncoderSystem", "bench.systems"),
        ("systems", "Encoder", "encoders.protocol"),
        ("tasks", "load_task", "bench.tasks"),
    ],
)
def test_old_addresses_import_with_a_warning(old: str, name: str, new: str):
    sys.modules.pop(f"m2bert.{old}", None)
    with pytest.warns(DeprecationWarning, match=f"m2bert.{old} is now .*m2bert.{new}"):
        module = importlib.import_module(f"m2bert.{old}")
    assert getattr(module, name) is getattr(importlib.import_module(f"m2bert.{new}"), name)
    with pytest.raises(AttributeError, match="has 'nothing'"):
        module.nothing  # noqa: B018
