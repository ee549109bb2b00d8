"""What `--data` names: our datasets (tars or an index), or anybody's webdataset tars; local or in S3.

A listing names a dataset's files; nothing of them is read yet but their sizes.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import InputError, StoreError
from pipeline.storage import LocalStore, Store, find_place, locate, open_store
from pipeline.units import current_folder


@dataclass(frozen=True)
class Shard:
    name: str
    """Its file in the store: a tar, or S.parquet of an index."""
    samples: int | None
    """As sizes.json says; None where it is to be counted."""
    table: str | None = None
    """S.parquet beside a tar of ours."""


@dataclass(frozen=True)
class Dataset:
    place: str
    """As the user named it."""
    store: str
    """URI of the store in which the shards are."""
    mode: str
    """tars or index."""
    shards: tuple[Shard, ...]
    tags: tuple[str, ...]
    """Of the shards: what changes when a file does (its size, and its time or ETag)."""
    root: str = ""
    """URI of the ROOT whose pool an index is of, or which built the dataset; "" for others'."""
    about: str = ""
    """sha256 of the dataset.json beside it, or ""."""


def find_dataset(place: str) -> Dataset:
    """Raises InputError where there is no dataset, or a shard that it names is missing."""
    try:
        if "{" in place or "*" in place:
            return _pattern(place)
        if place.endswith(".tar"):
            return _tars(place, *_split(place))
        store = open_store(place)
        if isinstance(store, LocalStore) and not store.root.is_dir():
            raise InputError(f"--data {place}: there is no such folder")
        if store.size("dataset.json") is not None or store.size("sizes.json") is not None:
            return _ours(place, store)
        if store.size("run.json") is not None or store.folders("shard"):
            folder = current_folder(store, "shard")
            if folder is None:
                raise InputError(f"--data {place}: this ROOT has no dataset yet; run jobs.build")
            inner = f"{place.rstrip('/')}/{folder.base}/dataset"
            return _ours(place, open_store(inner))
        names = sorted(entry.path for entry in store.files("") if entry.path.endswith(".tar"))
        if not names:
            raise InputError(f"--data {place}: has no tar and no dataset; give a ROOT, its dataset folder, or tars")
        return _tars(place, store, names)
    except StoreError as error:
        raise InputError(f"--data {place}: cannot be read: {error}") from None


def _split(place: str) -> tuple[Store, list[str]]:
    store, name = find_place(place)
    return store, [name]


def _pattern(place: str) -> Dataset:
    """Braces as webdataset's ({00000..00099}), or a glob of file names in one folder."""
    from braceexpand import braceexpand

    folder, _, name = place.rpartition("/")
    if "{" in folder or "*" in folder:
        raise InputError(f"--data {place}: braces and * may stand in the file's name only; give several --data")
    store = open_store(folder or ".")
    if "*" in name:
        import fnmatch

        names = sorted(entry.path for entry in store.files("") if fnmatch.fnmatch(entry.path, name))
    else:
        names = list(braceexpand(name))
    if not names:
        raise InputError(f"--data {place}: no file matches")
    return _tars(place, store, names)


def _tars(place: str, store: Store, names: list[str]) -> Dataset:
    shards = tuple(Shard(name, None) for name in names)
    return Dataset(place, store.uri, "tars", shards, _tags(place, store, names))


def _ours(place: str, store: Store) -> Dataset:
    about = store.read_tagged("dataset.json")
    said: dict[str, Any] = json.loads(about[0]) if about else {}
    index = said.get("mode") == "index"
    form = said.get("output_format", "webdataset")
    if not index and form != "webdataset":
        raise InputError(f"--data {place}: is a dataset of {form}; training reads webdataset tars or an index")
    try:
        sizes: dict[str, int] = json.loads(store.read("sizes.json"))
    except FileNotFoundError:
        raise InputError(f"--data {place}: sizes.json is missing beside dataset.json; run jobs.build again") from None
    except ValueError:
        raise InputError(f"--data {place}: sizes.json is not JSON") from None
    names = sorted(sizes)
    known = {entry.path for entry in store.files("")}
    shards = []
    for name in names:
        if name not in known:
            raise InputError(f"--data {place}: shard {name} of sizes.json is missing")
        beside = f"{Path(name).stem}.parquet"
        shards.append(Shard(name, int(sizes[name]), beside if not index and beside in known else None))
    tags = _tags(place, store, names)
    digest = _sha256(about[0]) if about else ""
    return Dataset(place, store.uri, "index" if index else "tars", tuple(shards), tags, _root(store), digest)


def _root(store: Store) -> str:
    """The ROOT of a dataset folder, ROOT/shard/<fingerprint>/dataset."""
    parts = store.uri.rstrip("/").split("/")
    return "/".join(parts[:-3]) if parts[-1] == "dataset" and parts[-3] == "shard" else ""


def _tags(place: str, store: Store, names: list[str]) -> tuple[str, ...]:
    tags = []
    for name in names:
        size = store.size(name)
        if size is None:
            raise InputError(f"--data {place}: shard {name} is missing")
        if size == 0:
            raise InputError(f"--data {place}: shard {name} is an empty file")
        changed = str((store.root / name).stat().st_mtime_ns) if isinstance(store, LocalStore) else store.tag(name)
        tags.append(f"{size}-{changed}")
    return tuple(tags)


def _sha256(data: bytes) -> str:
    import hashlib

    return hashlib.sha256(data).hexdigest()


def pool_of(dataset: Dataset, pool_file: str) -> tuple[str, str]:
    """(store URI, path) of a pool file of an index."""
    store, path = locate(open_store(dataset.root), pool_file)
    return store.uri, path
