"""The one exception class for mistakes a user can mend: who, the rule, what it got, the remedy.

Imports nothing of ours. Test: every test of bad input.
"""

from __future__ import annotations


class M2BertError(ValueError):
    """A request that cannot be served as given; the message is one sentence with its remedy."""
