"""Small files beside a model's weights, by which other libraries open its folder as we do: write_companions.

    modules.json, sentence_bert_config.json, config_sentence_transformers.json, 1_Pooling
                          for sentence-transformers: our pooled vectors, of unit norm, of texts of any length
    modeling_m2bert.py    one line that imports this package, and `auto_map` in config.json, which names it: with
                          trust_remote_code=True transformers opens the folder without `import m2bert`

Without them sentence-transformers would take the mean of a model's states for its vectors, and say nothing.
Tests: tests/integrations/test_sentence_transformers.py, tests/integrations/test_agreement.py.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from m2bert.model.architecture import Architecture

MODULES = "modules.json"
SETTINGS = "config_sentence_transformers.json"
CODE = "modeling_m2bert"
CODE_TEXT = (
    "from m2bert.model.modeling import (  # noqa: F401\n"
    "    M2BertConfig,\n    M2BertForMaskedLM,\n    M2BertForSequenceClassification,\n    M2BertModel,\n)\n"
)
AUTO_MAP = {
    "AutoConfig": f"{CODE}.M2BertConfig",
    "AutoModel": f"{CODE}.M2BertModel",
    "AutoModelForMaskedLM": f"{CODE}.M2BertForMaskedLM",
    "AutoModelForSequenceClassification": f"{CODE}.M2BertForSequenceClassification",
}
# Tokens of the longest text that sentence-transformers hands the model, which reads it in windows: any text.
ANY_LENGTH = 1 << 30
POOLING = "1_Pooling"


def is_described(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder says already how sentence-transformers is to open it."""
    return (Path(folder) / SETTINGS).exists() or (Path(folder) / MODULES).exists()


def write_companions(folder: str | os.PathLike[str], config: Architecture) -> None:
    """Write all of the files into a model's folder, which has a config.json; there it says where the code is."""
    name_code(folder)
    describe(folder, config)


def name_code(folder: str | os.PathLike[str]) -> None:
    """The files for transformers."""
    root = Path(folder)
    (root / f"{CODE}.py").write_text(CODE_TEXT, encoding="utf-8")
    fields = json.loads((root / "config.json").read_text(encoding="utf-8"))
    _write(root / "config.json", {**fields, "auto_map": AUTO_MAP}, sort_keys=True)


def describe(folder: str | os.PathLike[str], config: Architecture) -> None:
    """The files for sentence-transformers."""
    root = Path(folder)
    modules = {
        "": "base.modules.Transformer",
        POOLING: "sentence_transformer.modules.Pooling",
        "2_Normalize": "base.modules.Normalize",
    }
    files: dict[str, Any] = {
        MODULES: [
            {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.{module}"}
            for number, (path, module) in enumerate(modules.items())
        ],
        "sentence_bert_config.json": {
            "transformer_task": "feature-extraction",
            "module_output_name": "token_embeddings",
            "modality_config": {"text": {"method": "text_vectors", "method_output_name": None}},
            "max_seq_length": ANY_LENGTH,
        },
        SETTINGS: {
            "model_type": "SentenceTransformer",
            "prompts": {"query": "", "document": ""},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
        # The model hands over one state for each text, which is its vector.
        f"{POOLING}/config.json": {"embedding_dimension": config.embedding_size, "pooling_mode": "cls"},
    }
    for name, content in files.items():
        _write(root / name, content)


def _write(path: Path, content: Any, *, sort_keys: bool = False) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=2, sort_keys=sort_keys) + "\n", encoding="utf-8")
