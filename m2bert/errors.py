"""The exception for mistakes a user can mend, and the kinds of it that callers tell apart.

The message says who, the rule, what it got, and the remedy.

Test: every test of bad input; the bound of messages: tests/model/test_configuration.py.
"""

from __future__ import annotations

MOST_CHARACTERS = 3000


class M2BertError(ValueError):
    """A request that cannot be served as given; the message is one sentence with its remedy.

    What came, which messages quote, may be of any length: of a message beyond 3,000 characters the middle goes.
    """

    def __init__(self, message: str) -> None:
        if len(message) > MOST_CHARACTERS:
            half = (MOST_CHARACTERS - len(" [...] ")) // 2
            message = f"{message[:half]} [...] {message[-half:]}"
        super().__init__(message)


class MissingError(M2BertError):
    """What was asked for by name is not there."""


class StoreError(M2BertError):
    """A store cannot be read or written: damage, permissions or space, and not what was asked of it."""


class TextError(M2BertError):
    """One text of several cannot be embedded: `number` says which, `reason` why, for who knows its name."""

    def __init__(self, who: str, number: int, reason: str) -> None:
        super().__init__(f"{who}: text {number} {reason}")
        self.number, self.reason = number, reason


def missing_package(who: str, package: str, extra: str) -> M2BertError:
    """What is raised where `who` needs a package that comes with an extra of ours and is not installed."""
    return M2BertError(f"{who}: needs {package}; run pip install '.[{extra}]' in the project's folder")
