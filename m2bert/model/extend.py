"""More positions for a trained model: `m2bert extend`. The warm start of arXiv 2402.07440, section 4.2.

Test: tests/model/test_extend.py.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from m2bert.errors import M2BertError
from m2bert.files import make_output
from m2bert.model.checkpoints import load_whole, save_model
from m2bert.model.modeling import M2BertPreTrainedModel

METHODS = ("interpolate", "tile")
# Tables with a row per position: the embeddings of positions, and the features that filters are made from.
TABLES = (".position_embeddings.weight", ".features")


def interpolate_rows(table: Tensor, positions: int) -> Tensor:
    """Rows (positions, dim) on straight lines between those of `table` (old, dim), first and last row kept.

    Row j lies where row j (old - 1) / (positions - 1) was: the scale at which filters measure time stretches alike.
    """
    return F.interpolate(table.T[None], size=positions, mode="linear", align_corners=True)[0].T.contiguous()


def tile_rows(table: Tensor, positions: int) -> Tensor:
    """Rows (positions, dim): those of `table` (old, dim) again and again, the last copy cut."""
    copies = -(-positions // len(table))
    return table.repeat(copies, 1)[:positions].contiguous()


def extend(model: M2BertPreTrainedModel, positions: int, method: str = "interpolate") -> Any:
    """A model of the same class and weights with `positions` positions; the given one is left as it is.

    method: "interpolate" draws out position embeddings and filter features, "tile" repeats them, as the paper did.
    Raises M2BertError when `positions` does not exceed the model's, or for another method.
    """
    old = model.config.max_position_embeddings
    if method not in METHODS:
        raise M2BertError(f"extend: method must be one of {', '.join(METHODS)}, got {method!r}")
    if positions <= old:
        raise M2BertError(f"extend: positions must exceed the model's {old}, got {positions}; raise --to")
    config = copy.deepcopy(model.config)
    config.max_position_embeddings = positions
    longer = type(model)(config)
    rows = interpolate_rows if method == "interpolate" else tile_rows
    state = model.state_dict()
    longer.load_state_dict({name: rows(x, positions) if name.endswith(TABLES) else x for name, x in state.items()})
    return longer.to(next(model.parameters()).device).train(model.training)


def extend_checkpoint(path: str, positions: int, output: str, method: str = "interpolate") -> dict[str, Any]:
    """Extend the checkpoint `path` into the folder `output`, in float32: it is a start for further training.

    Returns model (the folder), method, positions_before, positions and parameters. Raises M2BertError as
    :func:`extend` and :func:`load_whole` do, and when `output` is the checkpoint itself.
    """
    if not output or Path(output).resolve() in (Path(path).resolve(), (Path(path) / "model").resolve()):
        raise M2BertError(f"extend: output must be a folder of its own, got {output!r}; name another")
    model, tokenizer = load_whole(path, "extend")
    longer = extend(model, positions, method)
    tokenizer.model_max_length = positions
    make_output(output)
    save_model(longer, tokenizer, output, dtype=torch.float32)
    return {
        "model": output,
        "method": method,
        "positions_before": model.config.max_position_embeddings,
        "positions": positions,
        "parameters": longer.num_parameters(),
    }
