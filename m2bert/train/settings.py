"""Settings of the commands that train, one dataclass each: every field with its default, meaning and limits.

What the command line shows and takes is made from these fields (m2bert/cli/train.py); nothing here loads torch, so
that `m2bert --help` stays quick. How users give them: m2bert/train/reading.py.
Tests: tests/train/test_settings.py, tests/train/test_pretrain.py, tests/train/test_finetune.py.
"""

# ruff: noqa: RUF009 - setting() returns what dataclasses.field does

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2bert.errors import M2BertError

CPU_FACTS = Path("/proc/cpuinfo")
# Instruction sets that multiply bfloat16, as Linux names them on x86 and Arm.
BF16_FLAGS = frozenset(("amx_bf16", "avx512_bf16", "bf16"))
LOSS_NAMES = ("mnrl", "mnrl-symmetric", "opl", "cosent")
NEGATIVES = ("random", "bm25", "self", "search")
RANKING_SCALE = 20.0
PRESETS: dict[str, dict[str, Any]] = {
    "mini": {
        "hidden_size": 384,
        "num_hidden_layers": 4,
        "intermediate_size": 1536,
        "mlp_nblocks": 4,
        "filter_order": 64,
        "max_position_embeddings": 8192,
        "pooling": "mean",
        "identity_init": True,
        "filter_window": "multiscale",
    },
    "80m-2k": {},
    "80m-8k": {"max_position_embeddings": 8192},
    "80m-32k": {"max_position_embeddings": 32768},
}
# What a limit is called in errors, and whether a value keeps it.
LIMITS: dict[str, tuple[str, Callable[[float, float], bool]]] = {
    "above": ("above", lambda value, bound: value > bound),
    "least": ("at least", lambda value, bound: value >= bound),
    "below": ("below", lambda value, bound: value < bound),
    "most": ("at most", lambda value, bound: value <= bound),
}


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


def setting(default: Any, meaning: str, *, choices: tuple[str, ...] = (), flag: str = "", **limits: float) -> Any:
    """A field of a settings dataclass.

    default: the value, copied where it is a list or a mapping, or a function that makes it. meaning: the help of its
    flag. choices: the values there are. flag: its name on the command line where that is not the field's. limits: of
    above, least, below, most.
    """
    metadata = {"meaning": meaning, "choices": choices, "flag": flag, "limits": limits}
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=lambda: copy.copy(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def with_default(kind: type, name: str, default: Any) -> Any:
    """The field `name` of the settings `kind` again, with another default."""
    return dataclasses.field(default=default, metadata=kind.__dataclass_fields__[name].metadata)  # type: ignore[attr-defined]


@dataclass(kw_only=True)
class TrainerSettings:
    """Settings with the names and the meaning of transformers' TrainingArguments, which they are handed to by name."""

    learning_rate: float = setting(1e-3, "Peak learning rate.", above=0)
    lr_scheduler_type: str = setting(
        "linear",
        "How the rate falls after warmup: linear, cosine, or constant.",
        choices=("linear", "cosine", "constant"),
    )
    adam_beta1: float = setting(0.9, "Adam's decay of the mean of gradients.", least=0, below=1)
    adam_beta2: float = setting(0.98, "Adam's decay of the mean of their squares.", least=0, below=1)
    adam_epsilon: float = setting(1e-6, "Adam's smallest divisor.", least=0)
    weight_decay: float = setting(0.01, "Decay of matrices outside of the filters.", least=0)
    max_grad_norm: float = setting(1.0, "Longer gradients are cut to this norm; 0 for never.", least=0)
    gradient_accumulation_steps: int = setting(1, "Batches per optimizer step.", least=1, most=100_000)
    seed: int = setting(17, "Of fresh weights, batches and masks; same seed, same losses.", least=0, most=2**32 - 1)
    bf16: bool = setting(has_bf16, "Autocast to bfloat16; by default where the machine computes in it.")
    logging_steps: int = setting(20, "Steps per line of the log.", least=1, most=10**9)


@dataclass(kw_only=True)
class TrainConfig(TrainerSettings):
    """Settings of any training run. Times are in seconds, lengths in tokens.

    The budget is max_steps, max_tokens or max_seconds; the first to be used up ends the run.
    """

    output: str = setting("", "Folder of the run: settings, log, checkpoints, the model.")
    tokenizer: str = setting("", "Folder with tokenizer.json, or a shipped model; by default that of --init.")
    init: str = setting("", "Model to start from: folder, finished run, shipped model, or owner/name on the hub.")
    cache: str = setting("", "Folder of tokenised data, shared by runs; by default `cache` in the output.")
    batch_tokens: int = setting(16384, "Tokens per batch, padding included.", above=0, most=2**31 - 1)
    max_seconds: float = setting(0.0, "Time budget in seconds; the learning rate ends on time.", least=0)
    max_steps: int = setting(0, "Budget of optimizer steps.", least=0, most=10**12)
    max_tokens: int = setting(0, "Budget of tokens, queries' and documents', padding aside.", least=0, most=10**15)
    warmup_ratio: float = setting(0.06, "Share of the budget over which the learning rate rises.", least=0, most=1)
    final_learning_rate: float = setting(0.0, "Learning rate at the end of the budget.", least=0)
    filter_rate: float = setting(1.0, "Learning rate of filter networks, in multiples of learning_rate.", least=0)
    feature_rate: float = setting(1.0, "The same of the features that filters are computed from.", least=0)
    filter_weight_decay: float = setting(0.01, "Decay of the matrices of the filter networks.", least=0)
    gradient_checkpointing: bool = setting(False, "Keep each block's input alone and compute the block again.")
    report_to: list[str] = setting([], "Trackers besides the log, by transformers' names (tensorboard, wandb, ...).")
    threads: int = setting(0, "Threads of the processor; 0 leaves them as they are.", least=0, most=1024)
    device: str = setting(
        "", "Where the model is trained: cpu or cuda; by default the GPU, if there is one.", choices=("", "cpu", "cuda")
    )
    save_steps: int = setting(0, "Steps between two checkpoints; 0 for none by steps.", least=0, most=10**12)
    save_seconds: float = setting(300.0, "Seconds between two checkpoints; 0 for none by time.", least=0)
    resume: bool = setting(True, "Continue from the checkpoints in the output.")

    def check(self, who: str) -> None:
        """Raise M2BertError for settings that cannot be meant; nothing is changed."""
        if not self.output:
            raise M2BertError(f"{who}: needs output, got nothing; pass --output")
        if not (self.tokenizer or self.init):
            raise M2BertError(f"{who}: needs tokenizer, got nothing; pass --tokenizer, or --init with a model")
        for item in dataclasses.fields(self):
            check_value(who, item, getattr(self, item.name))
        if not max(self.max_steps, self.max_tokens, self.max_seconds) > 0:
            budgets = "max_steps, max_tokens or max_seconds"
            raise M2BertError(f"{who}: needs {budgets} above 0, got none; pass --max-seconds 600")


def check_value(who: str, item: dataclasses.Field[Any], value: Any) -> None:
    """Raise M2BertError for a value that is none of the field's choices or beyond its limits; shares are at least 0."""
    choices, limits = item.metadata["choices"], item.metadata["limits"]
    if any("\0" in text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)):
        raise M2BertError(f"{who}: {item.name} must be without the character NUL, got {value!r:.80}; mend it")
    if isinstance(value, list) and not all(isinstance(each, str | int) for each in value):
        raise M2BertError(f"{who}: {item.name} must be a list of names or numbers, got {value!r:.80}; mend it")
    if choices and value not in choices:
        known = ", ".join(choice for choice in choices if choice)
        raise M2BertError(f"{who}: {item.name} must be one of {known}, got {value!r}; choose one of these")
    finite = not isinstance(value, float) or math.isfinite(value)
    if limits and not (finite and all(LIMITS[name][1](value, bound) for name, bound in limits.items())):
        rule = " and ".join(f"{LIMITS[name][0]} {bound}" for name, bound in limits.items())
        low = not all(LIMITS[name][1](value, limits[name]) for name in ("above", "least") if name in limits)
        raise M2BertError(f"{who}: {item.name} must be {rule}, got {value}; {'raise' if low else 'lower'} it")
    if item.name == "lengths" and not value:
        raise M2BertError(f"{who}: lengths must map tokens to shares, got none; write for example 512:0.7,2048:0.3")
    if item.name in ("lengths", "weights"):
        for key, share in value.items():
            numbers = [share, key] if item.name == "lengths" else [share]
            if any(isinstance(each, bool) or not isinstance(each, int | float) for each in numbers):
                raise M2BertError(f"{who}: {item.name} must map to numbers, got {key!r:.40}: {share!r:.40}; mend it")
            if not 0 <= share < math.inf:
                raise M2BertError(f"{who}: {item.name} must be finite and at least 0, got {key}:{share}; change it")


@dataclass(kw_only=True)
class NewModelSettings:
    """Which model a run begins with that is not given one."""

    preset: str = setting("mini", f"Size of a new model: {', '.join(PRESETS)}.", choices=tuple(PRESETS))
    model: dict[str, Any] = setting({}, "YAML or JSON file of M2BertConfig fields over the preset.", flag="config")


@dataclass(kw_only=True)
class PairSettings:
    """Where labelled pairs come from."""

    pairs: list[str] = setting([], "Files of query, positive, dataset; may be repeated.")
    loco: list[str] = setting([], "Folders of retrieval tasks, whose train splits are used; may be repeated.")


@dataclass(kw_only=True)
class PretrainConfig(NewModelSettings, TrainConfig):
    """Settings of `m2bert pretrain`."""

    data: list[str] = setting([], "Text: files, folders or globs; may be repeated.")
    validation: list[str] = setting([], "Held-out text for the masked-LM loss; may be repeated.")
    lengths: dict[int, float] = setting({512: 1.0}, "Tokens per example with their share: 512:0.7,2048:0.3.")
    weights: dict[str, float] = setting({}, "How often sources appear per epoch (1), such as peps:3,books:0.5.")
    mask_rate: float = setting(0.3, "Share of the tokens that are masked.", above=0, below=1)
    whole_words: bool = setting(False, "Mask all pieces of a word or none.")
    variable_share: float = setting(
        0.3, "Share of the examples that have variable length; others are full.", least=0, most=1
    )
    mix_documents: bool = setting(True, "Pack full examples of several documents; else each has rows of its own.")
    validation_mask_rate: float = setting(0.15, "Share of the held-out tokens that are masked.", above=0, below=1)
    validation_tokens: int = setting(100_000, "Held-out tokens of all buckets of length together.", least=1)
    probes: int = setting(64, "Long-range probes in the held-out text at most.", least=0)
    final_learning_rate: float = with_default(TrainConfig, "final_learning_rate", 2e-5)

    def check(self, who: str = "pretrain") -> None:
        """Raise M2BertError for settings that cannot be meant; nothing is changed."""
        super().check(who)
        if not self.data:
            raise M2BertError(f"{who}: needs data, got nothing; pass --data with files, folders or globs")


@dataclass(kw_only=True)
class DistillConfig(PairSettings, NewModelSettings, TrainConfig):
    """Settings of `m2bert distill`."""

    teacher: list[str] = setting(
        [], "Model to learn from: a SentenceTransformer or M2-BERT, folder or name; may be repeated."
    )
    data: list[str] = setting([], "Plain text: files, folders or globs; may be repeated.")
    weights: dict[str, float] = setting(
        {}, "Factors of collections' shares (`name`, `documents/name`, `queries/name`), such as books:2."
    )
    text_tokens: int = setting(4_000_000, "Tokens of text that each teacher reads.", least=1)
    validation: list[str] = setting([], "Held-out text for the loss at every checkpoint; may be repeated.")
    validation_tokens: int = setting(100_000, "Tokens of held-out text at most.", least=1)
    window_tokens: int = setting(1024, "Longest stretch the student reads at once.")
    segment_tokens: int = setting(128, "Longest stretch the teacher reads at once.", least=8)
    bf16_weights: bool = setting(False, "Store the result in bfloat16, half the size.")
    pooling: str = setting(
        "", "mean or weighted; by default that of --init or --config.", choices=("", "mean", "weighted")
    )
    bilinear_features: int = setting(0, "Bilinear features to go on with; 0 for those of --init or --config.")
    projection_dim: int = setting(0, "Length of embeddings to go on with; 0 for that of --init or --config.")

    def check(self, who: str = "distill") -> None:
        """Raise M2BertError for settings that cannot be meant; nothing is changed."""
        super().check(who)
        if not self.teacher or isinstance(self.teacher, str):
            raise M2BertError(
                f"{who}: needs a list of teachers, got {self.teacher or 'nothing'}; pass --teacher with a model's "
                "folder or name"
            )
        if not (self.data or self.pairs or self.loco):
            raise M2BertError(f"{who}: needs text, got nothing; pass --data, --pairs or --loco")
        if self.window_tokens < self.segment_tokens:
            raise M2BertError(
                f"{who}: window_tokens must be at least {self.segment_tokens}, as segment_tokens, got "
                f"{self.window_tokens}; raise it"
            )
        if self.batch_tokens < self.window_tokens + 2:
            raise M2BertError(
                f"{who}: batch_tokens must hold a window of {self.window_tokens} + 2 tokens, got {self.batch_tokens}; "
                "raise it"
            )


@dataclass(kw_only=True)
class FinetuneConfig(PairSettings, TrainConfig):
    """Settings of `m2bert finetune`; how pairs are drawn by them: m2bert.data.contrast."""

    loss: str = setting("mnrl", f"{', '.join(LOSS_NAMES)}.", choices=LOSS_NAMES)
    cloze: list[str] = setting([], "Plain text that queries are cut from; may be repeated.")
    weights: dict[str, float] = setting({}, "Factors of data sets' chances, such as peps:3,books:0.5.")
    lengths: dict[int, float] = setting(
        {512: 1.0}, "Longest document in tokens with its share of the batches: 512:0.7,2048:0.3."
    )
    batch_size: int = setting(64, "Queries per batch at most.", least=1)
    batch_tokens: int = with_default(TrainConfig, "batch_tokens", 32768)
    negatives: int = setting(0, "Extra documents per batch.", least=0)
    negatives_from: str = setting(
        "random",
        "Which those are: random, the best by bm25, by the model itself (self), or by both as search ranks (search).",
        choices=NEGATIVES,
    )
    refresh_steps: int = setting(200, "Steps after which the model mines negatives anew; 0 for never.", least=0)
    mining_depth: int = setting(20, "Negatives mined for each query.", least=1)
    mining_pool: int = setting(2000, "Documents of a data set that are mined among at most.", least=2)
    max_query_tokens: int = setting(64, "Longest query in tokens.", least=3)
    crop: str = setting(
        "mixed", "Part of a longer document that is taken: head, random or mixed.", choices=("head", "random", "mixed")
    )
    cloze_share: float = setting(0.5, "Share of the batches that are of plain text.", least=0, most=1)
    keep_share: float = setting(0.5, "Share of cloze queries that stay in their document.", least=0, most=1)
    keyword_share: float = setting(0.3, "Share of cloze queries reduced to their less common words.", least=0, most=1)
    similar_lengths: bool = setting(True, "Batches of documents of similar length, little of which is padding.")
    chunk_tokens: int = setting(
        8192, "Tokens of the groups that documents are encoded in, which stay in the processor's cache.", least=1
    )
    cached: bool = setting(False, "Encode groups again for their gradients, one at a time (GradCache): less memory.")
    learning_rate: float = with_default(TrainConfig, "learning_rate", 3e-4)
    scale: float = setting(RANKING_SCALE, "What the losses that rank multiply scores by.", above=0)
    passages: float = setting(
        0.0,
        "Share of the best pair of passages in a document's score, the rest is the whole; search has 0.3.",
        least=0,
        most=1,
    )
    matryoshka: list[int] = setting([], "The loss is also taken of so many first numbers; may be repeated.")
    query_variants: float = setting(
        0.0, "Share of the queries seen misspelt, as keywords alone, or in other letters (A, a).", least=0, most=1
    )
    bf16_weights: bool = setting(True, "Store the result in bfloat16, half the size.")
    pooling: str = setting("", "Pooling to go on with (mean, cls, cls_dense, weighted); by default that of --init.")
    bilinear_features: int = setting(0, "Bilinear features to go on with; 0 for those of --init.")
    projection_dim: int = setting(0, "Length of embeddings to go on with; 0 for that of --init.")
    term_weights: bool = setting(
        False, "Go on with term weights, also if --init has none; fresh ones start as inverse document frequencies."
    )
    only_term_weights: bool = setting(
        False, "Train the term weights alone, by the cosines of sparse vectors; the encoder is not run."
    )

    def check(self, who: str = "finetune") -> None:
        """Raise M2BertError for settings that cannot be meant; nothing is changed."""
        if not self.init:
            raise M2BertError(f"{who}: needs init, got nothing; pass --init with a pretrained model's folder")
        super().check(who)
        if self.negatives_from != "random" and not (self.negatives > 0 and (self.pairs or self.loco)):
            raise M2BertError(f"{who}: mined negatives need negatives above 0 and pairs or tasks, got none; pass them")
        if self.loss == "opl" and self.scale != RANKING_SCALE:
            raise M2BertError(f"{who}: scale must be left alone with loss opl, which has none, got {self.scale}")
        if not all(isinstance(dim, int) and dim >= 1 for dim in self.matryoshka):
            raise M2BertError(f"{who}: matryoshka must be whole numbers of at least 1, got {self.matryoshka}")
        if self.only_term_weights and (self.passages > 0 or self.matryoshka):
            raise M2BertError(
                f"{who}: only_term_weights trains sparse vectors, which have neither passages nor first numbers; "
                "set passages to 0 and matryoshka to []"
            )
        if self.only_term_weights and self.gradient_checkpointing:
            raise M2BertError(
                f"{who}: only_term_weights runs no blocks to checkpoint; set gradient_checkpointing to false"
            )
        if self.batch_size + self.negatives < 2:
            raise M2BertError(f"{who}: a batch needs 2 documents, got batch_size 1 without negatives; add negatives")
        if not self.lengths or min(self.lengths) < 16:
            raise M2BertError(f"{who}: lengths must map tokens (16 or more) to shares, got {self.lengths}")
