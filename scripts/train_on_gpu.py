"""Distillation on another machine, by files that fit through a narrow door: pack here, run there, unpack here.

    python scripts/train_on_gpu.py pack PACK --settings run.yaml
    python scripts/train_on_gpu.py run PACK OUT --seconds 500
    python scripts/train_on_gpu.py unpack OUT RUN

`pack` draws the text of a run of `m2bert distill` and writes it as tokens of the student, with the teachers and the
settings, into files of at most --part-mb each. `run` needs no network and no other data: it trains until the run's
budget or --seconds since its start are used up, and writes weights and log into files again; called again with the
same --work folder it goes on where it was. `unpack` makes a folder of them that `--init` and `--model` take. Any
machine will do that has this project, torch and the packages that training needs; without a GPU it is slow.
Guide: docs/training.md. Test: tests/train/test_train_on_gpu.py.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import lzma
import shutil
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

import m2bert
from m2bert.cli.progress import training_progress
from m2bert.data.segments import Window
from m2bert.errors import M2BertError
from m2bert.files import whole_folder, write_text
from m2bert.model.checkpoints import is_shipped, load_model, model_folder, save_model
from m2bert.model.tokenization import encode_ids, load_tokenizer
from m2bert.train.distill import distill, load_windows
from m2bert.train.reading import config_from_mapping, gather_settings
from m2bert.train.settings import DistillConfig
from m2bert.train.teachers import segment_texts
from m2bert.train.trainer import load_run_tokenizer

sys.path.insert(0, str(Path(__file__).resolve().parent))
from packed_weights import PACKED_NAME, read_packed, write_packed

MEGABYTE = 1 << 20
WEIGHTS, SETTINGS, WINDOWS = "model.safetensors", "settings.json", "windows.npz"
# Tokens are two bytes each, which the matcher of LZMA is told.
FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 3, "lp": 1, "pb": 1}]
WORD_ROWS = "embeddings.word_embeddings.weight"
# Without these a pack of one machine would name places of it.
PLACES = {"data": ["packed"], "pairs": [], "loco": [], "validation": [], "cache": "", "output": ""}


class _Parts:
    """A file to write to that is cut into part-000, part-001, ... of at most `most` bytes."""

    def __init__(self, folder: Path, most: int) -> None:
        self.folder, self.most, self.count, self.room = folder, most, 0, 0
        self.file: BinaryIO | None = None

    def write(self, data: bytes) -> int:
        left = memoryview(data)
        while left:
            if self.room == 0:
                self.close()
                self.file = (self.folder / f"part-{self.count:03d}").open("wb")
                self.count, self.room = self.count + 1, self.most
            taken = left[: self.room]
            assert self.file is not None
            self.file.write(taken)
            left, self.room = left[len(taken) :], self.room - len(taken)
        return len(data)

    def close(self) -> None:
        if self.file is not None:
            self.file.close()


def write_parts(source: Path, target: Path, part_mb: float) -> int:
    """Compress the folder `source` into files of at most `part_mb` MiB in `target`, and say how many there are."""
    with whole_folder(target, who="pack", replace=True) as folder:
        for old in folder.glob("part-*"):
            old.unlink()
        parts = _Parts(folder, int(part_mb * MEGABYTE))
        packer = lzma.LZMACompressor(lzma.FORMAT_XZ, filters=FILTERS)
        with tempfile.TemporaryFile() as whole:
            with tarfile.open(fileobj=whole, mode="w") as archive:
                archive.add(source, arcname=".")
            whole.seek(0)
            while block := whole.read(MEGABYTE):
                parts.write(packer.compress(block))
        parts.write(packer.flush())
        parts.close()
        (folder / "parts").write_text(f"{parts.count}\n")
    return parts.count


def read_parts(source: Path, target: Path) -> None:
    """Fill the folder `target` from the files in `source`. Raises M2BertError where one of them is missing or cut."""
    try:
        count = int((source / "parts").read_text())
    except (OSError, ValueError) as error:
        raise M2BertError(
            f"unpack: {source} must hold a file `parts` and parts of a pack ({error}); copy them"
        ) from error
    missing = [name for name in (f"part-{i:03d}" for i in range(count)) if not (source / name).is_file()]
    if missing:
        raise M2BertError(f"unpack: {source} must hold {count} parts, but {', '.join(missing)} is not there; copy it")
    reader = lzma.LZMADecompressor(lzma.FORMAT_XZ)
    with tempfile.TemporaryFile() as whole:
        for number in range(count):
            whole.write(reader.decompress((source / f"part-{number:03d}").read_bytes()))
        if not reader.eof:
            raise M2BertError(f"unpack: the parts in {source} end too early; copy them again")
        whole.seek(0)
        with tarfile.open(fileobj=whole) as archive:
            archive.extractall(target, filter="data")


def save_windows(groups: Sequence[Sequence[Window]], path: Path) -> None:
    """Windows to train on and held out, as arrays: tokens, lengths, whether a query, and how many are trained on."""
    windows = [window for group in groups for window in group]
    np.savez(
        path,
        tokens=np.concatenate([window.ids for window in windows]),
        lengths=np.asarray([len(window.ids) for window in windows], dtype=np.int32),
        queries=np.asarray([window.is_query for window in windows]),
        trained=np.asarray(len(groups[0])),
    )


def load_saved_windows(path: Path) -> tuple[list[Window], list[Window]]:
    """What save_windows wrote; the names of the collections are gone."""
    arrays = np.load(path)
    pieces = np.split(arrays["tokens"], np.cumsum(arrays["lengths"])[:-1])
    made = [Window(ids, "", bool(query)) for ids, query in zip(pieces, arrays["queries"], strict=True)]
    return made[: int(arrays["trained"])], made[int(arrays["trained"]) :]


def used_rows(folder: Path, texts: Sequence[str]) -> NDArray[np.int64]:
    """Ids of the tokenizer in `folder` that occur in `texts` or in the prompts, and its special ones, in order."""
    tokenizer = load_tokenizer(folder)
    prompts: dict[str, str] = {}
    if (folder / "config_sentence_transformers.json").is_file():
        prompts = json.loads((folder / "config_sentence_transformers.json").read_text()).get("prompts") or {}
    used = set(tokenizer.all_special_ids)
    everything = [*prompts.values(), *texts]
    for start in range(0, len(everything), 1000):
        for ids in encode_ids(tokenizer, everything[start : start + 1000]):
            used.update(ids)
    return np.asarray(sorted(used), dtype=np.int64)


def pack_teacher(source: Path, target: Path, texts: Sequence[str]) -> None:
    """Copy a teacher's folder with its weights packed, of the word embeddings those that reading `texts` needs."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.bin", "*.safetensors", "*.onnx", "*.md", ".*"))
    weights = load_file(source / WEIGHTS)
    rows = {name: used_rows(source, texts) for name in weights if name.endswith(WORD_ROWS)}
    write_packed(weights, target, rows)


def unpack_teacher(folder: Path) -> None:
    """Make the weights of a packed teacher loadable again."""
    if (folder / PACKED_NAME).is_file():
        save_file(read_packed(folder), folder / WEIGHTS, metadata={"format": "pt"})
        (folder / PACKED_NAME).unlink()


def pack(settings: str, target: Path, part_mb: float) -> str:
    """Write the pack of a run of `m2bert distill`; returns what it holds, in words."""
    values = gather_settings("pack", settings, [], {"output": "packed"})
    config = config_from_mapping(DistillConfig, values, "pack")
    config.check("pack")
    tokenizer = load_run_tokenizer(config, "pack")
    with tempfile.TemporaryDirectory() as name:
        folder, cache = Path(name) / "pack", config.cache or str(Path(name) / "cache")
        folder.mkdir()
        with training_progress() as show:
            groups = load_windows(dataclasses.replace(config, cache=cache), tokenizer, show)
        save_windows(groups, folder / WINDOWS)
        windows = [window for group in groups for window in group]
        texts = segment_texts(windows, tokenizer, config.segment_tokens)[0]
        if not config.init:  # whose word embeddings are the teacher's vectors of these
            texts += [piece.removeprefix("##") for piece in tokenizer.get_vocab()]
        changed: dict[str, Any] = {**PLACES, "tokenizer": "tokenizer"}
        tokenizer.save_pretrained(folder / "tokenizer")
        changed["teacher"] = [f"teacher-{number}" for number in range(len(config.teacher))]
        for source, packed in zip(config.teacher, changed["teacher"], strict=True):
            pack_teacher(model_folder(source, "pack"), folder / packed, texts)
        if config.init and not is_shipped(config.init):
            save_model(*load_model(config.init), folder / "init")
            changed["init"] = "init"
        # What is not given is the default of the machine that trains, bfloat16 above all.
        write_text(folder / SETTINGS, json.dumps(values | changed, indent=1) + "\n", who="pack")
        count = write_parts(folder, target, part_mb)
    size = sum(path.stat().st_size for path in target.glob("part-*")) / MEGABYTE
    tokens = sum(len(window.ids) for window in windows)
    return f"{tokens:,} tokens in {len(texts):,} segments: {size:.1f} MiB in {count} parts"


class _StopAt(TrainerCallback):
    """Saves a checkpoint and stops when time.monotonic() is past the deadline."""

    def __init__(self, deadline: float) -> None:
        self.deadline, self.stopped = deadline, False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if time.monotonic() > self.deadline:
            self.stopped = control.should_training_stop = control.should_save = True


def run(pack_folder: Path, target: Path, work: Path, seconds: float, part_mb: float) -> dict[str, Any]:
    """Train for what is left of `seconds` after unpacking and reading; write weights, log and result into `target`.

    Raises M2BertError for a pack that is not whole.
    """
    stop = _StopAt(time.monotonic() + seconds)
    packed = work / "pack"
    if not packed.is_dir():
        with whole_folder(packed, who="run") as aside:
            read_parts(pack_folder, aside)
            for teacher in aside.glob("teacher-*"):
                unpack_teacher(teacher)
    values = json.loads((packed / SETTINGS).read_text(encoding="utf-8"))
    values["teacher"] = [str(packed / name) for name in values["teacher"]]
    values["tokenizer"] = str(packed / values["tokenizer"])
    if values.get("init") == "init":
        values["init"] = str(packed / "init")
    output = work / "run"
    config = DistillConfig(**{**values, "output": str(output), "cache": str(work / "cache"), "bf16_weights": True})
    windows = load_saved_windows(packed / WINDOWS)
    with training_progress() as show:
        result = distill(config, show, windows=windows, callbacks=[stop])
    result = {**result, "finished": not stop.stopped, "version": m2bert.__version__}
    with tempfile.TemporaryDirectory() as name:
        shutil.copytree(output / "model", Path(name) / "model")
        shutil.copy(output / "log.jsonl", name)
        shutil.copy(packed / SETTINGS, name)
        write_text(Path(name) / "result.json", json.dumps(result) + "\n", who="run")
        write_parts(Path(name), target, part_mb)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack", help="write the pack of a run")
    packing.add_argument("folder", type=Path, metavar="PACK")
    packing.add_argument("--settings", required=True, help="YAML file with settings of m2bert distill")
    packing.add_argument("--part-mb", type=float, default=60.0, help="MiB of a file at most")
    running = commands.add_parser("run", help="train by a pack, or go on")
    running.add_argument("folder", type=Path, metavar="PACK")
    running.add_argument("output", type=Path, metavar="OUT")
    running.add_argument("--work", type=Path, default=Path("build/train_on_gpu"), help="what a later call goes on from")
    running.add_argument("--seconds", type=float, default=500.0, help="seconds until it saves and stops")
    running.add_argument("--part-mb", type=float, default=15.0, help="MiB of a file at most")
    unpacking = commands.add_parser("unpack", help="make a model's folder of what a run wrote")
    unpacking.add_argument("folder", type=Path, metavar="OUT")
    unpacking.add_argument("run", type=Path, metavar="RUN")
    given = parser.parse_args()
    try:
        if given.command == "pack":
            print(pack(given.settings, given.folder, given.part_mb))
        elif given.command == "run":
            print(json.dumps(run(given.folder, given.output, given.work, given.seconds, given.part_mb)))
        else:
            with whole_folder(given.run, who="unpack", replace=True) as folder:
                read_parts(given.folder, folder)
    except M2BertError as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main()
