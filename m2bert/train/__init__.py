"""Training: settings, the trainer, losses, hard negatives; pretraining, distillation, fine-tuning, validation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from m2bert._lazy import lazy_names

_PUBLIC = {
    "DistillConfig": "m2bert.train.settings",
    "FinetuneConfig": "m2bert.train.settings",
    "PretrainConfig": "m2bert.train.settings",
    "validate_checkpoint": "m2bert.train.validation",
}
__all__ = list(_PUBLIC)
if TYPE_CHECKING:
    from m2bert.train.settings import (
        DistillConfig as DistillConfig,
        FinetuneConfig as FinetuneConfig,
        PretrainConfig as PretrainConfig,
    )
    from m2bert.train.validation import validate_checkpoint as validate_checkpoint
else:
    __getattr__, __dir__ = lazy_names(__name__, _PUBLIC)
