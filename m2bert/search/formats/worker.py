"""A process that reads files: a path a line comes in, what is in the file a line goes out, both as JSON.

Started by m2bert.search.reading, which ends it when a file takes too long.
Test: tests/search/test_reading.py.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, TextIO

from m2bert.search.formats import FormatError, parse

READY = "ready"


def bound_memory(megabytes: int) -> bool:
    """Let this process ask for no more memory than that; False where the system has no such bound."""
    try:
        import resource
    except ImportError:  # Windows
        return False
    try:
        resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))
    except (OSError, ValueError):  # macOS refuses; a lower bound of the user's own stays
        return False
    return True


def answer(path: str) -> dict[str, Any]:
    """What is in a file, or why it cannot be read."""
    try:
        parsed = parse(Path(path).read_bytes(), os.path.basename(path))
    except FormatError as error:
        return {"reason": error.reason, "holds_nothing": error.holds_nothing}
    except OSError as error:
        return {"reason": f"cannot be read: {error.strerror}", "holds_nothing": False}
    except MemoryError:
        return {"memory": True}
    sections = [[section.start, section.label] for section in parsed.sections]
    return {"text": parsed.text, "sections": sections, "guessed": parsed.guessed, "lost": parsed.lost}


def serve(paths: TextIO, answers: TextIO) -> None:
    """Answer until there are no more paths."""
    print(READY, file=answers, flush=True)
    for line in paths:
        print(json.dumps(answer(json.loads(line))), file=answers, flush=True)


def main() -> None:
    """Read paths from stdin. Argument: the most megabytes."""
    bound_memory(int(sys.argv[1]))
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # what a library prints is no answer
        serve(sys.stdin, answers)


if __name__ == "__main__":
    main()
