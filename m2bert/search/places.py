"""Where a store may be: a folder, object storage (`s3://…`), or PostgreSQL (`postgresql://…`).

In PostgreSQL a store is a schema of a database: `postgresql://USER@HOST/DATABASE` means its schema `m2bert`, and
`postgresql://USER@HOST/DATABASE#letters` its schema `letters`. A password may stand in the address, and had better
stand where PostgreSQL's own programs look for it (PGPASSWORD, ~/.pgpass); no message shows it.
Test: tests/search/test_stores.py, tests/search/test_postgres.py, tests/search/test_many_machines.py.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import platformdirs

from m2bert.errors import M2BertError

if TYPE_CHECKING:
    from m2bert.search.stores import StoreInfo, VectorStore

SCHEMES = ("postgresql://", "postgres://")
DEFAULT_SCHEMA = "m2bert"


@dataclass(frozen=True)
class Address:
    """Where a store is: what libpq connects by, the schema, and what may be shown of it, which has no password."""

    conninfo: str
    schema: str
    name: str


def read_address(url: str) -> Address:
    """The parts of an address. Raises M2BertError, which shows nothing of it, where it cannot be read."""
    rest = url.split("://", 1)[1]
    try:
        parts = urlsplit(url)
        hosts = parts.netloc.rpartition("@")[2]
        ports = [host.rpartition("]")[2].partition(":")[2] for host in hosts.split(",")]
        fits = all(port == "" or port.isdecimal() for port in ports) and ("@" not in rest or "@" in parts.netloc)
    except ValueError:
        fits = False
    if not fits:
        raise M2BertError(
            "store: an address of PostgreSQL must look like postgresql://USER@HOST:PORT/DATABASE; write : / ? # @ "
            "within a name or a password as %3A %2F %3F %23 %40, or leave the password to PGPASSWORD"
        )
    schema = unquote(parts.fragment) or DEFAULT_SCHEMA
    if not re.fullmatch(r"(?!pg_)[a-z_][a-z0-9_]{0,62}", schema):
        raise M2BertError(
            "store: what stands behind # in an address of PostgreSQL must be the name of a schema, of a-z, 0-9 and _, "
            "that does not begin with pg_; "
            "write a # within a password as %23"
        )
    user = parts.netloc.rpartition("@")[0].partition(":")[0]
    shown = f"postgresql://{user}@{hosts}" if user else f"postgresql://{hosts}"
    name = shown + parts.path + (f"#{schema}" if schema != DEFAULT_SCHEMA else "")
    return Address(url.partition("#")[0], schema, name)


@dataclass(frozen=True)
class Place:
    """The place of a store. name: for messages, without a password. folder: of this machine: the store itself, or what
    is on its way into one that is elsewhere. address: of a database; None where the store is LanceDB's.
    """

    name: str
    folder: Path
    address: Address | None = None
    is_remote: bool = False

    @property
    def title(self) -> str:
        """What tells it from others, in a word."""
        if self.address is not None:
            return self.address.schema
        return self.name.rpartition("/")[2] if self.is_remote else Path(os.path.abspath(self.folder)).name

    def open_if_made(self) -> VectorStore | None:
        """The store; None where there is none yet. Raises M2BertError where it is something else, or damaged."""
        if self.address is not None:
            from m2bert.search.stores.postgres import PostgresStore

            return PostgresStore.open_if_made(self.address, self._made_folder())
        from m2bert.search.stores.lance import LanceStore
        from m2bert.search.stores.lance_places import is_unused

        if self.is_remote:
            return LanceStore.open_remote(self.name, self._made_folder())
        return None if is_unused(self.folder) else LanceStore.open(self.folder)

    def open(self) -> VectorStore:
        """The store. Raises M2BertError as open_if_made, and where there is none."""
        if self.address is None and not self.is_remote:
            from m2bert.search.stores.lance import LanceStore

            return LanceStore.open(self.folder)
        store = self.open_if_made()
        if store is None:
            raise M2BertError(
                f"store: there is no store at {self.name!r}; make one with `m2bert index FOLDER --store {self.name}`"
            )
        return store

    def create(self, info: StoreInfo) -> VectorStore:
        """Make an empty store, or open the one another process has made meanwhile. Raises M2BertError."""
        if self.address is not None:
            from m2bert.search.stores.postgres import PostgresStore

            return PostgresStore.create(self.address, self._made_folder(), info)
        from m2bert.search.stores.lance import LanceStore

        if self.is_remote:
            return LanceStore.create_remote(self.name, self._made_folder(), info)
        return LanceStore.create(self.folder, info)

    def _made_folder(self) -> Path:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise M2BertError(
                f"store: cannot write to {str(self.folder)!r}, where what is on its way to {self.name!r} is kept "
                f"({error.strerror}); set XDG_CACHE_HOME to a folder you may write"
            ) from error
        return self.folder


def place_of(store: str | Path) -> Place:
    """The place that a user means. Raises M2BertError for an address that cannot be read."""
    text = str(store)
    if text.startswith(SCHEMES):
        address = read_address(text)
        return Place(address.name, _folder_of(address.name), address)
    if re.match(r"(s3|gs|az)://.", text):
        name = text.rstrip("/")
        return Place(name, _folder_of(name), is_remote=True)
    if re.match(r"[a-z0-9+]+://", text):
        raise M2BertError(
            "store: must be a folder, s3://, gs:// or az://BUCKET/PATH, or postgresql://USER@HOST/DATABASE, got "
            f"{text.partition('://')[0]!r}:// ...; give one of these"
        )
    folder = Path(os.path.expanduser(text))
    return Place(str(folder), folder)


def shown(store: str | Path) -> str:
    """A store as messages may say it, without a password."""
    return place_of(store).name


def _folder_of(name: str) -> Path:
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return Path(platformdirs.user_cache_dir("m2bert")) / "stores" / digest
