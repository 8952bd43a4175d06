"""What pretraining, distillation and fine-tuning share: run folder, log, resuming, the loop on transformers' Trainer.

Tests: tests/train/test_pretrain.py, tests/train/test_finetune.py, tests/train/test_training_setup.py.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.utils.data import Dataset

from m2bert.encoders.devices import chosen_device
from m2bert.errors import M2BertError, missing_package
from m2bert.files import make_output, write_text, writing
from m2bert.model.checkpoints import is_shipped, model_folder
from m2bert.model.tokenization import load_tokenizer
from m2bert.train.budget import Budget, OnProgress, Progress, is_main_process, schedule_factor
from m2bert.train.parameter_groups import parameter_groups
from m2bert.train.settings import TrainConfig, TrainerSettings, has_bf16

try:
    from transformers import Trainer, TrainerCallback, TrainingArguments
    from transformers.integrations import get_reporting_integration_callbacks
    from transformers.trainer_callback import ExportableState, PrinterCallback
except ImportError as error:
    raise missing_package("train", "transformers and accelerate", "train") from error

logger = logging.getLogger(__name__)
LOG_NAME = "log.jsonl"
# An upper bound for runs limited by time alone; the Trainer wants a number.
MANY_STEPS = 10_000_000
LossFn = Callable[[torch.nn.Module, dict[str, torch.Tensor]], torch.Tensor]


class BatchSource(Protocol):
    """Batches by index, each a dict of arrays that is a function of the index alone."""

    def __getitem__(self, index: int) -> dict[str, Any]: ...


def run_training(
    config: TrainConfig,
    model: Any,
    batches: BatchSource,
    loss_of: LossFn,
    *,
    stage: str,
    on_progress: OnProgress | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> dict[str, Any]:
    """Train `model` in place until the budget is used up, resuming from config.output when it has checkpoints.

    Returns steps, tokens, seconds, tokens_per_second. Writes checkpoint-N folders and log.jsonl to config.output.
    """
    _set_up(config, model)
    arguments = training_arguments(config)
    # Every process takes each world_size-th batch.
    size = arguments.max_steps * config.gradient_accumulation_steps * arguments.world_size
    trainer = BudgetTrainer(model, arguments, train_dataset=_IndexedBatches(batches, size), data_collator=_only)
    trainer.model_accepts_loss_kwargs = False
    trainer.budget, trainer.settings, trainer.loss_of = Budget(config), config, loss_of
    trainer.remove_callback(PrinterCallback)
    callback = _RunCallback(config, trainer.budget, stage, on_progress)
    for each in (callback, *callbacks, *reporters(config.report_to)):
        trainer.add_callback(each)
    checkpoint = last_checkpoint(Path(config.output)) if config.resume else None
    step, used = _used_until(checkpoint)
    if is_main_process():
        _forget_after(callback.log_path, step)
    trainer.budget.device = arguments.device
    trainer.budget.start(float(used["seconds"]), int(used["tokens"]))
    callback.last_save = trainer.budget.elapsed
    if checkpoint is None or trainer.budget.fraction(step) < 1.0:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    else:
        trainer._load_from_checkpoint(str(checkpoint))
    return trainer.budget.used(int(trainer.state.global_step or step))


def _set_up(config: TrainConfig, model: Any) -> None:
    if config.threads > 0:
        torch.set_num_threads(config.threads)
    if config.bf16:
        warn_of_slow_bfloat16()
    if config.gradient_checkpointing:
        checkpoint_blocks(model)


def prepare_output(config: TrainConfig) -> Path:
    """Make the output folder and keep the settings in it. Raises M2BertError when it cannot be written."""
    output = make_output(config.output)
    write_text(output / "settings.json", json.dumps(dataclasses.asdict(config), indent=1) + "\n", who="train")
    return output


def load_run_tokenizer(config: TrainConfig, who: str) -> Any:
    """The tokenizer in the folder, or of the shipped model, that the settings name; without one that of `init`.

    Raises M2BertError when there is none.
    """
    if config.tokenizer and not is_shipped(config.tokenizer):
        return load_tokenizer(config.tokenizer)
    return load_tokenizer(model_folder(config.tokenizer or config.init, who))


def append_log(path: Path, row: Mapping[str, Any]) -> None:
    """Add one line to the run log."""
    with writing(path, who="train"), path.open("a", encoding="utf-8") as log:
        log.write(json.dumps(row) + "\n")


def _forget_after(path: Path, step: int) -> None:
    """Drop the log's lines after `step` and the run's result: the resumed run writes them again.

    What a power cut has left of a line goes too.
    """
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with suppress(ValueError, KeyError, TypeError):
            row = json.loads(line)
            if row["step"] <= step and "validation" not in row:
                kept.append(f"{line}\n")
    write_text(path, "".join(kept), who="train")


def last_checkpoint(output: Path) -> Path | None:
    """The newest complete checkpoint of a run (its trainer_state.json is written last), None without one."""
    found = []
    for folder in output.glob("checkpoint-*"):
        try:
            found.append((json.loads((folder / "trainer_state.json").read_text())["global_step"], folder))
        except (OSError, ValueError, KeyError):
            logger.warning("%s is incomplete and is left aside", folder)
    return max(found)[1] if found else None


def _used_until(checkpoint: Path | None) -> tuple[int, dict[str, float]]:
    """Steps of a checkpoint and the seconds and tokens they took; zeros without one."""
    if checkpoint is None:
        return 0, {"seconds": 0.0, "tokens": 0}
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    step, used = int(state["global_step"]), dict(state["stateful_callbacks"][_RunCallback.__name__]["attributes"])
    logger.info("resuming from %s (step %d, %.0f s used)", checkpoint, step, used["seconds"])
    return step, used


class BudgetTrainer(Trainer):
    """transformers' Trainer with ready-made batches, our schedule over the budget, and a loss given as a function."""

    budget: Budget
    settings: TrainConfig
    loss_of: LossFn
    optimizer: Any

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler[int]:
        return torch.utils.data.SequentialSampler(self.train_dataset)

    def _save_checkpoint(self, *arguments: Any, **options: Any) -> None:
        """Trainer's checkpoint, or none: half of one would only take the room that is missing."""
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        try:
            with writing(folder, who="train"):
                super()._save_checkpoint(*arguments, **options)
        except M2BertError:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def create_optimizer(self, model: Any = None) -> Any:
        """Trainer's optimizer on our parameter groups."""
        if self.optimizer is None:
            trained = self.model if model is None else model
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, trained)
            decayed = set(self.get_decay_parameter_names(trained))
            self.optimizer = kind(parameter_groups(trained, decayed, self.settings), **options)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """A factor of the peak learning rate that depends on the share of the budget used."""
        if getattr(self, "lr_scheduler", None) is None:
            budget, settings = self.budget, self.settings

            def factor(step: int) -> float:
                return schedule_factor(settings, budget.fraction(step + 1))

            def first_factor(step: int) -> float:
                # Asked for once per parameter group: the clock is looked at for the first alone.
                budget.tick()
                return factor(step)

            trained = optimizer or self.optimizer
            factors: list[Any] = [first_factor] + [factor] * (len(trained.param_groups) - 1)
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(trained, factors)
        return self.lr_scheduler

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        """Loss of one ready batch, a mean; counts the batch's real tokens."""
        for name, array in inputs.items():
            if name.endswith("attention_mask"):
                self.budget.count(int(array.sum()))
        loss = self.loss_of(model, inputs)
        return (loss, None) if return_outputs else loss


class _IndexedBatches(Dataset[dict[str, Any]]):
    """A BatchSource as a map-style data set of ready batches."""

    def __init__(self, batches: BatchSource, size: int) -> None:
        self.batches, self.size = batches, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {name: torch.as_tensor(array) for name, array in self.batches[index].items()}


def _only(batch: list[dict[str, Any]]) -> dict[str, Any]:
    return batch[0]


def training_arguments(config: TrainConfig) -> TrainingArguments:
    """transformers' TrainingArguments: the settings that have its names, and what this loop does by itself."""
    by_name = {item.name: getattr(config, item.name) for item in dataclasses.fields(TrainerSettings)}
    return TrainingArguments(
        output_dir=config.output,
        max_steps=config.max_steps if config.max_steps > 0 else MANY_STEPS,
        per_device_train_batch_size=1,
        optim="adamw_torch_fused",
        use_cpu=chosen_device(config.device or None, "train").type == "cpu",
        save_strategy="no",
        save_total_limit=2,
        logging_first_step=True,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
        **by_name,
    )


class _RunCallback(TrainerCallback, ExportableState):
    """Stops on time, saves on time, writes the run log, reports progress."""

    def __init__(self, config: TrainConfig, budget: Budget, stage: str, on_progress: OnProgress | None) -> None:
        self.config, self.budget, self.stage, self.on_progress = config, budget, stage, on_progress
        self.log_path = Path(config.output) / LOG_NAME
        self.last_save = budget.elapsed
        self.loss = math.nan

    def state(self) -> dict[str, Any]:
        """What a resumed run needs; kept in the checkpoint's trainer_state.json."""
        return {"args": {}, "attributes": {"seconds": self.budget.seconds, "tokens": self.budget.tokens}}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        fraction = self.budget.fraction(state.global_step)
        if fraction >= 1.0:
            control.should_training_stop = control.should_save = True
        save_every = self.config.save_steps
        due = save_every > 0 and state.global_step % save_every == 0
        waited = self.budget.elapsed - self.last_save
        if due or (self.config.save_seconds > 0 and waited > self.config.save_seconds):
            control.should_save = True
            self.last_save = self.budget.elapsed
        if self.on_progress is not None and is_main_process():
            seconds = self.budget.seconds
            left = seconds * (1.0 - fraction) / fraction if fraction > 0 else math.nan
            self.on_progress(
                Progress(
                    self.stage,
                    state.global_step,
                    fraction,
                    self.budget.tokens,
                    self.budget.tokens_per_second,
                    seconds,
                    left,
                    self.loss,
                )
            )

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs is None or "loss" not in logs or not is_main_process():
            return
        self.loss = float(logs["loss"])
        append_log(
            self.log_path,
            {
                "step": state.global_step,
                "loss": self.loss,
                "grad_norm": logs.get("grad_norm"),
                "learning_rate": logs.get("learning_rate"),
                "tokens": self.budget.tokens,
                "seconds": round(self.budget.seconds, 2),
                "tokens_per_second": round(self.budget.tokens_per_second, 1),
            },
        )


def warn_of_slow_bfloat16() -> None:
    """Log a warning where bfloat16 was asked for and the machine only emulates it."""
    if not has_bf16():
        logger.warning("this machine emulates bfloat16, which is slow: set bf16=false to train faster here")


def checkpoint_blocks(model: Any) -> None:
    """Keep the input of each block alone and compute the block again for its gradient."""
    # Named anew in transformers 5; the old name warns.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def reporters(names: Sequence[str]) -> list[TrainerCallback]:
    """Trackers by transformers' names. Raises M2BertError for one that it does not know or that is not installed."""
    try:
        return [kind() for kind in get_reporting_integration_callbacks(list(names))]
    except (ImportError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise M2BertError(
            f"train: report_to must name trackers that are installed ({reason}); install or drop it"
        ) from error
