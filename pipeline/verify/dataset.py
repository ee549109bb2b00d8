"""Invariant 5 in the files of the dataset: keys without gaps, members of their sample, sizes.json equal to the tars."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.shard.pool import PoolMismatchError, PoolReader
from pipeline.storage import Store
from pipeline.verify.files import chosen, read_tar_or_tell
from pipeline.verify.state import Folder, State
from schemas.records import FileEntry, UnitRecord

IMAGES = ("jpg", "png", "webp", "gif", "avif")
TEXTS = (".json", ".txt")
PLACE = ("uid", "pool_file", "pool_offset", "pool_size", "pool_sha256")
"""Columns of S.parquet that say where an image is, in an index."""

Sample = dict[str, Any]
"""key, uid, caption, and the sha256 its image must have"""


def made_from(store: Store, shard: Folder) -> dict[str, str]:
    """stage → fingerprint of what the dataset was made from, by dataset.json; empty while there is none."""
    tagged = store.read_tagged(f"{shard.base}/dataset/dataset.json")
    return dict(json.loads(tagged[0])["fingerprints"]) if tagged else {}


def shard_name(record: UnitRecord) -> str:
    """S of the shard that a unit of `shard` made."""
    names = [entry.path for entry in record.files if entry.table == "samples"]
    return names[0].removeprefix("dataset/").removesuffix(".parquet") if names else ""


def read_samples(store: Store, shard: Folder, record: UnitRecord) -> tuple[pa.Table | None, list[str]]:
    """uid, key, caption and shard of a shard's samples, and what is wrong with its S.parquet."""
    breaches: list[str] = []
    entries = shard.files(record, "samples")
    if len(entries) != 1:
        return None, [f"{shard.base}: unit {record.unit} names {len(entries)} S.parquet files, not one"]
    path = f"{shard.base}/{entries[0].path}"
    filesystem, root = store.arrow()
    try:
        with filesystem.open_input_file(f"{root}/{path}") as file:
            table = pq.read_table(file, columns=["uid", "key", "caption"])
    except FileNotFoundError:
        return None, []
    except (pa.ArrowException, OSError) as error:
        return None, [f"{path}: is no whole Parquet file: {' '.join(str(error).split())[:200]}"]
    if table.num_rows != record.rows:
        breaches.append(f"{path}: has {table.num_rows} samples, its record says {record.rows}")
    keys = table["key"].to_pylist()
    name = shard_name(record)
    if keys:
        # img2dataset: key = 10^o * shard + place, padded to o more digits than the shard's name.
        tail = len(keys[0]) - len(name)
        wanted = [f"{name}{place:0{tail}d}" if tail > 0 else name for place in range(len(keys))]
        if keys != wanted:
            wrong = next(place for place, key in enumerate(keys) if key != wanted[place])
            breaches.append(f"{path}: sample {wrong} has key {keys[wrong]}, not {wanted[wrong]}")
    return table.append_column("shard", pa.repeat(pa.scalar(name), table.num_rows)), breaches


def check_members(
    store: Store, shard: Folder, record: UnitRecord, samples: list[Sample], share: float
) -> tuple[list[str], list[str], int]:
    """The images, JSON and captions of one shard: breaches of invariant 5, breaches of 4, members hashed."""
    tars = shard.files(record, "tar")
    if tars:
        return _in_tar(store, shard, tars[0], samples, share)
    if any(entry.table == "files" for entry in record.files):
        return list(_in_files(shard, record, samples)), [], 0
    whole = chosen(shard_name(record), share)
    table = _index(store, shard, record)
    if table is not None:
        return list(_in_pool(store, shard, record, table, samples, whole)), [], len(samples) if whole else 0
    if not whole:
        return [], [], 0
    return list(_in_parquet(store, shard, record, samples)), [], len(samples)


def _in_tar(
    store: Store, shard: Folder, entry: FileEntry, samples: list[Sample], share: float
) -> tuple[list[str], list[str], int]:
    path = f"{shard.base}/{entry.path}"
    if not chosen(path, share):
        return [], [], 0
    tar, files = read_tar_or_tell(store, path, entry, TEXTS)
    if tar is None:
        return [], files, 0
    breaches: list[str] = []
    members = iter(tar.members)
    for sample in samples:
        three = [next(members, None) for _ in range(3)]
        names = [member.name if member else "nothing" for member in three]
        image, described, caption = three
        key = sample["key"]
        if (
            not (image and described and caption)
            or names[1:] != [f"{key}.json", f"{key}.txt"]
            or not _image_of(key, names[0])
        ):
            breaches.append(f"{path}: sample {key} has the members {', '.join(names)}")
            break
        if image.sha256 != sample["sha256"] and sample["sha256"]:
            breaches.append(f"{path}: the image of {key} is not the pool image of {sample['uid']}")
        breaches += _texts(path, sample, described.data or b"", caption.data or b"")
    else:
        if left := next(members, None):
            breaches.append(f"{path}: has {left.name}, which is of no sample")
    return breaches, files, len(tar.members)


def _image_of(key: str, name: str) -> bool:
    stem, _, extension = name.rpartition(".")
    return stem == key and extension in IMAGES


def _texts(path: str, sample: Sample, described: bytes, caption: bytes) -> Iterator[str]:
    key = sample["key"]
    try:
        told = json.loads(described)
    except ValueError:
        yield f"{path}: {key}.json is no JSON"
        return
    for name in ("key", "uid", "caption"):
        if told.get(name) != sample[name]:
            yield f"{path}: {key}.json has {name} {told.get(name)!r}, the sample has {sample[name]!r}"
    if caption != (sample["caption"] or "").encode():
        yield f"{path}: {key}.txt is not the sample's caption"


def _in_files(shard: Folder, record: UnitRecord, samples: list[Sample]) -> Iterator[str]:
    """By the files' recorded sums: invariant 4 proves those."""
    sums = {entry.path.rpartition("/")[2]: entry.sha256 for entry in record.files if entry.table == "files"}
    for sample in samples:
        key = sample["key"]
        image = next((sums[f"{key}.{extension}"] for extension in IMAGES if f"{key}.{extension}" in sums), None)
        if image is None or f"{key}.json" not in sums or f"{key}.txt" not in sums:
            yield f"{shard.base}: sample {key} lacks one of its three files"
        elif image != sample["sha256"] and sample["sha256"]:
            yield f"{shard.base}: the image of {key} is not the pool image of {sample['uid']}"


def _in_parquet(store: Store, shard: Folder, record: UnitRecord, samples: list[Sample]) -> Iterator[str]:
    path = f"{shard.base}/{shard.files(record, 'samples')[0].path}"
    filesystem, root = store.arrow()
    with filesystem.open_input_file(f"{root}/{path}") as source:
        file = pq.ParquetFile(source)
        column = next((name for name in IMAGES if name in file.schema_arrow.names), None)
        if column is None:
            yield f"{path}: has no column of images"
            return
        images = (value.as_py() for batch in file.iter_batches(columns=[column]) for value in batch.column(0))
        for sample, image in zip(samples, images, strict=False):
            if sample["sha256"] and hashlib.sha256(image or b"").hexdigest() != sample["sha256"]:
                yield f"{path}: the image of {sample['key']} is not the pool image of {sample['uid']}"


def _index(store: Store, shard: Folder, record: UnitRecord) -> pa.Table | None:
    """The places of a shard's images where it is one of an index."""
    path = f"{shard.base}/{shard.files(record, 'samples')[0].path}"
    filesystem, root = store.arrow()
    with filesystem.open_input_file(f"{root}/{path}") as source:
        file = pq.ParquetFile(source)
        return file.read(columns=list(PLACE)) if {*PLACE} <= set(file.schema_arrow.names) else None


def _in_pool(
    store: Store, shard: Folder, record: UnitRecord, table: pa.Table, samples: list[Sample], whole: bool
) -> Iterator[str]:
    """An index: its sums are those of the outcomes and, `whole`, the pool's bytes at its places have them."""
    path = f"{shard.base}/{shard.files(record, 'samples')[0].path}"
    sums = dict(zip(table["uid"].to_pylist(), table["pool_sha256"].to_pylist(), strict=True))
    wrong = [sample for sample in samples if sample["sha256"] and sums.get(sample["uid"]) != sample["sha256"]]
    for sample in wrong:
        yield f"{path}: the image of {sample['key']} is not the pool image of {sample['uid']}"
    if not whole:
        return
    with closing(PoolReader(store)) as pool:
        try:
            for _ in pool.blocks(table):
                pass
        except PoolMismatchError as error:
            yield f"{path}: {error}"


def check_index(state: State, shard: Folder) -> Iterator[str]:
    """sizes.json names exactly the shards there are, each with its number of samples."""
    path = f"{shard.base}/dataset/sizes.json"
    tagged = state.store.read_tagged(path)
    if tagged is None:
        if shard.folder.completed():
            yield f"{path}: is missing"
        return
    sizes = json.loads(tagged[0])
    there = {shard_name(record): record.rows for record in shard.current.values()}
    told = {name.partition(".")[0]: rows for name, rows in sizes.items()}
    for name in sorted(there.keys() | told.keys()):
        if there.get(name) != told.get(name):
            yield f"{path}: says {told.get(name, 'no')} samples in shard {name}, its records {there.get(name, 'no')}"
