"""The one exception class for mistakes a user can mend: who, the rule, what it got, the remedy.

Test: every test of bad input.
"""

from __future__ import annotations


class M2BertError(ValueError):
    """A request that cannot be served as given; the message is one sentence with its remedy."""


class TextError(M2BertError):
    """One text of several cannot be embedded: `number` says which, `reason` why, for who knows its name."""

    def __init__(self, who: str, number: int, reason: str) -> None:
        super().__init__(f"{who}: text {number} {reason}")
        self.number, self.reason = number, reason
