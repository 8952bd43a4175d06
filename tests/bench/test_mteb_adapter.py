"""mteb runs our encoders on a task in memory, without a network, and finds the scores that we find."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from optional import needs

pytestmark = needs("mteb", "mteb")

SUPPORT = Path(__file__).resolve().parents[1] / "support"
# In a process of its own: mteb and what it loads warn of their own future, which is an error in these tests.
PROGRAM = """
import json, socket, sys
def refuse(*args, **kwargs):
    raise AssertionError("network used")
socket.socket.connect = socket.getaddrinfo = refuse
import mteb
import numpy as np
from bag_of_words import BagOfWords
from m2bert.bench.evaluate import evaluate_tasks
from m2bert.bench.mixtures import MixedSystem, PartScores
from m2bert.bench.mteb_adapter import _encode, as_mteb_model, as_mteb_search, as_mteb_task, mini_meta
from m2bert.bench.systems import EncoderSystem
from m2bert.bench.tasks import RetrievalTask

rng = np.random.default_rng(0)
mixing = rng.normal(size=(4096, 48))

class Dense(BagOfWords):
    # Word counts mixed, because equal scores are ranked by document id here and otherwise in mteb.
    def vector(self, text):
        return (super().vector(text) @ mixing).astype(np.float32)

words = [f"w{n}" for n in range(40)]
corpus = {f"d{n}": " ".join(rng.choice(words, 30)) for n in range(60)}
queries = {f"q{n}": " ".join(rng.choice(corpus[f"d{n}"].split(), 6)) for n in range(20)}
task = RetrievalTask("bags", "test", corpus, queries, {f"q{n}": {f"d{n}": 1, f"d{n + 20}": 1} for n in range(20)})
found = {}
for limit in (None, 4):
    encoder = Dense(limit=limit)
    result = mteb.evaluate(as_mteb_model(encoder), [as_mteb_task(task)], cache=None, encode_kwargs={"batch_size": 7})
    scores = result[0].scores["test"][0]
    metrics = ["nDCG@10", "nDCG@3", "R@10", "R@100"]
    ours = evaluate_tasks([task], [EncoderSystem(encoder)], metrics=metrics).tasks[0].systems[0].metrics
    names = ["ndcg_at_10", "ndcg_at_3", "recall_at_10", "recall_at_100"]
    found[str(limit)] = [[scores[name] for name in names], [ours[name] for name in metrics]]
    for rank in ("all", "words"):
        result = mteb.evaluate(as_mteb_search(encoder, rank), [as_mteb_task(task)], cache=None)
        scores = result[0].scores["test"][0]
        system = MixedSystem(PartScores(encoder), rank)
        ours = evaluate_tasks([task], [system], metrics=metrics).tasks[0].systems[0].metrics
        found[f"{limit}, {rank}"] = [[scores[name] for name in names], [ours[name] for name in metrics]]
blank = _encode(BagOfWords(), ["w1", " ", "w1"], is_query=False)
found["blank"] = [float(abs(blank[1]).max()), float(blank[0] @ blank[2])]
meta = mini_meta()
opened = meta.loader(meta.name, meta.revision).mteb_model_meta
found["meta"] = [getattr(meta, name) == getattr(opened, name) for name in ("revision", "embed_dim", "max_tokens")]
print(json.dumps(found))
"""


def test_mteb_finds_our_scores_without_a_network() -> None:
    """mteb rounds to five digits. The encoder that reads four words is the negative control: its scores are lower."""
    path = os.pathsep.join([str(SUPPORT), str(SUPPORT.parent), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=env, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    for name in ("None", "4", "None, all", "None, words", "4, all", "4, words"):
        theirs, ours = found[name]
        assert theirs == pytest.approx(ours, abs=1.1e-5), name
    assert found["None, all"] != found["None, words"] != found["None"]
    assert found["meta"] == [True, True, True]
    assert found["4"][0][0] < found["None"][0][0] - 0.05
    assert found["blank"] == [0.0, pytest.approx(1.0)]
