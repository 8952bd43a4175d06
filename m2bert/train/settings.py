"""Settings of training runs: the dataclass, reading them from files and mappings, the learning-rate schedule.

Tests: tests/train/test_pretrain.py, tests/train/test_finetune.py.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m2bert.errors import M2BertError

if TYPE_CHECKING:
    pass

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

ConfigT = TypeVar("ConfigT")
CPU_FACTS = Path("/proc/cpuinfo")
# Instruction sets that multiply bfloat16, as Linux names them on x86 and Arm.
BF16_FLAGS = frozenset(("amx_bf16", "avx512_bf16", "bf16"))


def has_bf16() -> bool:
    """Whether this machine computes in bfloat16: a GPU that does, or a CPU with the instructions.

    Elsewhere bfloat16 is emulated, many times slower than float32. False where the system does not say.
    """
    import torch

    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported())
    try:
        return not BF16_FLAGS.isdisjoint(CPU_FACTS.read_text(encoding="utf-8", errors="replace").split())
    except OSError:
        return False


@dataclass(kw_only=True)
class TrainConfig:
    """Settings of any training run. Times are in seconds, lengths in tokens.

    max_steps, max_tokens, max_seconds: the budget; the first to be used up ends the run. Tokens are real ones, padding
    aside, of queries and documents together.
    bf16: autocast to bfloat16; by default where the machine computes in it.
    filter_rate, feature_rate: learning rates of filter networks and of the features they are computed from, as
    multiples of learning_rate. filter_weight_decay: that of the filter networks' matrices.
    report_to: trackers that the losses go to besides the log, by transformers' names (tensorboard, wandb, mlflow, ...).
    gradient_checkpointing: keep each block's input alone and compute the block again for its gradient.
    """

    output: str = ""
    tokenizer: str = ""
    init: str = ""
    cache: str = ""
    batch_tokens: int = 16384
    learning_rate: float = 1e-3
    warmup: float = 0.06
    schedule: str = "linear"
    final_learning_rate: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.98
    adam_epsilon: float = 1e-6
    weight_decay: float = 0.01
    filter_rate: float = 1.0
    feature_rate: float = 1.0
    filter_weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    accumulate: int = 1
    max_steps: int = 0
    max_tokens: int = 0
    max_seconds: float = 0.0
    seed: int = 17
    bf16: bool = field(default_factory=has_bf16)
    gradient_checkpointing: bool = False
    report_to: list[str] = field(default_factory=list)
    threads: int = 0
    log_steps: int = 20
    save_steps: int = 0
    save_seconds: float = 300.0
    resume: bool = True

    def check(self, who: str) -> None:
        """Raise M2BertError for settings that cannot be meant."""
        for name in ("output", "tokenizer"):
            if not getattr(self, name):
                raise M2BertError(f"{who}: needs {name}, got nothing; pass --{name}")
        if not max(self.max_steps, self.max_tokens, self.max_seconds) > 0 or math.isnan(self.max_seconds):
            budgets = "max_steps, max_tokens or max_seconds"
            raise M2BertError(f"{who}: needs {budgets} above 0, got none; pass --max-seconds 600")
        if self.schedule not in ("linear", "cosine", "constant"):
            raise M2BertError(f"{who}: schedule must be linear, cosine or constant, got {self.schedule!r}")
        for name in ("batch_tokens", "learning_rate", "accumulate", "log_steps"):
            if not 0 < getattr(self, name) < math.inf:
                raise M2BertError(f"{who}: {name} must be above 0, got {getattr(self, name)}; raise it")
        for name in ("seed", "threads", "save_steps", "filter_rate", "feature_rate", "filter_weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise M2BertError(f"{who}: {name} must be at least 0, got {getattr(self, name)}; raise it")
        if not 0 <= self.warmup <= 1:
            raise M2BertError(f"{who}: warmup is a share of the run from 0 to 1, got {self.warmup}; mend it")
        for name in ("lengths", "weights"):
            for key, share in getattr(self, name, {}).items():
                if not 0 <= share < math.inf:
                    raise M2BertError(f"{who}: {name} must be finite and at least 0, got {key}:{share}; mend it")


def config_from_mapping(kind: type[ConfigT], values: Mapping[str, Any], who: str) -> ConfigT:
    """Build a settings dataclass. Raises M2BertError for keys it does not have and for values of a wrong type."""
    defaults = kind()
    known = {item.name for item in dataclasses.fields(defaults)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise M2BertError(f"{who}: settings must be among {', '.join(sorted(known))}, got {', '.join(unknown)}")
    checked = {}
    for name, value in values.items():
        default = getattr(defaults, name)
        if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, type(default)) or (isinstance(value, bool) != isinstance(default, bool)):
            raise M2BertError(f"{who}: {name} must be of type {type(default).__name__}, got {value!r}; mend it")
        checked[name] = value
    return kind(**checked)


def read_settings(path: str | Path, who: str) -> dict[str, Any]:
    """Settings from a YAML or JSON file. Raises M2BertError when it cannot be read or is no mapping."""
    import yaml  # type: ignore[import-untyped]

    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise M2BertError(f"{who}: {str(path)!r} must be a readable YAML or JSON file ({error}); mend it") from error
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise M2BertError(f"{who}: {str(path)!r} must hold settings as `name: value`, got {type(values).__name__}")
    return values


def schedule_factor(config: TrainConfig, fraction: float) -> float:
    """Learning rate as a share of the peak at `fraction` (0..1) of the run: linear warmup, then decay."""
    if fraction < config.warmup:
        return fraction / config.warmup
    if config.schedule == "constant":
        return 1.0
    rest = min((fraction - config.warmup) / max(1.0 - config.warmup, 1e-9), 1.0)
    decayed = 1.0 - rest if config.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * rest))
    floor = config.final_learning_rate / config.learning_rate
    return floor + (1.0 - floor) * decayed


def parse_shares(text: str, name: str, *, lengths: bool) -> dict[Any, float]:
    """`a:1,b:2` as a mapping; keys are whole numbers when `lengths`. Raises M2BertError when it is not that."""
    shares: dict[Any, float] = {}
    try:
        for item in text.split(","):
            # A bare length stands for a share of 1; names of data sets may hold colons.
            key, _, value = item.strip().rpartition(":") if ":" in item else (item.strip(), "", "1")
            shares[int(key) if lengths else key] = float(value)
    except ValueError as error:
        raise M2BertError(f"train: --{name} must read NAME:NUMBER,NAME:NUMBER, got {text!r}; mend it") from error
    return shares


def gather_settings(who: str, path: str, pairs: list[str], flags: dict[str, Any]) -> dict[str, Any]:
    """Settings of a file, then of `--set NAME=VALUE`, then of flags that were given (not None, '' or [])."""
    import yaml

    from m2bert.train.settings import read_settings

    values = read_settings(path, who) if path else {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise M2BertError(f"{who}: --set must read NAME=VALUE, got {pair!r}; mend it")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise M2BertError(f"{who}: --set {pair!r} must be NAME=VALUE with a value in YAML; mend it") from error
        # YAML reads 1e-3 as text: it wants 1.0e-3.
        try:
            values[name] = float(value) if isinstance(value, str) else value
        except ValueError:
            values[name] = value
    values.update({name: value for name, value in flags.items() if value not in (None, "", [])})
    for name in ("lengths", "weights"):
        if isinstance(values.get(name), (str, int)):
            values[name] = parse_shares(str(values[name]), name, lengths=name == "lengths")
        elif isinstance(values.get(name), dict):
            try:
                values[name] = {int(k) if name == "lengths" else str(k): float(v) for k, v in values[name].items()}
            except (TypeError, ValueError) as error:
                raise M2BertError(f"{who}: {name} must map to numbers, got {values[name]}; mend it") from error
    return values
