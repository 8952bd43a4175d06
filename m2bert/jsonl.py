"""JSON lines, plain or gzip: every row an object, or an error that names the line.

Test: tests/test_jsonl.py. Files that a user indexes are read by m2bert.search.documents, which skips and reports bad
rows instead.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import IO, Any, cast

from m2bert.bounds import LINE, TooMuchError, lines_of
from m2bert.errors import M2BertError


def is_jsonl(path: Path) -> bool:
    """Whether the name says JSON lines, plain or gzip."""
    return path.name.endswith((".jsonl", ".jsonl.gz"))


def read_jsonl(path: Path, *, who: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield ("file:line", row) for each line that is not blank.

    Lines end at "\\n" alone, so that a text may hold other separators. Raises M2BertError, beginning with `who`, for a
    file that cannot be read or breaks off, a line beyond its bound (m2bert.bounds), and for one that is not one JSON
    object of Unicode text.
    """
    where = str(path)
    try:
        with path.open("rb") as file, gzip.open(file) if path.suffix == ".gz" else nullcontext(file) as lines:
            for number, line in lines_of(cast(IO[bytes], lines), path.stat().st_size):
                where = f"{path}:{number}"
                if line is None:
                    raise M2BertError(f"{who}: {where}: the line is {LINE.said()}; shorten the row")
                yield where, _row(line.decode("utf-8"), where, who)
    except TooMuchError as error:
        raise M2BertError(f"{who}: {path} {error.reason}; leave it out") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise M2BertError(f"{who}: {path} is not a complete gzip file ({error}); copy it again") from error
    except UnicodeDecodeError as error:
        raise M2BertError(f"{who}: {where}: text must be UTF-8 ({error.reason}); convert the file") from error
    except UnicodeEncodeError as error:
        raise M2BertError(f"{who}: {where}: text must be Unicode ({error.reason}); mend the row") from error
    except M2BertError:
        raise
    except (ValueError, RecursionError) as error:  # a ValueError is of a number of thousands of digits
        raise M2BertError(f"{who}: {where}: row must be one JSON object ({error}); mend the row") from error
    except OSError as error:
        raise M2BertError(f"{who}: cannot read {path} ({error.strerror}); check the path") from error


def _row(line: str, where: str, who: str) -> dict[str, Any]:
    row = json.loads(line)
    if not isinstance(row, dict):
        raise M2BertError(f"{who}: {where}: row must be a JSON object, got {type(row).__name__}; mend the row")
    if "\\ud" in line or "\\uD" in line:  # half of a surrogate pair is no text
        json.dumps(row, ensure_ascii=False).encode("utf-8")
    return row
