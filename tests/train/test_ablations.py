"""scripts/ablations.py at a tiny size: arms differ in what is named alone, and finished arms are not run again."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
SEED = 5


@pytest.fixture(scope="module")
def ablations() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        yield importlib.import_module("ablations")


def fields_file(output: Path) -> Path:
    """Model fields of a tiny size, in a file."""
    fields = {"hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 32, "filter_order": 8}
    path = output / "fields.json"
    path.write_text(json.dumps(fields))
    return path


def text_command(world: Path, kind: str, output: Path) -> list[str]:
    return [
        kind, "--data", str(world / "text"), "--validation", str(world / "text"), "--output", str(output),
        "--tokenizer", str(world / "tokenizer"), "--config", str(fields_file(output)), "--long", "64",
        "--max-tokens", "600", "--seeds", str(SEED), "--validation-tokens", "2000", "--set", "bf16=false",
        "--set", "logging_steps=1",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def mixture(ablations: ModuleType, world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("mixture")
    ablations.main(text_command(world, "mixture", output))
    return output


def differing(folders: list[Path]) -> set[str]:
    """Names of settings that are not the same in all runs."""
    settings = [json.loads((folder / "settings.json").read_text()) for folder in folders]
    return {name for name in settings[0] if any(each[name] != settings[0][name] for each in settings)} - {"output"}


def arms(output: Path, kind: str) -> dict[str, dict[str, Any]]:
    return {row["arm"]: row for row in json.loads((output / f"{kind}.json").read_text())["arms"]}


def test_mixtures_differ_in_the_mixture_alone(mixture: Path) -> None:
    made = arms(mixture, "mixture")
    assert list(made) == ["short", "long", "mixed"]
    assert differing([mixture / f"{name}-{SEED}" for name in made]) == {"variable_share"}
    # The same start and budget, other text.
    assert all(600 <= row["tokens"] < 600 + 2 * 64 and row["seed"] == SEED for row in made.values())
    assert len({row["validation_loss"] for row in made.values()}) == 3
    assert all(0 < row["validation_loss"] < 2 * math.log(192) for row in made.values())


def test_the_figure_shows_losses_against_the_mixed_arm(mixture: Path) -> None:
    assert (mixture / "mixture.png").read_bytes().startswith(b"\x89PNG")
    run = json.loads((mixture / "mixture.json").read_text())
    figure = importlib.import_module("plot_ablations").mixture(run)
    shown = zip(*figure.axes[0].get_legend_handles_labels(), strict=True)
    lines = {name: container.lines[0].get_ydata() for container, name in shown}
    made = arms(mixture, "mixture")
    of = {name: [bucket["loss"] for bucket in row["validation"].values()] for name, row in made.items()}
    for name, y in lines.items():
        assert list(y) == pytest.approx([a - b for a, b in zip(of[name], of["mixed"], strict=True)])
    assert set(lines) == set(made) and max(map(abs, lines["short"])) > 0


def test_a_finished_arm_is_not_run_again(
    ablations: ModuleType, world: Path, mixture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (mixture / "mixture.json").read_text()
    run = json.loads(before)
    marked = [{**row, "mark": 1} for row in run["arms"] if row["arm"] != "long"]
    (mixture / "mixture.json").write_text(json.dumps({**run, "arms": marked}))
    ablations.main(text_command(world, "mixture", mixture))
    said = capsys.readouterr().err
    assert "short-5: done before" in said and "mixed-5: done before" in said and "long-5: done" not in said
    made = arms(mixture, "mixture")
    assert made["short"]["mark"] == made["mixed"]["mark"] == 1 and "mark" not in made["long"]
    # The arm that was forgotten goes on from its checkpoint, which is its end.
    old = next(row for row in run["arms"] if row["arm"] == "long")
    assert made["long"]["validation_loss"] == pytest.approx(old["validation_loss"], rel=1e-6)
    (mixture / "mixture.json").write_text(before)
    with pytest.raises(SystemExit, match="other settings"):
        ablations.main([*text_command(world, "mixture", mixture), "--max-tokens", "700"])


def test_arms_are_chosen_by_name(ablations: ModuleType, world: Path, mixture: Path) -> None:
    command = text_command(world, "mixture", mixture)
    options = ablations.parse([*command, "--arms", "mixed", "short"])
    chosen = ablations.wanted(options, ablations.mixture_arms(options))
    assert chosen == [("short", {"variable_share": 1.0}), ("mixed", {"variable_share": 0.3})]
    with pytest.raises(SystemExit, match="--arms must be of short, long, mixed, got medium"):
        ablations.main([*command, "--arms", "medium"])


def test_extensions_start_from_the_same_short_model(ablations: ModuleType, world: Path, tmp_path: Path) -> None:
    ablations.main([*text_command(world, "extension", tmp_path), "--short", "32", "--max-tokens", "300"])
    made = arms(tmp_path, "extension")
    for window in ("exponential", "multiscale"):
        names = [f"{window}-{start}" for start in ("interpolate", "tile", "cold")]
        assert differing([tmp_path / f"{name}-{SEED}" for name in names]) == {"init"}
        assert json.loads((tmp_path / f"{names[0]}-{SEED}" / "settings.json").read_text())["lengths"] == {"64": 1.0}
        losses = {name: made[f"{window}-{name}"]["before"]["validation_loss"] for name in ("interpolate", "tile")}
        assert losses["interpolate"] != losses["tile"]
        assert "before" not in made[names[2]]
    assert (tmp_path / "extension.png").stat().st_size > 1000
    pair = [tmp_path / f"{window}-tile-{SEED}" for window in ("exponential", "multiscale")]
    assert differing(pair) == {"model", "init"}


def test_losses_differ_in_what_fits_the_same_memory(
    ablations: ModuleType, world: Path, mixture: Path, tmp_path: Path
) -> None:
    ablations.main([
        "losses", "--init", str(mixture / f"mixed-{SEED}"), "--loco", str(world / "loco"), "--tests",
        str(world / "loco"), "--tasks", "tinytask", "--output", str(tmp_path), "--long", "64", "--short", "16",
        "--max-tokens", "1500", "--accumulate", "2", "--seeds", str(SEED), "--set", "bf16=false",
    ])  # fmt: skip
    made = arms(tmp_path, "losses")
    folders = {name: tmp_path / f"{name}-{SEED}" for name in made}
    assert differing([folders["mnrl-long"], folders["mnrl-short"]]) == {"lengths"}
    assert differing([folders["opl-short"], folders["mnrl-short"]]) == {"loss"}
    assert differing([folders["opl-long"], folders["mnrl-long"]]) == {"loss", "batch_size", "negatives"}
    cached = {"batch_tokens", "chunk_tokens", "cached", "gradient_accumulation_steps"}
    assert differing([folders["mnrl-cached"], folders["mnrl-long"]]) == cached
    assert (tmp_path / "losses.png").stat().st_size > 1000
    scores = json.loads((tmp_path / "losses.json").read_text())["scores"]
    assert set(scores["comparison"]["overall"]) == {*made, "start", "BM25"}
    assert scores["comparison"]["overall"]["mnrl-long"]["nDCG@10"]["p"] is None
    for name, metrics in scores["comparison"]["overall"].items():
        seeded = f"{name}-{SEED}" if name in made else name
        assert metrics["nDCG@10"]["mean"] == pytest.approx(scores["by_seed"][seeded]["nDCG@10"])
