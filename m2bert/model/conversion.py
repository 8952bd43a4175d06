"""Released checkpoints as model folders of ours: `m2bert convert`.

    togethercomputer/m2-bert-80M-{2k,8k,32k}-retrieval, hazyresearch/M2-BERT-*-Retrieval-Encoder-V1
        encoders: the first token's state, a dense layer, tanh, every text padded to the model's length
    m2-bert-{128,2048,8192,32768}.pt, as the reference's trainer writes them
        masked language models

Test: tests/model/test_conversion.py.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from m2bert.errors import M2BertError
from m2bert.files import make_output
from m2bert.model.checkpoints import HUB_ID, save_model
from m2bert.model.modeling import M2BertForMaskedLM
from m2bert.model.reference import FILES, checkpoint_file, read_reference
from m2bert.model.tokenization import load_tokenizer

WHO = "convert"
TOKENIZER = "google-bert/bert-base-uncased"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt")
# Poolings of the reference that no released model uses, as their config.json would say.
OTHER_POOLINGS = ("pool_all", "use_cls_token", "sequence_token_planting", "gather_sentence_embeddings")
# What is left out, the first pattern that is found.
DROPPED = {
    "copies of a filter's frequency": re.compile(r"\.freq$"),
    "buffers of FlashFFTConv": re.compile(r"\.flashfft\."),
    "tables that are computed": re.compile(r"\.position_ids$|\.pos_emb\.t$|\.modulation\.deltas$"),
    "pooler that a masked language model does not use": re.compile(r"^bert\.pooler\."),
    "tied weights of the head": re.compile(r"^cls\."),
}


def convert_checkpoint(source: str, output: str, *, tokenizer: str = "", file: str = "") -> dict[str, Any]:
    """Write the checkpoint `source` of the reference implementation as a model folder `output`, in float32.

    source: a file, a folder with one, or owner/name[@revision] on the Hugging Face hub. tokenizer: a folder with
    tokenizer.json or vocab.txt, or a name on the hub; by default that beside the checkpoint, else bert-base-uncased,
    which the released models read by. file: the weights' name where a folder has several. Returns model (the folder),
    kind, pooling, pad_to_max_length, positions, parameters, and dropped: how many tensors of which kind were left out.
    Raises M2BertError as load_reference does, for poolings that no released model has, and without a tokenizer.
    """
    place = _fetched(source, file)
    weights = checkpoint_file(place / file if file and place.is_dir() else place)
    _check_pooling(weights.parent / "config.json")
    model, dropped = read_reference(weights)
    if not isinstance(model, M2BertForMaskedLM):
        model.config.pad_to_max_length = model.config.pooling == "cls_dense"
    words = _tokenizer_of(tokenizer, weights.parent)
    if len(words) > model.config.vocab_size:
        raise M2BertError(
            f"{WHO}: the tokenizer must have at most the checkpoint's {model.config.vocab_size} pieces, got "
            f"{len(words)}; name the one it was trained with by --tokenizer"
        )
    make_output(output)
    save_model(model, words, output, dtype=torch.float32)
    kinds = Counter(next((kind for kind, form in DROPPED.items() if form.search(name)), name) for name in dropped)
    return {
        "model": output,
        "kind": "masked language model" if isinstance(model, M2BertForMaskedLM) else "encoder",
        "pooling": model.config.pooling,
        "pad_to_max_length": model.config.pad_to_max_length,
        "positions": model.config.max_position_embeddings,
        "parameters": model.num_parameters(),
        "dropped": dict(kinds),
    }


def _fetched(source: str, file: str) -> Path:
    """`source` itself where there is such a file or folder; of a model on the hub what conversion needs, downloaded."""
    found = HUB_ID.fullmatch(source)
    if Path(source).exists() or found is None:
        return Path(source)
    from huggingface_hub import list_repo_files, snapshot_download

    try:
        names = list_repo_files(found["name"], revision=found["revision"])
        weights = file or next((name for name in FILES if name in names), "")
        patterns = [weights, "config.json", *TOKENIZER_FILES]
        folder = Path(snapshot_download(found["name"], revision=found["revision"], allow_patterns=patterns))
    except (OSError, ValueError) as error:
        raise M2BertError(
            f"{WHO}: {source!r} is no file or folder here and cannot be had from the Hugging Face hub "
            f"({str(error).partition(chr(10))[0]}); check the name or the network"
        ) from error
    if not weights or not (folder / weights).is_file():
        raise M2BertError(
            f"{WHO}: {source!r} has no file {weights or ' or '.join(FILES)}, got {', '.join(names)}; name one by --file"
        )
    return folder / weights


def _check_pooling(path: Path) -> None:
    """Raise M2BertError where a checkpoint's config.json asks for a pooling that this library does not have."""
    if not path.is_file():
        return
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        asked = [name for name in OTHER_POOLINGS if fields.get(name)]
    except (OSError, ValueError, AttributeError) as error:
        raise M2BertError(f"{WHO}: {path} must be a JSON object ({error}); restore it or take it away") from error
    if asked:
        raise M2BertError(
            f"{WHO}: a checkpoint must pool as the released ones do, by the first token, but {path} sets "
            f"{', '.join(asked)}; vectors would differ, so it is not converted"
        )


def _tokenizer_of(name: str, beside: Path) -> Any:
    from transformers import AutoTokenizer, BertTokenizer

    here = Path(name) if name else beside
    if (here / "tokenizer.json").is_file() or (here / "vocab.txt").is_file():
        if not (here / "tokenizer.json").is_file():
            return BertTokenizer(vocab=str(here / "vocab.txt"))
        return load_tokenizer(here)
    try:
        return AutoTokenizer.from_pretrained(name or TOKENIZER)
    except (OSError, ValueError) as error:
        raise M2BertError(
            f"{WHO}: the tokenizer must be a folder with tokenizer.json or vocab.txt, or a name on the hub, "
            f"got {name or TOKENIZER!r} ({str(error).partition(chr(10))[0]}); name one by --tokenizer"
        ) from error
