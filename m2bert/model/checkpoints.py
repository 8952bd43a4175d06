"""Files of models: load_network, load_model, load_whole, with_pooling, save_model, fingerprint.

No file's code is ever run. transformers is imported by what hands out its models, not by load_network.

Tests: tests/model/test_checkpoints.py, tests/model/test_fingerprints.py.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.overrides import TorchFunctionMode

from m2bert.errors import M2BertError
from m2bert.files import whole_folder
from m2bert.model.architecture import MODEL_TYPE, Architecture, fields_of_fingerprint
from m2bert.model.companions import write_companions
from m2bert.model.network import M2BertNetwork
from m2bert.model.tensors import few, read_shards, read_tensors
from m2bert.model.tokenization import PlainTokenizer, check_frame, load_tokenizer, write_facts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from m2bert.model.modeling import M2BertModel, M2BertPreTrainedModel

Network = TypeVar("Network", bound=M2BertNetwork)

SHIPPED = Path(__file__).resolve().parents[1] / "pretrained"
HUB_ID = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?")
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
SHARDED = ".index.json"
"""Ending of the file that says which tensor is in which file, where transformers has divided the weights."""
ENCODER, HEADS = "m2bert.", ("head.", "decoder.", "classifier.")
# Parts that are stored in float32 whatever the rest is stored in.
EXACT = ("long_conv", "residual_long_conv", "token_weights")


def load_network(path_or_name: str | os.PathLike[str] = "m2-bert-mini") -> tuple[M2BertNetwork, PlainTokenizer]:
    """The encoder and its tokenizer as :func:`load_model` loads them, in plain torch: without transformers."""
    folder = model_folder(path_or_name, "load_model")
    config = Architecture.from_fields(_read_fields(folder))
    return _with_weights(folder, lambda: M2BertNetwork(config)), PlainTokenizer.load(folder)


def load_model(
    path_or_name: str | os.PathLike[str] = "m2-bert-mini",
) -> tuple[M2BertModel, PreTrainedTokenizerBase]:
    """The encoder in float32 and evaluation mode, and its tokenizer.

    `path_or_name` is a folder made by :func:`save_model` (config.json, model.safetensors, tokenizer.json) or
    the name of a model shipped with this package. Weights of a head are left out. Raises M2BertError naming
    what is missing, superfluous or of the wrong shape.
    """
    from m2bert.model.configuration import M2BertConfig
    from m2bert.model.modeling import M2BertModel

    folder = model_folder(path_or_name, "load_model")
    config = M2BertConfig.from_dict(_read_fields(folder))
    model = _with_weights(folder, lambda: M2BertModel(config))
    model.config.dtype = torch.float32
    return model, load_tokenizer(folder)


class _Uninitialised(TorchFunctionMode):
    """Modules made inside are not initialised: on the meta device that imports torch's compiler, 3 s of CPU."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def _with_weights(folder: Path, make: Callable[[], Network]) -> Network:
    """What `make` makes, with the weights in `folder`: float32, in evaluation mode."""
    files = [folder / f"{name}{suffix}" for name in WEIGHTS for suffix in ("", SHARDED)]
    weights = next((file for file in files if file.is_file()), None)
    if weights is None:
        names = " or ".join(WEIGHTS)
        raise M2BertError(f"load_model: no {names} in {folder}; save the model with save_model")
    read = read_shards if weights.name.endswith(SHARDED) else read_tensors
    tensors = _encoder_tensors(read("load_model", weights))
    if any(name.startswith(("bert.", "module.bert.")) for name in tensors):
        raise M2BertError(
            f"load_model: {weights} has the reference implementation's names; "
            f"write it in this library's with `m2bert convert {folder} OUT`"
        )
    with torch.device("meta"), _Uninitialised():
        model = make()
    _check_tensors(weights, model.state_dict(), tensors)
    # Copies: what safetensors returns may be pages of the file, which somebody may overwrite.
    copies = {name: x.to(torch.float32, copy=True) for name, x in tensors.items()}
    model.load_state_dict(copies, assign=True)
    return model.eval()


def load_whole(path_or_name: str | os.PathLike[str], who: str) -> tuple[Any, PreTrainedTokenizerBase]:
    """The model in a folder or a shipped one, float32 and in evaluation mode, its head included, and its tokenizer.

    Raises M2BertError when there is no such model or its class is none of ours.
    """
    from m2bert.model.modeling import M2BertForMaskedLM, M2BertForSequenceClassification, M2BertModel

    folder = model_folder(path_or_name, who)
    _read_fields(folder)
    classes = {kind.__name__: kind for kind in (M2BertModel, M2BertForMaskedLM, M2BertForSequenceClassification)}
    try:
        (name,) = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"]
        kind = classes[name]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise M2BertError(
            f"{who}: {folder / 'config.json'} must name one of {', '.join(classes)} in architectures; "
            f"save the model with save_model"
        ) from error
    return kind.from_pretrained(folder, dtype=torch.float32).eval(), load_tokenizer(folder)


def with_pooling(
    model: M2BertModel,
    pooling: str = "",
    bilinear_features: int = 0,
    projection_dim: int = 0,
    term_weights: bool = False,
) -> M2BertModel:
    """`model` itself, which from now on pools by `pooling` and has such features; "" and 0 leave them as they are.

    Layers that it does not have yet are fresh. Raises M2BertError for what M2BertConfig does not know.
    """
    from m2bert.model.configuration import M2BertConfig

    config = model.config
    given = {
        "pooling": pooling,
        "bilinear_features": bilinear_features,
        "projection_dim": projection_dim,
        "term_weights": term_weights,
    }
    changed = {name: value for name, value in given.items() if value and value != getattr(config, name)}
    if not changed:
        return model
    M2BertConfig(**{**config.to_dict(), **changed})  # refuses other values
    for name, value in changed.items():
        setattr(config, name, value)
    of_setting = {
        "pooler": ("pooling",),
        "token_weights": ("pooling",),
        "bilinear_features": ("bilinear_features",),
        "projection": ("projection_dim", "bilinear_features"),
        "term_weights": ("term_weights",),
    }
    before = {layer: getattr(model, layer) for layer in of_setting}
    model.make_pooling_layers()
    for name, settings in of_setting.items():
        if changed.keys().isdisjoint(settings):
            setattr(model, name, before[name])
        elif (layer := getattr(model, name)) is not None:
            layer.to(next(model.parameters()).device).train(model.training).apply(model._init_weights)
    return model


def is_shipped(name: str) -> bool:
    """Whether a model of that name comes with this package."""
    return (SHIPPED / name / "config.json").is_file()


def save_model(
    model: M2BertPreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | os.PathLike[str],
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """Write config.json, model.safetensors, the tokenizer's files and those of m2bert.model.companions to `folder`.

    All or nothing. Weights are stored in `dtype`, those of the long filters in float32: bfloat16 cannot tell their
    positions apart; those of weighted pooling as well. Whoever opens the folder computes in float32, and is told to
    read as many tokens at once as the model has positions. Other files already in the folder stay. Raises M2BertError
    where it cannot be written, and for a tokenizer that does not put a text between [CLS] and [SEP], as an Embedder
    does whatever the tokenizer says: other libraries would have other vectors.
    """
    check_frame(tokenizer, "save_model")
    with whole_folder(folder, who="save_model", replace=True) as staging:
        save_file(_storable(model, dtype), staging / "model.safetensors", metadata={"format": "pt"})
        (staging / "model.safetensors").chmod(0o644)  # safetensors writes for the owner alone
        _write_config(model, staging)
        tokenizer.save_pretrained(staging)
        write_facts(staging, model_max_length=model.config.max_position_embeddings)
        write_companions(staging, model.config)


def fingerprint(model: M2BertNetwork | M2BertPreTrainedModel, tokenizer: PlainTokenizer | Any) -> str:
    """16 hex digits that change whenever weights, configuration or tokenizer do (SHA-256).

    The tokenizer is a PlainTokenizer or one of transformers; the same one gives the same digits.
    """
    digest = hashlib.sha256()
    digest.update(json.dumps(fields_of_fingerprint(model.config), sort_keys=True, default=str).encode())
    digest.update(_tokenizer_text(tokenizer).encode())
    for name, x in sorted(model.state_dict().items()):
        x = x.detach().cpu().contiguous()
        digest.update(f"{name} {x.dtype} {tuple(x.shape)}".encode())
        digest.update(memoryview(x.flatten().view(torch.uint8).numpy()))
    return digest.hexdigest()[:16]


def model_folder(path_or_name: str | os.PathLike[str] = "m2-bert-mini", who: str = "model_folder") -> Path:
    """The folder that a model's name stands for: a model folder, a run's output with the model inside, a shipped model,
    or, for `owner/name` or `owner/name@revision` where no folder `owner` is, a model of the Hugging Face hub,
    downloaded once. A revision is a branch, a tag or a commit.

    Raises M2BertError, beginning with `who`, when it is none of these or cannot be downloaded.
    """
    folder, name = Path(path_or_name), str(path_or_name)
    for place in (folder, folder / "model"):
        if (place / "config.json").is_file():
            return place
    shipped = sorted(p.parent.name for p in SHIPPED.glob("*/config.json"))
    if name in shipped:
        return SHIPPED / name
    if folder.is_dir():
        raise M2BertError(f"{who}: no config.json in {folder}; a model folder is what save_model writes")
    if (found := HUB_ID.fullmatch(name)) and not folder.parent.is_dir():
        return _downloaded(found["name"], found["revision"], who)
    raise M2BertError(
        f"{who}: a model must be a folder with config.json, a finished run, owner/name[@revision] on the hub or a "
        f"shipped model ({', '.join(shipped) or 'there is none'}), got {name!r}; name one of these"
    )


def _downloaded(name: str, revision: str | None, who: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        patterns = ["*.json", "*.safetensors", "*.bin"]
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise M2BertError(
            f"{who}: {name!r} is no folder here and cannot be had from the Hugging Face hub ({reason}); "
            "check the name or the network, or name a folder"
        ) from error
    if not (folder / "config.json").is_file():
        raise M2BertError(f"{who}: {name!r} on the Hugging Face hub has no config.json; name a model")
    return folder


def _read_fields(folder: Path) -> dict[str, Any]:
    """The fields of a config.json, of which those of Architecture are checked."""
    path = folder / "config.json"
    if not path.is_file():
        raise M2BertError(f"load_model: no config.json in {folder}; a model folder is what save_model writes")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise M2BertError(f"load_model: {path} must be JSON, but {error}") from error
    if not isinstance(fields, dict) or fields.get("model_type") != MODEL_TYPE:
        got = fields.get("model_type") if isinstance(fields, dict) else type(fields).__name__
        raise M2BertError(f"load_model: {path} must say model_type {MODEL_TYPE!r}, got {got!r}")
    name = fields.get("dtype") or fields.get("torch_dtype")
    if name is not None and not (isinstance(name, str) and isinstance(getattr(torch, name, None), torch.dtype)):
        raise M2BertError(f"load_model: dtype in {path} must be a type of tensors such as 'float32', got {name!r}")
    if fields.get("lexical_features"):
        raise M2BertError(
            f"load_model: {path} is of a model with hashed lexical features, which this version does not have; "
            "use the version that made it, or fine-tune anew with term_weights"
        )
    Architecture.from_fields(fields)
    return fields


def _encoder_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names as of M2BertModel: the prefix of models with a head is stripped, their heads dropped."""
    if not any(name.startswith(ENCODER) for name in tensors):
        return tensors
    kept = {name: x for name, x in tensors.items() if not name.startswith(HEADS)}
    return {name.removeprefix(ENCODER): x for name, x in kept.items()}


def _check_tensors(path: Path, expected: dict[str, Tensor], got: dict[str, Tensor]) -> None:
    missing, extra = sorted(expected.keys() - got.keys()), sorted(got.keys() - expected.keys())
    if missing or extra:
        counts = (("missing", missing), ("extra", extra))
        found = "; ".join(f"{len(names)} {what}: {few(names)}" for what, names in counts if names)
        raise M2BertError(f"load_model: {path} does not hold the tensors of its config.json; {found}")
    for name, x in expected.items():
        if x.shape != got[name].shape:
            raise M2BertError(
                f"load_model: {name} in {path} must have shape {tuple(x.shape)}, as config.json says, "
                f"got {tuple(got[name].shape)}"
            )
        if not got[name].is_floating_point():
            raise M2BertError(f"load_model: {name} in {path} must be floating point, got {got[name].dtype}")


def _storable(model: M2BertPreTrainedModel, dtype: torch.dtype) -> dict[str, Tensor]:
    """The state dict in `dtype` (some in float32), without the names that are tied to another."""
    exact = tuple(f".{name}." for name in EXACT)
    tied = set(getattr(model, "all_tied_weights_keys", {}))
    stored = {}
    for name, x in model.state_dict().items():
        if name not in tied:
            kept = torch.float32 if any(part in f".{name}" for part in exact) else dtype
            stored[name] = x.detach().to("cpu", kept).contiguous()
    return stored


def _write_config(model: M2BertPreTrainedModel, folder: Path) -> None:
    fields: dict[str, Any] = model.config.to_diff_dict()
    # What transformers computes in, whatever the weights are stored in.
    fields |= {"architectures": [type(model).__name__], "dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _tokenizer_text(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return json.dumps(tokenizer.get_vocab(), sort_keys=True)
    description = json.loads(backend.to_str())
    # How the last call padded and truncated is remembered there, and is no property of the tokenizer.
    description.pop("padding", None)
    description.pop("truncation", None)
    return json.dumps(description, sort_keys=True)
