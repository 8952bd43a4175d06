"""What memory a process may still take, by what the kernel says of it, and giving back what was freed."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import m2bert.memory
from m2bert.memory import memory_left

MB = 1 << 20


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: Any) -> Path:
    """A machine that has 900 MB left, and a process in a group of its own: version 2, and nested."""
    monkeypatch.setattr(m2bert.memory, "PROCESS", tmp_path / "proc")
    monkeypatch.setattr(m2bert.memory, "GROUPS", tmp_path / "groups")
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "meminfo").write_text(
        "MemTotal:  2048000 kB\nMemFree: 1 kB\nMemAvailable:  921600 kB\nHugePages\n"
    )
    (tmp_path / "proc" / "self" / "cgroup").write_text("0::/jobs/one\n")
    (tmp_path / "proc" / "self" / "status").write_text("Name:\tpython\nVmSize:\t  400000 kB\nVmData:\t  204800 kB\n")
    return tmp_path


def group(folder: Path, names: tuple[str, str], limit: str, taken: int, stat: str = "") -> None:
    folder.mkdir(parents=True)
    for name, text in zip((*names, "memory.stat"), (limit, str(taken), stat), strict=True):
        (folder / name).write_text(text + "\n")


SECOND = ("memory.max", "memory.current")
FIRST = ("memory.limit_in_bytes", "memory.usage_in_bytes")


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel of Linux")
def test_the_least_of_machine_and_groups_is_left(kernel: Path) -> None:
    assert memory_left() == 900 * MB
    pages = f"anon {150 * MB}\nactive_file {20 * MB}\ninactive_file {30 * MB}\nslab 7"
    group(kernel / "groups" / "jobs" / "one", SECOND, str(500 * MB), 200 * MB, pages)
    assert memory_left() == (500 - 200 + 50) * MB
    (kernel / "groups" / "jobs" / "one" / "memory.max").write_text("max\n")
    assert memory_left() == 900 * MB
    for name, text in zip(SECOND, (300 * MB, 250 * MB), strict=True):  # of the group around it
        (kernel / "groups" / "jobs" / name).write_text(str(text))
    (kernel / "groups" / "jobs" / "memory.stat").write_text("")
    assert memory_left() == 50 * MB
    (kernel / "groups" / "jobs" / "memory.current").write_text(str(301 * MB))
    assert memory_left() == 0


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel of Linux")
def test_groups_of_the_first_version_and_of_a_container_count(kernel: Path) -> None:
    (kernel / "proc" / "self" / "cgroup").write_text("9:cpu:/x\n4:cpuset,memory:/docker/abc\n0::/\n")
    pages = f"active_file 1\ntotal_active_file {10 * MB}\ntotal_inactive_file 0"
    group(kernel / "groups" / "memory", FIRST, str(400 * MB), 100 * MB, pages)  # all that is seen inside
    assert memory_left() == (400 - 100 + 10) * MB
    (kernel / "groups" / "memory" / FIRST[0]).write_text("9223372036854771712")
    assert memory_left() == 900 * MB


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel of Linux")
def test_what_ulimit_leaves_counts(kernel: Path, monkeypatch: Any) -> None:
    import resource

    limits = {resource.RLIMIT_DATA: 500 * MB, resource.RLIMIT_AS: resource.RLIM_INFINITY}
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (limits[kind], resource.RLIM_INFINITY))
    assert memory_left() == (500 - 200) * MB


def test_a_system_that_does_not_say_is_taken_for_a_small_one(monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setattr(m2bert.memory, "PROCESS", tmp_path)
    assert memory_left() == m2bert.memory.UNKNOWN


# Blocks of which every twentieth stays, so that the others lie between what is still there.
PROGRAM = """
from pathlib import Path
from m2bert.memory import giving_back, keep_freed
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
stay = []
def freed(size):
    blocks = [bytes([1]) * size for _ in range(100_000_000 // size)]
    stay.extend(blocks[::20])
    before = resident()
    del blocks
    return before - resident()
{keep}
print(freed(100_000))
before = resident()
with giving_back():
    print(before - resident(), freed(3_000_000))
print(freed(3_000_000))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
@pytest.mark.parametrize("keep", [False, True])
def test_what_was_freed_is_given_back(keep: bool) -> None:
    program = PROGRAM.format(keep="keep_freed()" if keep else "")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    before, given, inside, after = map(int, done.stdout.split())
    assert before < 20e6 and given > 60e6 and inside > 60e6 and after < 20e6
