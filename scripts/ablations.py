"""The paper's ablations at a scale of minutes: `python scripts/ablations.py mixture | losses | extension`.

    python scripts/ablations.py mixture --data text/ --validation heldout/ --output runs/mixture --max-tokens 300000
    python scripts/ablations.py losses --init runs/mixture/mixed-17 --loco tasks/ --tests tasks/ --output runs/losses \
        --max-tokens 300000
    python scripts/ablations.py extension --data text/ --validation heldout/ --output runs/extension --max-tokens 150000

An arm is an ordinary run of m2bert.train.pretrain or m2bert.train.finetune in a folder of its own, OUTPUT/ARM-SEED.
All arms have the same seed, budget and settings, but for what their entry in mixture_arms, loss_arms or
extension_arms names. Results are kept in OUTPUT/NAME.json after each arm, and a figure beside it
(scripts/plot_ablations.py); an arm that is there is not run again, one that was stopped goes on. Test:
tests/train/test_ablations.py.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import plot_ablations

from m2bert.bench import plots
from m2bert.bench.evaluate import evaluate_tasks, load_tasks
from m2bert.bench.runs import save_run
from m2bert.bench.systems import BM25System, EncoderSystem
from m2bert.data.tokens import load_tokens
from m2bert.errors import M2BertError
from m2bert.files import make_output
from m2bert.model.architecture import WINDOWS
from m2bert.model.checkpoints import model_folder
from m2bert.model.extend import METHODS, extend_checkpoint
from m2bert.model.tokenization import load_tokenizer
from m2bert.provenance import provenance
from m2bert.ranking.significance import compare_systems, length_buckets
from m2bert.train.budget import Progress
from m2bert.train.finetune import finetune
from m2bert.train.pretrain import pretrain
from m2bert.train.reading import config_from_mapping, gather_settings, read_settings
from m2bert.train.settings import FinetuneConfig, PretrainConfig
from m2bert.train.trainer import LOG_NAME
from m2bert.train.validation import validate_checkpoint

Arms = dict[str, dict[str, Any]]
SECONDS_BETWEEN_LINES = 15.0
METRIC = "nDCG@10"
START, BASELINE = "start", "mnrl-long"
# Over the preset mini: small enough for a hundred steps in a minute or two.
MODEL = {"hidden_size": 192, "num_hidden_layers": 2, "intermediate_size": 768}


def mixture_arms(options: argparse.Namespace) -> Arms:
    """What pretraining reads (table 6): examples of variable length, full-length ones, or 30 % and 70 %."""
    return {"short": {"variable_share": 1.0}, "long": {"variable_share": 0.0}, "mixed": {"variable_share": 0.3}}


def loss_arms(options: argparse.Namespace) -> Arms:
    """What fits the memory of two long documents (table 8): a query with its negatives, few pairs of whole documents,
    many of the same documents cropped, or, with gradient caching, many whole ones."""
    cropped, whole = {options.short: 1.0}, {options.long: 1.0}
    many = 2 * options.long // options.short
    held, times = 2 * (options.long + 2), options.accumulate
    one = {"batch_size": 1, "negatives": many - 1, "batch_tokens": held, "gradient_accumulation_steps": times}
    pairs = {"batch_size": many, "batch_tokens": held, "gradient_accumulation_steps": times}
    # The documents of a whole step in one batch, and two long ones of them at a time in memory.
    cached: dict[str, Any] = {"chunk_tokens": held, "cached": True, "gradient_accumulation_steps": 1}
    cached |= {"batch_size": many, "batch_tokens": times * held}
    return {
        "opl-long": {"loss": "opl", "lengths": whole, **one},
        "mnrl-long": {"loss": "mnrl", "lengths": whole, **pairs},
        "mnrl-short": {"loss": "mnrl", "lengths": cropped, **pairs},
        "opl-short": {"loss": "opl", "lengths": cropped, **pairs},
        "mnrl-cached": {"loss": "mnrl", "lengths": whole, **cached},
    }


def extension_arms(options: argparse.Namespace) -> Arms:
    """How a longer model starts (figure 4, table 7), for both windows of filters: rows of a shorter one drawn out or
    repeated, or a new model."""
    return {f"{window}-{start}": {} for window in options.windows for start in (*METHODS, "cold")}


def wanted(options: argparse.Namespace, arms: Arms) -> list[tuple[str, dict[str, Any]]]:
    """The arms that --arms names, all without it. Raises M2BertError for others."""
    unknown = sorted(set(options.arms) - set(arms))
    if unknown:
        raise M2BertError(f"ablations: --arms must be of {', '.join(arms)}, got {', '.join(unknown)}; mend them")
    return [(name, changes) for name, changes in arms.items() if not options.arms or name in options.arms]


class Study:
    """The results of one ablation, in a file that is written after every arm."""

    def __init__(self, name: str, output: Path, settings: Mapping[str, Any]) -> None:
        """Goes on with OUTPUT/NAME.json where it is there. Raises M2BertError when other settings made it."""
        self.path, self.output = output / f"{name}.json", make_output(output)
        self.run: dict[str, Any] = {"kind": f"ablation-{name}", "settings": dict(settings), "arms": [], **provenance()}
        if self.path.is_file():
            found = json.loads(self.path.read_text(encoding="utf-8"))
            if found["settings"] != json.loads(json.dumps(settings)):
                raise M2BertError(f"ablations: {self.path} was made with other settings; choose another --output")
            self.run = found

    def arm(self, name: str, seed: int, changes: Mapping[str, Any], work: Callable[[Path], dict[str, Any]]) -> None:
        """Run `work(folder)` unless its result is there, and keep the result."""
        if any((row["arm"], row["seed"]) == (name, seed) for row in self.run["arms"]):
            print(f"{name}-{seed}: done before", file=sys.stderr)
            return
        result = work(self.output / f"{name}-{seed}")
        self.run["arms"].append({"arm": name, "seed": seed, "changes": dict(changes), **result})
        self.keep()

    def keep(self) -> None:
        """Write the file."""
        save_run(self.path, self.run, who="ablations")


def reporter(name: str) -> Callable[[Progress], None]:
    """Says on stderr where a run is, a line from time to time."""
    last = [time.monotonic()]

    def report(progress: Progress) -> None:
        if time.monotonic() - last[0] >= SECONDS_BETWEEN_LINES:
            last[0] = time.monotonic()
            told = f"{progress.tokens:,} tokens, loss {progress.loss:.3f}"
            print(f"{name}: {progress.stage} {progress.fraction:4.0%}, {told}", file=sys.stderr, flush=True)

    return report


def training_log(folder: Path) -> list[list[float]]:
    """[tokens, loss] of every line of a run's log."""
    rows = [json.loads(line) for line in (folder / LOG_NAME).read_text(encoding="utf-8").splitlines()]
    return [[row["tokens"], round(row["loss"], 4)] for row in rows if "loss" in row]


def train(kind: Any, run: Callable[..., dict[str, Any]], folder: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """One run of pretraining or fine-tuning in `folder`: its result, and its log."""
    config = config_from_mapping(kind, {**values, "output": str(folder)}, "ablations")
    result = run(config, reporter(folder.name))
    return {**result, "log": training_log(folder)}


def pretraining(options: argparse.Namespace, seed: int, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of one masked-LM run: those of all arms, then the user's, then the arm's changes."""
    model = {**MODEL, "max_position_embeddings": options.long, **(read_model(options.config))}
    common = {
        "data": options.data, "tokenizer": tokenizer_of(options), "cache": cache_of(options),
        "lengths": {options.long: 1.0}, "batch_tokens": 2 * options.long, "learning_rate": 2e-3,
        "max_tokens": options.max_tokens, "logging_steps": 5, "model": {**model, **changes.get("model", {})},
    }  # fmt: skip
    own = {name: value for name, value in changes.items() if name != "model"}
    return {**common, **gather_settings("ablations", "", options.set, {}), **own, "seed": seed}


def read_model(path: str) -> dict[str, Any]:
    """Model fields of a YAML or JSON file; none without a path."""
    return read_settings(path, "ablations") if path else {}


def tokenizer_of(options: argparse.Namespace) -> str:
    """The folder of the tokenizer, which may be a shipped model's."""
    folder = Path(options.tokenizer)
    return str(folder if folder.is_dir() else model_folder(options.tokenizer, "ablations"))


def cache_of(options: argparse.Namespace) -> str:
    """Where tokens and embeddings are kept."""
    return options.cache or str(options.output / "cache")


def validated(options: argparse.Namespace, folder: Path, length: int = 0) -> dict[str, Any]:
    """Held-out loss by length and the long-range probe, as `m2bert validate` gives them."""
    tokens, probes = options.validation_tokens, options.probes
    return validate_checkpoint(
        str(folder), options.validation, length=length, tokens=tokens, probes=probes, cache=cache_of(options)
    )


def mixture(options: argparse.Namespace) -> Study:
    """Pretrain once for every mixture and seed; validate each."""
    study = Study("mixture", options.output, text_settings(options))
    for seed in options.seeds:
        for name, changes in wanted(options, mixture_arms(options)):

            def work(folder: Path, seed: int = seed, changes: Mapping[str, Any] = changes) -> dict[str, Any]:
                result = train(PretrainConfig, pretrain, folder, pretraining(options, seed, changes))
                return {**result, **validated(options, folder)}

            study.arm(name, seed, changes, work)
    return study


def text_settings(options: argparse.Namespace) -> dict[str, Any]:
    """What the arms of a masked-LM study share, and how much text there is."""
    report = reporter("text")
    store = load_tokens(
        options.data,
        load_tokenizer(tokenizer_of(options)),
        cache_of(options),
        on_progress=lambda documents, tokens: report(Progress("tokenising", step=documents, tokens=tokens)),
        who="ablations",
    )
    names = (
        "data", "validation", "tokenizer", "max_tokens", "long", "short", "short_tokens", "validation_tokens", "probes",
        "set",
    )  # fmt: skip
    size = {"documents": len(store), "tokens": store.num_tokens}
    model = {**MODEL, **read_model(options.config)}
    return {**{name: getattr(options, name) for name in names if hasattr(options, name)}, "model": model, "text": size}


def extension(options: argparse.Namespace) -> Study:
    """Train short models, lengthen them in each way, validate, train on at the long length, validate again."""
    study = Study("extension", options.output, text_settings(options))
    for seed in options.seeds:
        for window in options.windows:
            model = {"filter_window": window}
            short: dict[str, Any] = {
                "model": {**model, "max_position_embeddings": options.short}, "lengths": {options.short: 1.0},
                "max_tokens": options.short_tokens or options.max_tokens,
            }  # fmt: skip

            def base(folder: Path, seed: int = seed, changes: Mapping[str, Any] = short) -> dict[str, Any]:
                result = train(PretrainConfig, pretrain, folder, pretraining(options, seed, changes))
                return {**result, "after": validated(options, folder)}

            study.arm(f"{window}-short", seed, short, base)
        for name, _ in wanted(options, extension_arms(options)):
            window, _, start = name.partition("-")

            def work(folder: Path, seed: int = seed, window: str = window, start: str = start) -> dict[str, Any]:
                shorter = options.output / f"{window}-short-{seed}"
                return lengthened(options, folder, shorter, seed, window, start)

            study.arm(name, seed, {"filter_window": window, "start": start}, work)
    return study


def lengthened(
    options: argparse.Namespace, folder: Path, shorter: Path, seed: int, window: str, start: str
) -> dict[str, Any]:
    """One start of a long model: held-out scores at the switch (not for a new model) and after training on."""
    changes: dict[str, Any] = {"model": {"filter_window": window}}
    result: dict[str, Any] = {}
    if start != "cold":
        longer = folder / "extended"
        extend_checkpoint(str(shorter), options.long, str(longer), start)
        result["before"] = validated(options, longer)
        # At the length that the shorter model read: what the change of the filters alone costs.
        result["before_short"] = validated(options, longer, options.short)
        changes["init"] = str(longer)
    result |= train(PretrainConfig, pretrain, folder, pretraining(options, seed, changes))
    return {**result, "after": validated(options, folder)}


def losses(options: argparse.Namespace) -> Study:
    """Fine-tune the same start with every loss; score all of them, BM25 and the start on the tests together."""
    names = ("init", "pairs", "loco", "max_tokens", "long", "short", "accumulate", "set")
    study = Study("losses", options.output, {name: getattr(options, name) for name in names})
    chosen = gather_settings("ablations", "", options.set, {})
    common = {
        "init": folder_of(options.init), "pairs": options.pairs, "loco": options.loco, "cache": cache_of(options),
        "max_tokens": options.max_tokens, "learning_rate": 3e-4, "logging_steps": 1, "bf16_weights": False,
    }  # fmt: skip
    for seed in options.seeds:
        for name, changes in wanted(options, loss_arms(options)):

            def work(folder: Path, seed: int = seed, changes: Mapping[str, Any] = changes) -> dict[str, Any]:
                return train(FinetuneConfig, finetune, folder, {**common, **chosen, **changes, "seed": seed})

            study.arm(name, seed, changes, work)
    study.run["scores"] = scored(options, sorted({row["arm"] for row in study.run["arms"]}))
    study.keep()
    return study


def scored(options: argparse.Namespace, arms: Sequence[str]) -> dict[str, Any]:
    """Retrieval scores on the tests. An arm's value for a query is the mean over its seeds; intervals and tests are
    over queries, paired, against BASELINE."""
    from m2bert.encoders.cache import CachedEncoder
    from m2bert.encoders.opening import open_encoder

    folders = {(arm, seed): options.output / f"{arm}-{seed}" / "model" for arm in arms for seed in options.seeds}
    models = {START: options.init} | {f"{arm}-{seed}": str(folder) for (arm, seed), folder in folders.items()}
    encoders = [open_encoder(f"{name}={folder_of(place)}") for name, place in models.items()]
    systems = [EncoderSystem(CachedEncoder(encoder, cache_of(options), "overflow=window")) for encoder in encoders]
    tasks = load_tasks(options.tests, options.tasks.split(","))
    report = evaluate_tasks(tasks, [*systems, BM25System()], metrics=[METRIC], on_progress=stages())
    pooled: dict[str, dict[str, Any]] = {}
    for task in report.tasks:
        rows = {system.name: system.per_query for system in task.systems}
        pooled[task.task] = {name: rows[name] for name in (START, BM25System.name)}
        for arm in arms:
            own = [rows[f"{arm}-{seed}"] for seed in options.seeds]
            means = {query: {METRIC: sum(row[query][METRIC] for row in own) / len(own)} for query in own[0]}
            pooled[task.task][arm] = means
    buckets = length_buckets(pooled, {task.task: task.answer_tokens for task in report.tasks})
    return {
        "metric": METRIC, "seeds": options.seeds, "by_seed": report.means(),
        "comparison": asdict(compare_systems(pooled, BASELINE)), "buckets": [asdict(bucket) for bucket in buckets],
        "tasks": [
            {"task": task.task, "queries": task.num_queries, "documents": task.num_documents,
             "fingerprint": task.data_fingerprint} for task in report.tasks
        ],
    }  # fmt: skip


def folder_of(place: str) -> str:
    """The folder of a shipped model, of a model, or of the one inside a finished run."""
    return str(model_folder(place, "ablations"))


def stages() -> Callable[[str, float], None]:
    """Says on stderr which part of an evaluation has begun."""
    seen: set[str] = set()

    def report(stage: str, fraction: float) -> None:
        if stage not in seen:
            seen.add(stage)
            print(stage, file=sys.stderr, flush=True)

    return report


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    for name, study, short in (("mixture", mixture, 0), ("losses", losses, 256), ("extension", extension, 512)):
        one = kinds.add_parser(name, help=(study.__doc__ or "").splitlines()[0])
        one.set_defaults(study=study)
        one.add_argument("--output", type=Path, required=True, help="folder of the arms and of the result")
        one.add_argument("--max-tokens", type=int, required=True, help="budget of every arm")
        one.add_argument("--seeds", type=int, nargs="+", default=[17], help="every arm is run once for each")
        one.add_argument("--arms", nargs="+", default=[], help="these arms alone")
        one.add_argument("--long", type=int, default=2048, help="tokens of a long text")
        if short:
            one.add_argument("--short", type=int, default=short, help="tokens of a short one")
        one.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of all arms")
        one.add_argument("--cache", default="", help="folder of tokens, shared by runs")
        if name == "losses":
            one.add_argument("--init", required=True, help="the model or run that all arms start from")
            one.add_argument("--accumulate", type=int, default=4, help="batches per step")
            one.add_argument("--pairs", nargs="+", default=[], help="files of query and positive")
            one.add_argument("--loco", nargs="+", default=[], help="tasks whose train splits are used")
            one.add_argument("--tests", required=True, help="folder of tasks whose test splits are reported on")
            one.add_argument("--tasks", default="all", help="which of them, joined by commas")
            continue
        if name == "extension":
            one.add_argument("--windows", nargs="+", choices=WINDOWS, default=WINDOWS, help="windows of the filters")
            one.add_argument("--short-tokens", type=int, default=0, help="budget of the models that are lengthened")
        one.add_argument("--data", nargs="+", required=True, help="text to train on")
        one.add_argument("--validation", nargs="+", required=True, help="held-out text")
        one.add_argument("--tokenizer", default="m2-bert-mini", help="folder with tokenizer.json, or a shipped model")
        one.add_argument("--config", default="", help="YAML or JSON file of model fields over those of the script")
        one.add_argument("--validation-tokens", type=int, default=150_000, help="held-out tokens, all lengths together")
        one.add_argument("--probes", type=int, default=64, help="long-range probes at most")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the ablation that the command line names."""
    from transformers.utils import logging as transformers_logging

    options = parse(arguments)
    transformers_logging.disable_progress_bar()
    logging.getLogger("m2bert").setLevel(logging.WARNING)
    try:
        plots.load_matplotlib()
        study = options.study(options)
        plot_ablations.main(str(study.path))
    except M2BertError as error:
        raise SystemExit(str(error)) from error
    print(study.path)


if __name__ == "__main__":
    main()
