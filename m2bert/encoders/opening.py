"""One function for every place that takes a model's name: a folder, a shipped model, a SentenceTransformer.

Test: tests/encoders/test_sentence_transformer.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from m2bert.encoders.protocol import Encoder


def open_encoder(model: str, overflow: str = "window", *, device: str | None = None) -> Encoder:
    """An encoder by name or folder, or NAME=FOLDER to give it a name in tables.

    Folders and shipped models of this package open as m2bert.Embedder (`overflow` is for these alone); other folders,
    and names with a slash as on the hub, as SentenceTransformers. `device`: "cpu", "cuda:1"; None leaves the choice to
    them. Raises M2BertError if neither can.
    """
    name, equals, place = model.partition("=")
    if not equals or Path(model).exists():
        name, place = "", model
    encoder: Any
    if _is_peer(place):
        from m2bert.encoders.sentence_transformer import SentenceTransformerEncoder

        encoder = SentenceTransformerEncoder(place, device)
    else:
        from m2bert.encoders.embedder import Embedder

        encoder = Embedder(place, overflow=overflow, device=device)
    encoder.name = name or encoder.name
    opened: Encoder = encoder
    return opened


def _is_peer(place: str) -> bool:
    folder = Path(place)
    if not folder.is_dir():
        return "/" in place
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return (folder / "modules.json").is_file()
    return not (isinstance(config, dict) and config.get("model_type") == "m2_bert")
