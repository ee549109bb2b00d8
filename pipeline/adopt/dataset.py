"""What lies in a folder that img2dataset or DataComp's downloader wrote: shards, and metadata beside them."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import InputError
from pipeline.ingest.parquet import open_parquet
from pipeline.ingest.sources import Source, stat_source
from pipeline.storage import LocalStore, Store, open_store

OWN = ("url", "caption", "key", "status", "error_message", "width", "height", "original_width", "original_height",
       "exif", "sha256", "md5")  # fmt: skip
"""img2dataset's columns that become columns of outcomes; every other one is kept as src_<name>."""
REQUIRED = ("url", "key", "status")


@dataclass(frozen=True)
class Shard:
    """A Parquet file with a row an input row, and the tar beside it."""

    source: Source
    columns: tuple[str, ...]
    tar: str
    """Absolute URI, as pool_file says it."""
    tar_bytes: int
    tar_etag: str
    stats: str | None
    """S_stats.json, relative to the dataset's folder."""


@dataclass
class Dataset:
    store: Store
    shards: list[Shard] = field(default_factory=list)
    metadata: list[str] = field(default_factory=list)
    """Parquet files beside the shards, absolute, by path."""
    arrays: dict[str, str] = field(default_factory=dict)
    """Parquet file → .npz of its rows (DataComp)."""
    rows: dict[str, dict[str, str]] = field(default_factory=dict)
    """Parquet file → {img_emb, text_emb} .npy of its rows (clip-retrieval)."""
    leftover: list[str] = field(default_factory=list)
    """Tars without Parquet, as a killed img2dataset leaves them: they have no rows."""


def open_dataset(path: str) -> Dataset:
    """List the folder, local or s3://. Raises InputError where it holds no shard, or a Parquet file lost its tar."""
    store = open_store(path if "://" in path else str(Path(path).resolve()))
    if isinstance(store, LocalStore) and not store.root.is_dir():
        raise InputError(f"{path}: there is no such folder; give the folder of an img2dataset or DataComp download")
    sizes = {
        entry.path: entry.size
        for entry in store.files("")
        if not any(part.startswith((".", "_")) for part in entry.path.split("/"))
    }
    found = Dataset(store)
    names = sorted(path for path in sizes if path.endswith(".parquet"))
    with ThreadPoolExecutor(max(4, store.parallel_reads)) as pool:
        columns = pool.map(lambda name: open_parquet(f"{store.uri}/{name}").schema_arrow.names, names)
        for name, there in zip(names, columns, strict=True):
            _place(found, name, tuple(there), sizes)
    whole = {shard.tar.removesuffix(".tar") for shard in found.shards}
    uri = store.uri if "://" in store.uri else f"file://{store.uri}"
    found.leftover = sorted(
        name for name in sizes if name.endswith(".tar") and f"{uri}/{name.removesuffix('.tar')}" not in whole
    )
    if not found.shards:
        raise InputError(
            f"{path}: no .tar with a .parquet of the same name beside it; give the folder of an img2dataset "
            "(output_format webdataset) or DataComp download"
        )
    return found


def _place(found: Dataset, name: str, columns: tuple[str, ...], sizes: dict[str, int]) -> None:
    stem, full = name.removesuffix(".parquet"), f"{found.store.uri}/{name}"
    stats = f"{stem}_stats.json"
    if f"{stem}.tar" not in sizes:
        if stats in sizes:
            raise InputError(
                f"{full}: the tar beside it is gone; put {stem}.tar back, or leave {stem}.parquet and {stats} out"
            )
        found.metadata.append(full)
        _vectors(found, name, sizes)
        return
    if missing := [column for column in REQUIRED if column not in columns]:
        raise InputError(
            f"{full}: has no column {missing[0]!r}, so it is not what img2dataset wrote beside its tar; its columns "
            f"are {', '.join(columns)}; leave both files out"
        )
    uri = full if "://" in full else f"file://{full}"
    tar = f"{uri.removesuffix('.parquet')}.tar"
    found.shards.append(
        Shard(
            source=stat_source(full),
            columns=columns,
            tar=tar,
            tar_bytes=sizes[f"{stem}.tar"],
            tar_etag=stat_source(f"{found.store.uri}/{stem}.tar").etag,
            stats=stats if stats in sizes else None,
        )
    )


def _vectors(found: Dataset, name: str, sizes: dict[str, int]) -> None:
    """DataComp's S.npz beside S.parquet; clip-retrieval's img_emb/img_emb_N.npy beside metadata/metadata_N.parquet."""
    full = f"{found.store.uri}/{name}"
    if name.removesuffix(".parquet") + ".npz" in sizes:
        found.arrays[full] = full.removesuffix(".parquet") + ".npz"
    folder, _, base = name.rpartition("/")
    if base.startswith("metadata_"):
        number = base.removeprefix("metadata_").removesuffix(".parquet")
        above = folder.rpartition("/")[0] if folder.endswith("metadata") else folder
        for kind in ("img_emb", "text_emb"):
            for place in (f"{kind}/{kind}_{number}.npy", f"{kind}_{number}.npy"):
                path = f"{above}/{place}" if above else place
                if path in sizes:
                    found.rows.setdefault(full, {})[kind] = f"{found.store.uri}/{path}"


def kept_columns(shards: list[Shard]) -> list[str]:
    """Columns of the shards that are kept as src_<name>: `key`, and all that are not img2dataset's own.

    Raises InputError where two shards differ in their columns: they are of two downloads.
    """
    first = shards[0]
    for shard in shards:
        if odd := sorted(set(shard.columns) ^ set(first.columns)):
            raise InputError(
                f"{shard.source.source}: {first.source.source} and it do not both have a column {odd[0]!r}, so they "
                "are of two downloads; adopt each from a folder of its own"
            )
    return ["key", *(name for name in first.columns if name not in OWN)]
