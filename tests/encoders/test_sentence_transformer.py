"""SentenceTransformers as encoders: their own embeddings, every token counted, long texts in pieces."""

from __future__ import annotations

import numpy as np
import pytest
from optional import needs
from tiny import story, tiny_embedder, tiny_model_folder, tiny_tokenizer

from m2bert.bench.evaluate import evaluate_tasks
from m2bert.bench.systems import EncoderSystem
from m2bert.bench.tasks import RetrievalTask
from m2bert.encoders.embedder import Embedder
from m2bert.encoders.opening import open_encoder
from m2bert.encoders.sentence_transformer import SentenceTransformerEncoder
from m2bert.errors import M2BertError

pytestmark = needs("peers", "sentence_transformers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A SentenceTransformer of a random BERT that reads 16 tokens, two of them special."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling
    from transformers import BertConfig, BertModel, BertTokenizerFast

    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("peer")
    words = tiny_tokenizer().get_vocab()
    (place / "vocab.txt").write_text("\n".join(sorted(words, key=words.get)), encoding="utf-8")
    BertTokenizerFast(vocab_file=str(place / "vocab.txt"), model_max_length=16).save_pretrained(place / "bert")
    config = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=16, initializer_range=0.5,
    )  # fmt: skip
    BertModel(config).save_pretrained(place / "bert")
    transformer = Transformer(str(place / "bert"))
    model = SentenceTransformer(modules=[transformer, Pooling(16, "mean")], prompts={"query": "", "document": ""})
    model.max_seq_length = 16
    model.save(str(place / "tiny-peer"))
    return place / "tiny-peer"


@pytest.fixture
def peer(folder):
    return open_encoder(str(folder))


def test_embeddings_are_the_models_own_and_truncation_is_counted(peer, folder):
    from sentence_transformers import SentenceTransformer

    assert (peer.name, peer.max_tokens) == ("tiny-peer", 16)
    short, long = "river stone light", " ".join(["river"] * 20)
    found = peer.encode_documents([short, long])
    assert [(each.num_tokens, each.num_windows, each.num_truncated) for each in found] == [(3, 1, 0), (14, 1, 6)]
    direct = SentenceTransformer(str(folder)).encode([short, long])
    assert np.allclose([each.vector for each in found], direct, atol=1e-6)
    assert np.allclose(peer.encode([short, long]), direct, atol=1e-6)
    # What was cut makes no difference, which is why it must be counted; what was not does.
    assert np.allclose(peer.encode([long]), peer.encode([" ".join(["river"] * 14)]), atol=1e-6)
    assert not np.allclose(peer.encode([short]), peer.encode([long]), atol=1e-3)


@pytest.mark.parametrize("num_words", [1, 13, 14, 15, 29, 100])
def test_pieces_are_the_whole_text_and_each_is_read_whole(peer, num_words):
    text = story(num_words)
    pieces = peer.split(text)
    assert "".join(pieces) == text
    for document in peer.encode_documents(pieces):
        assert document.num_truncated == 0
    counts = [document.num_tokens for document in peer.encode_documents(pieces)]
    assert max(counts) - min(counts) <= 3


def test_chunks_let_a_short_encoder_find_what_lies_late(peer):
    """The mean and the best of the chunks, worked out here from the pieces' embeddings."""
    documents = {"late": "river " * 40 + "copper window", "other": "river " * 40 + "garden winter"}
    task = RetrievalTask("t", "test", documents, {"q": "copper window"}, {"q": {"late": 1}})
    systems = [EncoderSystem(peer, chunks) for chunks in (None, "mean", "max")]
    report = evaluate_tasks([task], systems, metrics=["RR@1"])
    assert [system.name for system in report.tasks[0].systems] == [
        "tiny-peer", "tiny-peer, mean of chunks", "tiny-peer, best chunk",
    ]  # fmt: skip
    cut, mean, best = report.tasks[0].systems
    assert (cut.lengths.num_truncated, cut.lengths.tokens_lost) == (2, 2 * (42 - 14))
    assert (best.lengths.num_truncated, best.lengths.num_windowed, best.lengths.max_tokens) == (0, 2, 42)
    assert mean.lengths == best.lengths

    def unit(x):
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    query = unit(peer.encode(["copper window"]))[0].astype(float)
    for system, pool in ((systems[1], lambda x: unit(x.mean(axis=0)) @ query), (systems[2], lambda x: max(x @ query))):
        run = system.rank(task, 10, lambda label, fraction: None).run["q"]
        for name, text in documents.items():
            expected = pool(unit(peer.encode(peer.split(text)).astype(float)))
            assert run[name] == pytest.approx(expected, abs=1e-6)
    # Read in part, the two documents are the same text: a tie. In pieces they are not.
    run = systems[0].rank(task, 10, lambda label, fraction: None).run["q"]
    assert run["late"] == run["other"]


def test_fingerprints_tell_models_and_settings_apart(folder):
    from sentence_transformers import SentenceTransformer

    one, same, shorter = (SentenceTransformer(str(folder)) for _ in range(3))
    shorter.max_seq_length = 8
    names = [SentenceTransformerEncoder(model).fingerprint for model in (one, same, shorter)]
    assert names[0] == names[1] != names[2]


def test_a_name_decides_what_is_opened(folder, tmp_path, monkeypatch):
    ours = tiny_model_folder(tmp_path / "ours")
    assert isinstance(open_encoder(str(ours)), Embedder)
    named = open_encoder(f"mine={ours}", overflow="truncate")
    assert (named.name, named.overflow) == ("mine", "truncate")
    assert open_encoder(f"theirs={folder}").name == "theirs"
    assert open_encoder(str(folder), device="cpu").device == "cpu"
    with pytest.raises(M2BertError, match=r"cannot be loaded as a SentenceTransformer .*nowhere"):
        open_encoder(str(folder), device="nowhere")
    with pytest.raises(M2BertError, match="load_model"):
        open_encoder("m2-bert-gigantic")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "modules.json").write_text("[not json")
    with pytest.raises(M2BertError, match="cannot be loaded as a SentenceTransformer"):
        open_encoder(str(tmp_path / "empty"))


def test_chunks_must_be_known():
    with pytest.raises(M2BertError, match="chunks must be one of mean, max or None, got 'min'"):
        EncoderSystem(tiny_embedder(), "min")
