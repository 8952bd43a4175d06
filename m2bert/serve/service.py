"""What a server serves: models, each behind its scheduler, and the stores that were made with them.

Test: tests/serve/test_app.py.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from m2bert.encoders.protocol import Encoder
from m2bert.search.index import SearchIndex
from m2bert.search.places import place_of
from m2bert.serve.limits import Limits, Refusal
from m2bert.serve.metrics import Metrics
from m2bert.serve.scheduled import ScheduledEncoder
from m2bert.serve.scheduler import BATCH_TOKENS, Scheduler
from m2bert.serve.steps import steps_of

SECONDS_SOURCES_KEPT = 30.0
PROBE = "Is anybody there?"
Served = TypeVar("Served")


@dataclass(frozen=True)
class StoreFacts:
    """What a page says of a store: how many documents it has, and the sources they come from."""

    num_documents: int
    sources: list[str]


class ServedStore:
    """A store under its name. writing: held by who changes it: texts are embedded for one at a time."""

    def __init__(self, name: str, path: str | Path, model: ScheduledEncoder) -> None:
        self.name, self.model = name, model
        self.index = SearchIndex.open(path, model)
        self.writing = threading.Lock()
        self._facts: tuple[float, StoreFacts] | None = None

    def facts(self) -> StoreFacts:
        """Counts and sources; those of half a minute ago will do, as they are read from every row."""
        if self._facts is None or time.monotonic() - self._facts[0] > SECONDS_SOURCES_KEPT:
            documents = self.index.stats(documents=True).documents
            facts = StoreFacts(len(documents), sorted({source for source, _ in documents}))
            self._facts = time.monotonic(), facts
        return self._facts[1]

    def changed(self) -> None:
        """Forget what was counted."""
        self._facts = None

    def without_paths(self, message: str) -> str:
        """An error's message that says the store's name in place of its folder."""
        folders = {
            self.index.place.name,
            str(self.index.path),
            os.path.abspath(self.index.path),
            os.path.realpath(self.index.path),
        }
        for folder in sorted(folders, key=len, reverse=True):
            message = message.replace(folder, self.name)
        return message


class Service:
    """Models and stores by name, and the limits and metrics they share."""

    def __init__(self, limits: Limits | None = None, batch_tokens: int = BATCH_TOKENS) -> None:
        self.limits, self.batch_tokens = limits or Limits(), batch_tokens
        self.metrics = Metrics()
        self.models: dict[str, ScheduledEncoder] = {}
        self.stores: dict[str, ServedStore] = {}
        self.stopping = False
        self._probed = False

    def add_model(self, encoder: Encoder) -> ScheduledEncoder:
        """Serve an encoder under its name; a second of the same name, in another length, has the length behind it."""
        steps = steps_of(encoder)
        scheduler = Scheduler(steps, batch_tokens=self.batch_tokens, limits=self.limits, observe=self.metrics.ran)
        model = ScheduledEncoder(encoder, scheduler)
        if model.name in self.models:
            model.name = f"{model.name}@{model.dim}"
        self.models[model.name] = model
        return model

    def add_store(self, path: str | Path, model: ScheduledEncoder) -> ServedStore:
        """Serve a store under the name of its folder; a number tells those of the same name apart. Raises M2BertError
        as SearchIndex does."""
        name = stem = place_of(path).title
        number = 1
        while name in self.stores:
            number += 1
            name = f"{stem}-{number}"
        self.stores[name] = ServedStore(name, path, model)
        return self.stores[name]

    def model(self, name: str | None) -> ScheduledEncoder:
        """The model of that name; None: the first. Raises Refusal."""
        return _chosen(self.models, name, "model")

    def store(self, name: str | None) -> ServedStore:
        """The store of that name; None: the first. Raises Refusal."""
        return _chosen(self.stores, name, "store")

    def probe(self) -> None:
        """Ask every model for a vector, so that `ready` is true; filters of short texts are made by that."""
        for model in self.models.values():
            model.embed([PROBE], "query")
        self._probed = True

    @property
    def ready(self) -> bool:
        """Whether every model has answered, and none is stuck."""
        return self._probed and not self.stopping and all(each.scheduler.answers for each in self.models.values())

    def close(self) -> None:
        """Finish what is queued, and end the models' threads."""
        self.stopping = True
        for model in self.models.values():
            model.scheduler.close()


def _chosen(among: Mapping[str, Served], name: str | None, what: str) -> Served:
    if not among:
        raise Refusal(404, f"no_{what}", f"this server has no {what}; start it with `m2bert serve STORE`")
    if name is None:
        return next(iter(among.values()))
    if name not in among:
        known = ", ".join(among)
        raise Refusal(404, f"{what}_not_found", f"{what} must be one of {known}, got {name[:80]!r}; name one of these")
    return among[name]
