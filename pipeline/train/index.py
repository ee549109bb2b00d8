"""The index of a run's data: where each sample's image lies, and its text; made once, mapped by every process.

OUT/index/<key>/ holds arrays over all samples, one dataset's after another's, shard by shard: `file` (number of a line
of files.json), `offset` and `size` of the image's bytes in it, `text_end` (end of its caption in texts.bin), `uid` (16
bytes), `weight`, and `sha256` (32 bytes; zeros where none was recorded).
"""

import hashlib
import json
import os
import shutil
import tarfile
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import InputError, StoreError
from pipeline.storage import LocalStore, Store, open_store
from pipeline.train.dataset import Dataset, Shard, pool_of
from schemas.recipe import digest

IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "avif", "bmp")
TEXTS = ("txt", "text", "caption")
_CHUNK = 8 << 20
_BLOCK = tarfile.BLOCKSIZE


@dataclass(frozen=True)
class Place:
    """Of one sample."""

    file: str
    offset: int
    size: int
    text: str
    uid: str
    sha256: str
    weight: float


@dataclass
class _Part:
    """What one shard adds."""

    files: list[str]
    offsets: list[int]
    sizes: list[int]
    texts: list[bytes]
    uids: list[bytes]
    weights: list[float]
    digests: list[bytes]


class SampleIndex:
    """A finished index, mapped."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._about: dict[str, Any] = json.loads((folder / "files.json").read_text())
        self.files: list[list[str]] = self._about["files"]
        """[store URI, path] each."""
        self.sizes: list[int] = self._about["sizes"]
        """Samples of each dataset."""
        self.fingerprint: str = self._about["fingerprint"]
        """Of the samples in their order: uids, texts and sizes, whatever the files are called."""
        self.fingerprints: list[str] = self._about["fingerprints"]
        self.datasets: list[dict[str, Any]] = self._about["datasets"]
        self.file, self.offset, self.size, self.text_end, self.weight = (
            np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("file", "offset", "size", "text_end", "weight")
        )
        self.uid: NDArray[np.uint8] = np.load(folder / "uid.npy", mmap_mode="r")
        self.sha256: NDArray[np.uint8] = np.load(folder / "sha256.npy", mmap_mode="r")
        whole = folder / "texts.bin"
        self._texts: NDArray[np.uint8] = (
            np.memmap(whole, np.uint8, "r") if whole.stat().st_size else np.empty(0, np.uint8)
        )

    def __len__(self) -> int:
        return len(self.file)

    def text(self, sample: int) -> str:
        start = int(self.text_end[sample - 1]) if sample else 0
        return bytes(self._texts[start : int(self.text_end[sample])]).decode()

    def uid_of(self, sample: int) -> str:
        return bytes(self.uid[sample]).hex()

    @cached_property
    def _by_uid(self) -> tuple[NDArray[np.void], NDArray[np.int64]]:
        keys = np.ascontiguousarray(self.uid).view("V16").ravel()
        order = np.argsort(keys, kind="stable")
        return keys[order], order.astype(np.int64)

    def samples_of(self, uid: str) -> list[int]:
        """The numbers of the samples with this uid; empty where there is none."""
        keys, order = self._by_uid
        wanted = np.frombuffer(bytes.fromhex(uid), np.uint8).view("V16")[0]
        first, last = np.searchsorted(keys, wanted, "left"), np.searchsorted(keys, wanted, "right")
        return sorted(order[first:last].tolist())

    def read(self, sample: int) -> bytes:
        """The image's bytes. Raises FileNotFoundError, StoreError."""
        uri, path = self.files[int(self.file[sample])]
        return _opened(uri).read_range(path, int(self.offset[sample]), int(self.size[sample]))


_stores: dict[str, Store] = {}


def _opened(uri: str) -> Store:
    if uri not in _stores:
        _stores[uri] = open_store(uri)
    return _stores[uri]


def make_index(datasets: Sequence[Dataset], out: Path) -> SampleIndex:
    """The index of the datasets, made if OUT has none of just these files.

    Raises InputError where a shard is broken, or has another number of samples than its dataset says.
    """
    key = digest({"index": 1, "datasets": [asdict(one) for one in datasets]})[:16]
    folder = out / "index" / key
    if not folder.is_dir():
        temporary = out / "index" / f".{key}-{uuid.uuid4().hex}"
        temporary.mkdir(parents=True)
        try:
            _write(datasets, temporary)
            try:
                temporary.rename(folder)
            except OSError:
                if not folder.is_dir():
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return SampleIndex(folder)


def _write(datasets: Sequence[Dataset], folder: Path) -> None:
    files: dict[tuple[str, str], int] = {}
    columns: dict[str, list[NDArray[Any]]] = {
        name: [] for name in ("file", "offset", "size", "text_end", "weight", "uid", "sha256")
    }
    sizes, fingerprints, text_end = [], [], 0
    whole = hashlib.sha256()
    with (folder / "texts.bin").open("wb") as texts:
        for dataset in datasets:
            own, count = hashlib.sha256(), 0
            for part in _parts(dataset):
                lengths = np.array([len(text) for text in part.texts], np.int64)
                texts.write(b"".join(part.texts))
                columns["text_end"].append(text_end + np.cumsum(lengths))
                text_end += int(lengths.sum())
                places = [_place(dataset, name) for name in part.files]
                columns["file"].append(np.array([files.setdefault(one, len(files)) for one in places], np.int32))
                columns["offset"].append(np.array(part.offsets, np.int64))
                columns["size"].append(np.array(part.sizes, np.int32))
                columns["weight"].append(np.array(part.weights, np.float32))
                columns["uid"].append(np.frombuffer(b"".join(part.uids), np.uint8).reshape(-1, 16))
                columns["sha256"].append(np.frombuffer(b"".join(part.digests), np.uint8).reshape(-1, 32))
                for piece in (b"".join(part.uids), b"".join(part.texts), columns["size"][-1].tobytes()):
                    own.update(piece)
                count += len(part.offsets)
            if not count:
                raise InputError(f"--data {dataset.place}: has no sample")
            sizes.append(count)
            fingerprints.append(own.hexdigest())
            whole.update(own.digest())
        texts.flush()
        os.fsync(texts.fileno())
    for name, parts in columns.items():
        np.save(folder / f"{name}.npy", np.concatenate(parts))
    about = {
        "files": [list(one) for one in files], "sizes": sizes, "fingerprint": whole.hexdigest(),
        "fingerprints": fingerprints,
        "datasets": [{"place": one.place, "root": one.root, "about": one.about} for one in datasets],
    }  # fmt: skip
    (folder / "files.json").write_text(json.dumps(about))


def _place(dataset: Dataset, name: str) -> tuple[str, str]:
    return pool_of(dataset, name) if dataset.mode == "index" else (dataset.store, name)


def _parts(dataset: Dataset) -> Iterator[_Part]:
    """A shard's part each, in their order; several shards are read at a time."""
    store = open_store(dataset.store)
    read = _index_part if dataset.mode == "index" else _tar_part
    with ThreadPoolExecutor(max(4, store.parallel_reads // 4)) as pool:
        yield from pool.map(lambda shard: read(dataset, store, shard), dataset.shards)


def _index_part(dataset: Dataset, store: Store, shard: Shard) -> _Part:
    names = ["uid", "caption", "weight", "pool_file", "pool_offset", "pool_size", "pool_sha256"]
    try:
        table = pq.read_table(pa.BufferReader(store.read(shard.name)), columns=names)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"--data {dataset.place}: shard {shard.name} cannot be read: {error}") from None
    _check_count(dataset, shard, table.num_rows)
    column = {name: table[name].to_pylist() for name in names}
    return _Part(
        column["pool_file"], column["pool_offset"], column["pool_size"],
        [(text or "").encode() for text in column["caption"]], [bytes.fromhex(uid) for uid in column["uid"]],
        [1.0 if weight is None else weight for weight in column["weight"]],
        [bytes.fromhex(value) for value in column["pool_sha256"]],
    )  # fmt: skip


def _check_count(dataset: Dataset, shard: Shard, found: int) -> None:
    if shard.samples is not None and shard.samples != found:
        raise InputError(
            f"--data {dataset.place}: shard {shard.name} has {found} samples, sizes.json says {shard.samples}"
        )


def _tar_part(dataset: Dataset, store: Store, shard: Shard) -> _Part:
    samples = _samples(dataset, store, shard)
    _check_count(dataset, shard, len(samples))
    described: dict[str, dict[str, Any]] = {}
    if shard.table:
        try:
            table = pq.read_table(pa.BufferReader(store.read(shard.table)))
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(f"--data {dataset.place}: {shard.table} cannot be read: {error}") from None
        wanted = [name for name in ("key", "caption", "uid", "weight") if name in table.column_names]
        described = {row["key"]: row for row in table.select(wanted).to_pylist()}
    part = _Part([], [], [], [], [], [], [])
    for key, (offset, size, text, said) in samples.items():
        said = {**said, **{name: value for name, value in described.get(key, {}).items() if value is not None}}
        part.files.append(shard.name)
        part.offsets.append(offset)
        part.sizes.append(size)
        part.texts.append((text if text is not None else str(said.get("caption") or "")).encode())
        part.uids.append(_uid(said, f"{shard.name}/{key}"))
        weight = said.get("weight")
        part.weights.append(float(weight) if isinstance(weight, int | float) else 1.0)
        part.digests.append(bytes(32))
    return part


def _uid(said: dict[str, Any], key: str) -> bytes:
    """The pair's uid as ours say it, else the first 128 bits of sha256 of the url and caption, else of the key."""
    uid = said.get("uid")
    if isinstance(uid, str) and len(uid) == 32:
        try:
            return bytes.fromhex(uid)
        except ValueError:
            pass
    url, text = said.get("url"), said.get("caption")
    named = f"{url}\x1f{text}" if isinstance(url, str) and isinstance(text, str) else key
    return hashlib.sha256(named.encode()).digest()[:16]


_Sample = tuple[int, int, str | None, dict[str, Any]]
"""Offset and size of the image, the text member, the JSON member."""


def _samples(dataset: Dataset, store: Store, shard: Shard) -> dict[str, _Sample]:
    """key → sample, in the order of the tar; members of a key stand side by side, as webdataset has them."""
    found: dict[str, tuple[int, int]] = {}
    texts: dict[str, str] = {}
    said: dict[str, dict[str, Any]] = {}
    with _Reader(store, shard.name) as reader:
        file: Any = reader
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    if not member.isfile():
                        continue
                    base, _, extension = member.name.rpartition("/")[2].partition(".")
                    key = f"{member.name.rpartition('/')[0]}/{base}".lstrip("/")
                    kind = extension.rpartition(".")[2].lower()
                    if kind in IMAGES:
                        found.setdefault(key, (member.offset_data, member.size))
                    elif kind in TEXTS or (kind == "json" and not shard.table):
                        reader.seek(member.offset_data)
                        data = reader.read(member.size)
                        if kind == "json":
                            said[key] = _json(data)
                        else:
                            texts.setdefault(key, data.decode("utf-8", "replace"))
                    end = member.offset_data + -(-member.size // _BLOCK) * _BLOCK
                    if end > reader.length:
                        raise tarfile.ReadError(f"ends inside {member.name}")
                reader.seek(tar.offset)
                if reader.read(_BLOCK).strip(b"\0"):  # tarfile takes a broken header for the end
                    raise tarfile.ReadError(f"the header at byte {tar.offset} is broken")
        except tarfile.TarError as error:
            raise InputError(f"--data {dataset.place}: shard {shard.name} is no whole tar: {error}") from None
    return {key: (*found[key], texts.get(key), said.get(key, {})) for key in found}


def _json(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


class _Reader:
    """A file of a store as tarfile reads it: from a disk what is asked for, from S3 ranges read ahead."""

    def __init__(self, store: Store, path: str) -> None:
        length = store.size(path)
        if length is None:
            raise StoreError(f"{store.uri}/{path} is gone")
        self.length = length
        self._store, self._path, self._at = store, path, 0
        self._chunk = 64 << 10 if isinstance(store, LocalStore) else _CHUNK
        self._held, self._start = b"", 0

    def __enter__(self) -> "_Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self._held = b""

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset if whence == 0 else self._at + offset if whence == 1 else self.length + offset
        return self._at

    def read(self, size: int = -1) -> bytes:
        size = self.length - self._at if size < 0 else min(size, max(0, self.length - self._at))
        if not (self._start <= self._at and self._at + size <= self._start + len(self._held)):
            self._held = self._store.read_range(self._path, self._at, max(size, self._chunk))
            self._start = self._at
        data = self._held[self._at - self._start :][:size]
        self._at += len(data)
        return data
