"""Which store a path or URI lies in."""

import errno
import functools
import hashlib
import json
import os
from pathlib import Path
from urllib.parse import urlsplit

from pipeline.errors import InputError
from pipeline.local_store import LocalStore
from pipeline.s3_store import S3Store
from pipeline.store import Entry, Store

__all__ = ["Entry", "LocalStore", "S3Store", "Store", "content_tag", "find_place", "holder", "locate", "open_store"]


def locate(store: Store, pool_file: str) -> tuple[Store, str]:
    """The store that holds a pool file, and its path there: ROOT's own, or that of an adopted tar's absolute URI."""
    return holder(pool_file) if "://" in pool_file else (store, pool_file)


def holder(uri: str) -> tuple[Store, str]:
    """A store for the folder of the file at an absolute URI, and the file's name in it."""
    folder, _, name = uri.rpartition("/")
    return _folder(folder), name


@functools.cache
def _folder(uri: str) -> Store:
    return open_store(uri)


def find_place(place: str) -> tuple[Store, str]:
    """A store for what a user names by path or URI: of a folder, and "", or of the file's folder, and its name."""
    place = (place if "://" in place else str(Path(place).absolute())).rstrip("/")
    folder = open_store(place)
    is_folder = folder.root.is_dir() if isinstance(folder, LocalStore) else next(folder.files(""), None) is not None
    return (folder, "") if is_folder else holder(place)


def content_tag(place: str) -> str:
    """What changes with the names and content of a file or folder: its ETag, or the digest of those of its files.

    On a disk every byte is read, in S3 none. Raises FileNotFoundError.
    """
    store, name = find_place(place)
    tag = store.tag(name) if name else hashlib.sha256(json.dumps(sorted(store.tags())).encode()).hexdigest()
    if tag is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), place)
    return tag


def open_store(uri: str) -> Store:
    """A store for a local path or `s3://bucket/prefix`. Raises InputError for another scheme."""
    scheme = urlsplit(uri).scheme if "://" in uri else ""
    if scheme == "s3":
        return S3Store(uri)
    if scheme not in ("", "file"):
        raise InputError(f"{uri}: {scheme}:// is not supported; give a local path or s3://bucket/prefix")
    return LocalStore(Path(uri.removeprefix("file://")))
