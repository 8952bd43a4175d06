"""What a process and a model are prepared with before training: trackers, gradient checkpointing.

May import m2bert.errors, m2bert.settings and transformers. Test: tests/test_training_setup.py.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from transformers import TrainerCallback
from transformers.integrations import get_reporting_integration_callbacks

from m2bert.errors import M2BertError
from m2bert.settings import has_bf16

logger = logging.getLogger(__name__)


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
