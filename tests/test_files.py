"""Files are written whole: what a reader sees, what stays after a failure, links, devices, and the cache's place."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import m2bert.files
from m2bert.errors import M2BertError
from m2bert.files import cache_folder, whole_file, whole_folder, write_text


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_reader_sees_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    place = tmp_path / "run.json"
    write_text(place, "old ü", who="test")
    with whole_file(place, who="test") as file:
        file.write(b"new")
        file.flush()
        assert place.read_text(encoding="utf-8") == "old ü"
    assert place.read_bytes() == b"new" and names(tmp_path) == ["run.json"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_nothing_changes_when_the_writer_fails(tmp_path: Path, error: type[BaseException]) -> None:
    write_text(tmp_path / "run.json", "old", who="test")
    with pytest.raises(error), whole_file(tmp_path / "run.json", who="test") as file:
        file.write(b"half")
        raise error
    with pytest.raises(error), whole_folder(tmp_path / "cache", who="test") as folder:
        (folder / "half").touch()
        raise error
    assert (tmp_path / "run.json").read_text() == "old" and names(tmp_path) == ["run.json"]


def test_an_existing_file_keeps_its_permissions(tmp_path: Path) -> None:
    write_text(tmp_path / "private", "old", who="test")
    (tmp_path / "private").chmod(0o600)
    write_text(tmp_path / "private", "new", who="test")
    assert stat.S_IMODE((tmp_path / "private").stat().st_mode) == 0o600
    mask = os.umask(0)
    os.umask(mask)
    write_text(tmp_path / "other", "new", who="test")
    assert stat.S_IMODE((tmp_path / "other").stat().st_mode) == 0o666 & ~mask


def test_links_stay_and_their_targets_are_written(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for target in ("there/old.json", "there/not yet.json"):
        (tmp_path / "link").symlink_to(target)
        write_text(tmp_path / "link", "new", who="test")
        assert (tmp_path / "link").is_symlink() and (tmp_path / target).read_text() == "new"
        (tmp_path / "link").unlink()
    (tmp_path / "there" / "cache").mkdir()
    (tmp_path / "link").symlink_to("there/cache")
    with whole_folder(tmp_path / "link", who="test", replace=True) as folder:
        (folder / "a").touch()
    assert (tmp_path / "link").is_symlink() and names(tmp_path / "there" / "cache") == ["a"]


def test_a_pipe_is_written_through(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_text()))
    reader.start()
    write_text(tmp_path / "pipe", "through", who="test")
    reader.join(10)
    assert read == ["through"] and stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_a_device_stays_a_device(tmp_path: Path) -> None:
    try:
        os.mknod(tmp_path / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        write_text(tmp_path / "null", "gone", who="test")
    except PermissionError:
        pytest.skip("needs a user who may make device nodes")
    assert stat.S_ISCHR((tmp_path / "null").lstat().st_mode) and names(tmp_path) == ["null"]


def test_what_cannot_be_written_is_said_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "no" / "run.json", tmp_path, tmp_path / "file" / "x", tmp_path / ("n" * 300)):
        with pytest.raises(M2BertError, match=r"^test: cannot write .* \(.+\); name another place"):
            write_text(place, "text", who="test")
    for place in (tmp_path / "file" / "x", tmp_path / ("n" * 300)):
        with pytest.raises(M2BertError, match=r"^test: cannot write"), whole_folder(place, who="test"):
            pass
    with whole_file(tmp_path / "made" / "too" / "x", who="test", parents=True) as file:
        file.write(b"text")
    assert names(tmp_path) == ["file", "made"] and names(tmp_path / "made" / "too") == ["x"]


def test_a_folder_appears_when_it_is_complete(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "in" / "cache", who="test") as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "a").write_text("a")
        assert not (tmp_path / "in" / "cache").exists()
    assert names(tmp_path / "in") == ["cache"] and (tmp_path / "in" / "cache" / "sub" / "a").read_text() == "a"


def test_the_folder_of_another_writer_stays(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "cache", who="test") as folder:
        (folder / "mine").touch()
        (tmp_path / "cache").mkdir()
        (tmp_path / "cache" / "theirs").touch()
    assert names(tmp_path / "cache") == ["theirs"] and names(tmp_path) == ["cache"]


def test_a_replaced_folder_keeps_other_files(tmp_path: Path) -> None:
    for text in ("first", "second"):
        with whole_folder(tmp_path / "model", who="test", replace=True) as folder:
            (folder / "weights").write_text(text)
            if text == "first":
                (folder / "card").write_text("a card")
    assert {entry.name: entry.read_text() for entry in (tmp_path / "model").iterdir()} == {
        "weights": "second", "card": "a card",
    }  # fmt: skip
    assert names(tmp_path) == ["model"]


def test_the_old_folder_comes_back_when_it_cannot_be_replaced(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_text("old")
    monkeypatch.setattr(m2bert.files, "_exchange", lambda one, other: False)
    rename = Path.rename

    def failing(self: Path, target: Any) -> Any:
        if self.name.endswith(".part"):
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with (
        pytest.raises(M2BertError, match="No space left"),
        whole_folder(tmp_path / "model", who="test", replace=True) as new,
    ):
        (new / "weights").write_text("new")
    assert (tmp_path / "model" / "weights").read_text() == "old" and names(tmp_path) == ["model"]


KILLED = """
import itertools, json, os, signal, sys
from pathlib import Path
import m2bert.files

parent, exchanges = Path(sys.argv[1]), sys.argv[2] == "True"
model = parent / "model"
if not exchanges:
    m2bert.files._exchange = lambda one, other: False

def save(text):
    with m2bert.files.whole_folder(model, who="test", replace=True) as folder:
        (folder / "weights").write_text(text)

def killed_before(number, text):
    # In a process of its own, at its number-th call to the system that Python audits.
    if (process := os.fork()) == 0:
        left = iter(range(number))
        def count(event, arguments):
            if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir") and next(left, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(count)
        save(text)
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(process, 0)[1])

save("0")
(model / "card").write_text("a card")
outcomes = []
for number in itertools.count():
    if not killed_before(number, f"{number + 1}"):
        break
    found = (model / "weights").read_text() if model.exists() else "gone"
    outcomes.append({f"{number}": "old", f"{number + 1}": "new"}.get(found, found))
    save(f"{number + 1}")
    # Nothing of the killed writer is left, and nothing that is not written anew is lost.
    assert os.listdir(parent) == ["model"] and (model / "weights").read_text() == f"{number + 1}"
    assert (model / "card").read_text() == "a card"
print(json.dumps(outcomes))
"""


@pytest.mark.parametrize("exchanges", [True, False], ids=["exchange", "two renames"])
def test_a_folder_is_old_or_new_wherever_its_writer_is_killed(tmp_path: Path, exchanges: bool) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(exchanges)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout)
    order = ["old", "new"] if exchanges else ["old", "gone", "new"]
    assert len(outcomes) > 15 and outcomes == sorted(outcomes, key=order.index) and set(outcomes) == set(order)


@pytest.mark.skipif(sys.platform != "linux", reason="renameat2 is a call of Linux")
def test_folders_are_exchanged_in_one_step_here(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    if not m2bert.files._exchange(tmp_path / "one", tmp_path / "other"):
        pytest.skip("the file system of temporary files cannot exchange two names")
    assert names(tmp_path / "one") == ["other"] and names(tmp_path / "other") == ["one"]
    assert not m2bert.files._exchange(tmp_path / "one", tmp_path / "none")


def test_what_a_killed_writer_leaves_goes_and_what_another_writes_stays(tmp_path: Path) -> None:
    left = [tmp_path / f".{name}.0123456789ab.part" for name in ("run.json", "cache")]
    left[0].touch()
    left[1].mkdir()
    (tmp_path / ".run.json.notours.part").touch()
    with whole_file(tmp_path / "run.json", who="test") as file, whole_folder(tmp_path / "cache", who="test") as folder:
        assert not any(path.exists() for path in left)
        (folder / "half").touch()
        write_text(tmp_path / "run.json", "another", who="test")
        with whole_folder(tmp_path / "cache", who="test", replace=True) as other:
            (other / "whole").touch()
        file.write(b"text")
    assert names(tmp_path) == [".run.json.notours.part", "cache", "run.json"]
    assert (tmp_path / "run.json").read_text() == "text" and names(tmp_path / "cache") == ["whole"]


def test_without_locks_what_is_left_goes_after_a_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(path: Path) -> int:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(m2bert.files, "_lock", no_locks)
    (tmp_path / ".run.json.0123456789ab.part").touch()
    write_text(tmp_path / "run.json", "text", who="test")
    assert names(tmp_path) == [".run.json.0123456789ab.part", "run.json"]  # another process may be at work there
    monkeypatch.setattr(m2bert.files, "SECONDS_UNTIL_LEFT", 0.0)
    write_text(tmp_path / "run.json", "text", who="test")
    assert names(tmp_path) == ["run.json"]


@pytest.mark.skipif(sys.platform != "linux", reason="the folders of the XDG specification")
def test_the_cache_is_where_the_environment_says(monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder("embeddings") == tmp_path / "xdg" / "m2bert" / "embeddings"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for value in ("", "relative/cache"):  # the specification: paths that are not absolute are to be ignored
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert cache_folder("embeddings") == tmp_path / "home" / ".cache" / "m2bert" / "embeddings"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder("a store") == tmp_path / "home" / ".cache" / "m2bert" / "a store"
    assert names(tmp_path) == []
