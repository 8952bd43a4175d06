"""A program that serves a bag of words from two processes: quick to start, as no model is loaded.

Prints the address, then serves until it is told to stop.
"""

from __future__ import annotations

from typing import Any

from bag_of_words import BagOfWords

from m2bert.serve.app import create_app
from m2bert.serve.running import address_of, listen, run_server
from m2bert.serve.service import Service


class Counted(BagOfWords):
    """With the number of a text's words, which every other encoder of a server tells too."""

    def count_tokens(self, text: str) -> int:
        return len(text.split())


def make_app() -> Any:
    """The application of one process."""
    service = Service()
    service.add_model(Counted(dim=16))
    return create_app(service)


if __name__ == "__main__":
    from serving_words import make_app as named  # by a name that other processes find

    with listen("127.0.0.1", 0) as listening:
        print(address_of(listening), flush=True)
        run_server(named, listening, workers=2)
