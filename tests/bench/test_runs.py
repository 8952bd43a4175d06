"""Run files: written whole or not at all, read back as they were, refused by name when they are something else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from m2bert.bench.runs import load_run, save_run
from m2bert.errors import M2BertError
from m2bert.files import check_output
from m2bert.provenance import provenance


def test_a_run_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    run = {"kind": "needle", "title": "Höhle", "values": [0.1, None], **provenance()}
    save_run(tmp_path / "run.json", run, who="test")
    assert load_run(tmp_path / "run.json") == run
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
    assert {"m2bert", "python", "numpy"} <= set(run["versions"])
    assert run["machine"]["cpu_count"] >= 1 and run["created"].endswith("+00:00")


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    for text, message in (("{", "must be a JSON file"), ("[1]", "got None"), (json.dumps({"kind": "x"}), "got 'x'")):
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(M2BertError, match=message):
            load_run(tmp_path / "run.json")
    for old in ({}, {"version": 1}):
        (tmp_path / "run.json").write_text(json.dumps({"kind": "explanation", **old}))
        with pytest.raises(M2BertError, match=r"run\.json is an explanation of an older version"):
            load_run(tmp_path / "run.json")
    now = {"kind": "explanation", "version": 2}
    (tmp_path / "run.json").write_text(json.dumps(now))
    assert load_run(tmp_path / "run.json") == now
    with pytest.raises(M2BertError, match=r"cannot read .*none\.json"):
        load_run(tmp_path / "none.json")


def test_places_that_cannot_be_written_are_told_before_the_work(tmp_path: Path) -> None:
    check_output(None, who="test")
    check_output(tmp_path / "run.json", who="test")
    with pytest.raises(M2BertError, match="test: no such folder for --png"):
        check_output(tmp_path / "no" / "run.png", who="test", option="--png")
    with pytest.raises(M2BertError, match="must name a file, got the folder"):
        check_output(tmp_path, who="test")
    with pytest.raises(M2BertError, match="test: cannot write"):
        save_run(tmp_path / "no" / "run.json", {}, who="test")
