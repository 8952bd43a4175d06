"""What one document of 32,768 tokens needs beyond the weights, measured in a process of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from forking import TRAINING, run_forked

BOUND = 1.5e9
# Two of the twelve layers of the 80M configuration: memory is given back after each. Prints the bytes at the peak of
# one pass above those before it, and those of the spectra that the pass has kept.
PROGRAM = """
import re, sys, torch
from pathlib import Path
from m2bert import M2BertConfig, M2BertModel

def kilobytes(name):
    return int(re.search(name + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

torch.set_num_threads(2)
model = M2BertModel(M2BertConfig(num_hidden_layers=2, max_position_embeddings=32768)).eval()
input_ids = torch.randint(1000, 30000, (1, 32768))
with torch.inference_mode(), model.cached_filters():
    model(input_ids[:, :64])
    before = kilobytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    model(input_ids)
    print((kilobytes("VmHWM") - before) * 1024, model.filter_bank.nbytes)
"""


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="needs Linux, which tells a process its peak memory"
)
def test_a_long_document_needs_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """No spectrum is kept, so that filters and spectra made on the way are counted."""
    monkeypatch.setenv("M2OPS_SPECTRUM_CACHE_MB", "0")
    result = run_forked(PROGRAM, imported=TRAINING)
    assert result.returncode == 0, result.stderr
    peak, spectra = (int(number) for number in result.stdout.split())
    projected = 3 * 768 * 32768 * 4  # the input of the mixer alone: the meter works
    assert spectra == 0 and projected < peak < BOUND
