"""Encoders for workers of Ray, which open them in processes of their own."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from bag_of_words import BagOfWords


class Mortal(BagOfWords):
    """Notes every text that it embeds in `folder`, and kills its process at the text "copper 7", the first time."""

    def __init__(self, folder: str, at: str | None = "copper 7") -> None:
        super().__init__(dim=64, passage_words=4)
        self.folder, self.at = Path(folder), at

    def encode_documents(self, texts: Any, **options: Any) -> Any:
        killed = self.folder / "killed"
        if self.at in texts and not killed.exists():
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        with (self.folder / f"embedded-{os.getpid()}").open("a") as file:
            file.writelines(f"{text}\n" for text in texts)
        return super().encode_documents(texts, **options)


def embedded(folder: Path) -> list[str]:
    """The texts that were embedded, in any process, since the last time."""
    files = sorted(folder.glob("embedded-*"))
    lines = [line for file in files for line in file.read_text().splitlines()]
    for file in files:
        file.unlink()
    return lines
