"""Where a LanceDB store lies: a folder, or a place in object storage, which its own address names (`s3://…`).

Keys and endpoints of object storage are those of the environment (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL …).
Test: tests/search/test_index.py, tests/search/test_many_machines.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.fs

from m2bert.errors import StoreError
from m2bert.search.stores.lance_memory import bytes_kept
from m2bert.search.stores.staging import STAGING

TABLE = "documents"


def connect(place: Path | str) -> Any:
    """The database there; of a folder by its absolute path, because `s3:notes` would be a place on the network."""
    import lancedb  # after lance_memory, which sets what it reads when it is imported

    session = lancedb.Session(metadata_cache_size_bytes=bytes_kept())
    return lancedb.connect(str(place.absolute()) if isinstance(place, Path) else place, session=session)


def has_table(folder: Path) -> bool:
    """Whether a table was made in a folder."""
    versions = folder / f"{TABLE}.lance" / "_versions"
    return versions.is_dir() and any(entry.suffix == ".manifest" for entry in versions.iterdir())


def is_unused(folder: Path) -> bool:
    """Whether there is no folder, an empty one, or what a process left that was killed while making it."""
    if not folder.is_dir():
        return not folder.exists()
    ours = {f"{TABLE}.lance", STAGING}
    return not has_table(folder) and all(entry.name in ours for entry in folder.iterdir())


def files_at(place: Path | str) -> tuple[pyarrow.fs.FileSystem, str]:
    """The file system of a store, and its path there."""
    if isinstance(place, Path):
        return pyarrow.fs.LocalFileSystem(), str(place.absolute())
    files, path = pyarrow.fs.FileSystem.from_uri(place)
    return files, path


def bytes_at(place: Path | str) -> int:
    """What the files of a store take."""
    files, path = files_at(place)
    return sum(each.size or 0 for each in files.get_file_info(pyarrow.fs.FileSelector(path, recursive=True)))


def largest_part_at(place: Path | str) -> int:
    """What the largest part of an index of words takes there: its words, and where they are."""
    files, path = files_at(place)
    indexes = pyarrow.fs.FileSelector(f"{path}/{TABLE}.lance/_indices", allow_not_found=True, recursive=True)
    found = files.get_file_info(indexes)
    endings = ("_tokens.lance", "_invert.lance")
    return sum(max((each.size or 0 for each in found if each.path.endswith(end)), default=0) for end in endings)


def one_line(error: Exception) -> str:
    """What a library says, short enough for a sentence."""
    return " ".join(str(error).split())[:200]


def damaged(name: str, error: Exception) -> StoreError:
    """What is raised where a store fails."""
    return StoreError(
        f"store: {name!r} cannot be read or written ({one_line(error)}); "
        f"check permissions and space, restore a copy, or index into a new folder"
    )
