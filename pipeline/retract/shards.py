"""Shards without the samples that go: keys stay without gaps, the other members and columns stay as they are.

A kill may leave a shard half published under its final names, so what a file holds is told by the file itself: a tar's
samples by their JSON, the rest by S.parquet, which is published after them.
"""

import json
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import StoreError
from pipeline.retract.read import open_file, read_columns
from pipeline.retract.rewrite import Change, Leaving, rewrite
from pipeline.rounds import read_rounds
from pipeline.shard.stage import upstream_counts
from pipeline.shard.writer import EXTENSIONS, Sample, write_files, write_tar
from pipeline.units import Output, StageFolder
from schemas.records import FileEntry, UnitRecord

BATCH_ROWS = 1_000


def shard_unit(folder: StageFolder, record: UnitRecord, leaving: Leaving) -> bool:
    """Write the shard again if it holds samples that go, or if this was begun before; True if it was."""
    samples = _entry(record, "samples")
    uids = read_columns(folder, samples, ["uid"])["uid"]
    begun = folder.store.size(f"{folder.base}/attempts/{record.unit}.{record.generation + 1}.1") is not None
    if not (begun or leaving.uids(uids, also_again=True).any()):
        return False

    def make(generation: int, name: str, scratch: Path) -> Change:
        shard = Path(samples.path).stem
        with open_file(folder, samples) as file:
            length = max((len(key) for key in file.read(columns=["key"])["key"].to_pylist()), default=len(shard))
        digits = length - len(shard)

        def key(place: int) -> str:
            return f"{shard}{place:0{digits}d}" if digits > 0 else shard

        rows = _samples(folder, samples, leaving, key, scratch / f"{shard}.parquet")
        outputs: list[Output] = []
        if any(entry.table == "tar" for entry in record.files):
            outputs += write_tar(_in_tar(folder, _entry(record, "tar"), leaving, key, rows), scratch, shard, rows)
        elif any(entry.table == "files" for entry in record.files):
            outputs += write_files(_in_files(folder, record, leaving, key), scratch, shard, rows)
        stats = _stats(folder, _entry(record, "stats"), rows, scratch)
        outputs.append(Output("samples", scratch / f"{shard}.parquet", rows, samples.path))
        outputs.append(Output("stats", stats, rows, _entry(record, "stats").path))
        return Change(outputs, {"ok": {"": rows}}, [])

    rewrite(folder, record, leaving, make)
    return True


def write_index(folder: StageFolder, leaving: Leaving) -> None:
    """sizes.json and dataset.json again, by the records that are current; nothing where there is no dataset yet."""
    store = folder.store
    described, sized = (store.read_tagged(f"{folder.base}/dataset/{name}.json") for name in ("dataset", "sizes"))
    if described is None or sized is None:
        return
    rows: dict[str, int] = {}
    of_round: Counter[str] = Counter()
    for record in folder.iter_records():
        rows[Path(_entry(record, "samples").path).stem] = record.rows
        of_round[record.unit.partition("-")[0]] += record.rows
    content = json.loads(described[0])
    content["samples"] = of_round.total()
    content["rounds"] = [{**said, "samples": of_round[said["round"]]} for said in content["rounds"]]
    download, select = (StageFolder(store, stage, content["fingerprints"][stage]) for stage in ("download", "select"))
    content |= upstream_counts(download, select, read_rounds(folder))
    content["retractions"] = sorted({*content.get("retractions", []), leaving.retraction.retraction})
    sizes = {name: rows.get(name.partition(".")[0], 0) for name in json.loads(sized[0])}
    store.replace(f"{folder.base}/dataset/sizes.json", json.dumps(sizes, indent=1).encode() + b"\n")
    store.replace(f"{folder.base}/dataset/dataset.json", json.dumps(content, indent=1).encode() + b"\n")


def _entry(record: UnitRecord, table: str) -> FileEntry:
    found = next((entry for entry in record.files if entry.table == table), None)
    if found is None:
        raise StoreError(f"shard unit {record.unit}: its record names no {table} file")
    return found


def _samples(
    folder: StageFolder, entry: FileEntry, leaving: Leaving, key: Callable[[int], str], local: Path
) -> int:  # fmt: skip
    """Write S.parquet (with its images, where it has them) without the rows that go; the rows left."""
    rows = 0
    with open_file(folder, entry) as file, pq.ParquetWriter(local, file.schema_arrow, compression="zstd") as writer:
        for batch in file.iter_batches(BATCH_ROWS):
            table = pa.Table.from_batches([batch])
            table = table.filter(pa.array(~leaving.uids(table["uid"], also_again=True)))
            keys = [key(rows + place) for place in range(table.num_rows)]
            index = table.column_names.index("key")
            writer.write_table(table.set_column(index, table.schema.field(index), pa.array(keys, pa.string())))
            rows += table.num_rows
    return rows


def _stays(leaving: Leaving, uid: str) -> bool:
    return not (leaving.uid(uid) or uid in leaving.again)


def _renamed(described: dict[str, Any], key: str) -> bytes:
    return json.dumps({**described, "key": key}).encode()


def _in_tar(
    folder: StageFolder, entry: FileEntry, leaving: Leaving, key: Callable[[int], str], rows: int
) -> Iterator[Sample]:
    """The samples that stay, from a tar that is read as a stream. Raises StoreError where they are not `rows`."""
    filesystem, root = folder.store.arrow()
    place = 0
    sample: dict[str, bytes] = {}
    with (
        filesystem.open_input_stream(f"{root}/{folder.base}/{entry.path}", compression=None) as stream,
        tarfile.open(fileobj=stream, mode="r|") as tar,
    ):
        for member in tar:
            data = tar.extractfile(member)
            assert data is not None
            sample[member.name.rpartition(".")[2]] = data.read()
            if len(sample) < 3:
                continue
            described = json.loads(sample.pop("json"))
            text = sample.pop("txt")
            ((extension, image),) = sample.items()
            sample = {}
            if _stays(leaving, described["uid"]):
                yield key(place), extension, image, _renamed(described, key(place)), text
                place += 1
    if place != rows:
        raise StoreError(
            f"{folder.base}/{entry.path}: holds {place} samples that stay, S.parquet beside it {rows}; see jobs.verify"
        )


def _in_files(folder: StageFolder, record: UnitRecord, leaving: Leaving, key: Callable[[int], str]) -> Iterator[Sample]:
    """The samples that stay, from loose files, of which the first may have been moved up before a kill."""
    store, entry = folder.store, _entry(record, "samples")
    shard = Path(entry.path).stem
    there = {path for path, _ in store.files(f"{folder.base}/dataset/{shard}")}
    named = {f"{folder.base}/{one.path}" for one in record.files if one.table == "files"}
    table = read_columns(folder, entry, ["uid", "key"])
    kept = table.filter(pa.array(~leaving.uids(table["uid"], also_again=True)))
    for place, (uid, old) in enumerate(zip(kept["uid"].to_pylist(), kept["key"].to_pylist(), strict=True)):
        new, source = key(place), old
        folder_ = f"{folder.base}/dataset/{shard}"
        described = json.loads(store.read(f"{folder_}/{new}.json"))
        if described["uid"] == uid:
            source = new
        else:
            described = json.loads(store.read(f"{folder_}/{old}.json"))
        images = [one for one in EXTENSIONS.values() if f"{folder_}/{source}.{one}" in there]
        # Of two, the one that no record names was published by the attempt that was killed.
        images.sort(key=lambda one: f"{folder_}/{source}.{one}" in named)
        image = store.read(f"{folder_}/{source}.{images[0]}")
        yield new, images[0], image, _renamed(described, new), (described["caption"] or "").encode()


def _stats(folder: StageFolder, entry: FileEntry, rows: int, scratch: Path) -> Path:
    """S_stats.json with the counts of the samples left; its times stay those of the fetches."""
    stats = json.loads(folder.store.read(f"{folder.base}/{entry.path}"))
    stats |= {"count": rows, "successes": rows, "status_dict": {"success": rows}}
    local = scratch / Path(entry.path).name
    local.write_text(json.dumps(stats, indent=4))
    return local
