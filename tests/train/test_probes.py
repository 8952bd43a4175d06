"""The long-range probe: what a probe is, and who can solve it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers.modeling_outputs import MaskedLMOutput

from m2bert.data.examples import SpecialIds
from m2bert.data.probes import Probe, long_range_probes, probe_length
from m2bert.data.tokens import TokenStore
from m2bert.train.validation import evaluate_probes

IDS = SpecialIds(pad=0, unk=1, cls=2, sep=3, mask=4, vocab_size=400)
SMALL = {"gap": 50, "early": 20, "late": 5}
NAMES, COMMON, CONTINUING = range(5, 300), range(300, 380), range(380, 400)


def made_store(documents: int = 60, tokens: int = 400, seed: int = 0) -> TokenStore:
    """Documents of common words and, here and there, names of their own that come back much later."""
    rng = np.random.default_rng(seed)
    parts = []
    for number in range(documents):
        text = rng.choice([*COMMON, *CONTINUING], tokens)
        for name in NAMES[number * 4 : number * 4 + 4]:
            first = int(rng.integers(0, tokens - 120))
            for place in (first, first + int(rng.integers(10, 110))):
                text[place], text[place + 1] = name, COMMON[0]
        parts.append(text)
    offsets = np.arange(documents + 1) * tokens
    return TokenStore(np.concatenate(parts), offsets, np.zeros(documents, dtype=np.int32), ("made",))


def continuing() -> np.ndarray:
    found = np.zeros(400, dtype=np.bool_)
    found[list(CONTINUING)] = True
    return found


def made_probes(count: int = 40, seed: int = 1) -> list[Probe]:
    return long_range_probes(made_store(), IDS, continuing(), count=count, seed=seed, **SMALL)


def test_probes_are_what_their_definition_says() -> None:
    store, probes = made_store(), made_probes()
    assert len(probes) > 15
    documents = [store.document(i) for i in range(len(store))]
    rows = set()
    for probe in probes:
        assert len(probe.ids) == len(probe.control) == probe_length(**SMALL) == 78
        assert probe.place == 71 and probe.ids[71] == probe.control[71] == IDS.mask
        assert (probe.ids[0], probe.ids[-1]) == (IDS.cls, IDS.sep)
        # The text, with the name put back, is a stretch of a document.
        text = np.where(probe.ids == IDS.mask, probe.target, probe.ids)[1:-1]
        assert any((np.lib.stride_tricks.sliding_window_view(d, 76) == text).all(axis=1).any() for d in documents)
        # Rare, whole, early, and nowhere near.
        assert sum(bool((d == probe.target).any()) for d in documents) == 1
        assert probe.target in NAMES
        assert (probe.ids[1:21] == probe.target).any()
        assert not (probe.ids[21:] == probe.target).any() and not (probe.control == probe.target).any()
        # The control is the same but for the early text.
        assert np.array_equal(probe.ids[21:], probe.control[21:])
        assert (probe.ids[1:21] != probe.control[1:21]).mean() > 0.5
        rows.add(probe.ids.tobytes())
    assert len(rows) == len(probes)


def test_probes_depend_on_the_seed_and_stop_at_their_number() -> None:
    one, two, other = made_probes(), made_probes(), made_probes(seed=2)
    for a, b in zip(one, two, strict=True):
        assert np.array_equal(a.ids, b.ids) and np.array_equal(a.control, b.control)
    assert any(not np.array_equal(a.ids, b.ids) for a, b in zip(one, other, strict=False))
    assert len(made_probes(count=7)) == 7
    assert long_range_probes(made_store(), IDS, None, count=9, seed=1, gap=390) == []


def test_a_name_cut_into_pieces_is_none() -> None:
    store = made_store()
    tokens = store.tokens.copy()
    tokens[1:][np.isin(tokens[:-1], NAMES)] = CONTINUING[0]  # every name goes on
    cut = TokenStore(tokens, store.offsets, store.source_ids, store.sources)
    assert long_range_probes(cut, IDS, continuing(), count=9, seed=1, **SMALL) == []
    assert long_range_probes(cut, IDS, None, count=9, seed=1, **SMALL) != []


class Copier(torch.nn.Module):
    """Guesses among the rare words that it sees within `reach` tokens of the mask."""

    device = torch.device("cpu")

    def __init__(self, reach: int) -> None:
        super().__init__()
        self.reach = reach

    def forward(self, input_ids: Any, attention_mask: Any, labels: Any) -> MaskedLMOutput:
        logits = torch.zeros(len(input_ids), 400)
        for row, ids, place in zip(logits, input_ids, (labels != -100).int().argmax(dim=1), strict=True):
            seen = ids[max(0, place - self.reach) : place + self.reach + 1]
            row[seen[(seen > 4) & (seen < 300)]] = 8.0
        return MaskedLMOutput(logits=logits)


def test_only_what_reads_far_gains() -> None:
    probes = made_probes()
    far = evaluate_probes(Copier(reach=80), probes, batch_tokens=300, bf16=False)
    near = evaluate_probes(Copier(reach=SMALL["gap"]), probes, batch_tokens=300, bf16=False)
    assert near["gain"] == 0.0 and near["gain_error"] == 0.0
    assert near["loss"] == near["control_loss"] and near["accuracy"] == near["control_accuracy"]
    assert far["gain"] > 2.0 and far["gain"] > 5 * far["gain_error"] > 0
    assert far["gain"] == pytest.approx(far["control_loss"] - far["loss"])
    assert far["accuracy"] > 0.3 and far["control_accuracy"] == 0.0
    assert far["count"] == near["count"] == len(probes)


def test_the_published_distance_is_a_thousand_tokens() -> None:
    assert probe_length() == 400 + 1000 + 1 + 60 + 2
    rng = np.random.default_rng(0)
    text = rng.choice(list(COMMON), 2000)
    text[100], text[1450], other = 7, 7, rng.choice(list(COMMON), 2000)
    store = TokenStore(np.concatenate([text, other]), np.asarray([0, 2000, 4000]), np.zeros(2, np.int32), ("made",))
    (probe,) = (p for p in long_range_probes(store, IDS, None, count=50, seed=0) if p.target == 7)
    assert np.flatnonzero(probe.ids == 7).tolist() == [1 + 50] and probe.place == 1401  # 1,350 tokens apart
