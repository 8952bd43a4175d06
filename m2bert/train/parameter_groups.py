"""Which parameters train at which rate and decay: filters and their features apart from the rest.

Test: tests/train/test_parameter_groups.py.

The reference means to train filter networks at a rate and decay of their own and the features much more slowly, but
copying its layers drops the marks it keeps these in, so that all parameters train alike (arXiv 2402.07440's code).
"""

from __future__ import annotations

from typing import Any

from torch import nn

from m2bert.model.filters import ImplicitFilter, LongConv
from m2bert.train.settings import TrainConfig


def filter_parameters(model: nn.Module) -> dict[str, str]:
    """Full name of every parameter of long convolutions -> its part.

    "filter": weights and biases of the filter networks; "features": what they are computed from; "gain": skip and the
    frequency of the sines.
    """
    parts: dict[str, str] = {}
    for place, module in model.named_modules():
        if isinstance(module, LongConv):
            prefix = f"{place}." if place else ""
            parts |= {f"{prefix}features": "features", f"{prefix}skip": "gain", f"{prefix}frequency": "gain"}
        if isinstance(module, ImplicitFilter):
            parts |= {f"{place}.{name}": "filter" for name, _ in module.named_parameters()}
    return parts


def parameter_groups(model: nn.Module, decayed: set[str], config: TrainConfig) -> list[dict[str, Any]]:
    """Groups for an optimizer, one per pair of rate and decay that occurs: params, lr, weight_decay.

    `decayed` names what decays outside of long convolutions. Of those only the matrices of the filter networks do:
    features are places in time, skip and frequency are gains, and none of them means anything near 0.
    """
    parts = filter_parameters(model)
    rates = {"filter": config.filter_rate, "features": config.feature_rate}
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        part = parts.get(name)
        lr = config.learning_rate * rates.get(part or "", 1.0)
        if part is None:
            decay = config.weight_decay if name in decayed else 0.0
        else:
            decay = config.filter_weight_decay if part == "filter" and parameter.dim() > 1 else 0.0
        group = groups.setdefault((lr, decay), {"params": [], "lr": lr, "weight_decay": decay})
        group["params"].append(parameter)
    return list(groups.values())
