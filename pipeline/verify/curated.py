"""Invariants 1, 3 and 5 of what `dedupe` and `select` decided: witnesses, decisions, and the samples that follow.

Dropped rows are checked against the outcomes and hashes they were compared by, and against the recipe of the run that
compared them.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.root import read_runs, stage_of
from pipeline.rounds import descriptors, read_rounds
from pipeline.storage import Store
from pipeline.verify.keys import Keys
from pipeline.verify.ordered import ordered
from pipeline.verify.report import Report
from pipeline.verify.state import Folder, State
from pipeline.verify.units import UnitTables, present
from schemas.recipe import PER_ENCODER, Dedupe, Semantic
from schemas.records import RunRecord, UnitRecord

DUPLICATES = ("uid", "dup_of", "level", "distance", "group_id")
DECISIONS = ("uid", "kept", "dropped_by")
HASHES = ("uid", "pdq")

LEVELS = ("bytes", "perceptual", "semantic")
"""In the order in which they drop rows: a witness may be dropped by a later one alone."""

_DUPLICATES = "(FROM duplicates WHERE folder = $folder)"
_DECISIONS = "(FROM decisions WHERE folder = $folder)"
_OUTCOMES = "(FROM outcomes WHERE folder = $source)"
_HASHES = "(FROM hashes WHERE folder = $hashes)"
_PLACE = f"list_position({list(LEVELS)!r}, {{}})"

WITNESSES = (
    f"""SELECT format('{{}} is a duplicate of {{}} but no ok outcome', d.uid, d.dup_of)
        FROM {_DUPLICATES} d LEFT JOIN {_OUTCOMES} o USING (uid) WHERE o.uid IS NULL""",
    f"""SELECT format('{{}} is a duplicate of {{}}, which is no ok outcome', d.uid, coalesce(d.dup_of, 'nothing'))
        FROM {_DUPLICATES} d LEFT JOIN {_OUTCOMES} o ON d.dup_of = o.uid WHERE o.uid IS NULL""",
    f"""SELECT format('{{}} is dropped {{}} times', uid, count(*))
        FROM {_DUPLICATES} GROUP BY uid HAVING count(*) > 1""",
    f"""SELECT format('{{}} gave way by {{}} to {{}}, which {{}} had dropped', d.uid, d.level, w.uid, w.level)
        FROM {_DUPLICATES} d JOIN {_DUPLICATES} w ON d.dup_of = w.uid
        WHERE {_PLACE.format("w.level")} <= {_PLACE.format("d.level")}""",
    f"""SELECT format('{{}} has level {{}}, which is none of dedupe', uid, coalesce(level, 'null'))
        FROM {_DUPLICATES} WHERE {_PLACE.format("level")} IS NULL""",
    f"""SELECT format('{{}} is in the group of {{}}, which is dropped itself', d.uid, d.group_id)
        FROM {_DUPLICATES} d JOIN {_DUPLICATES} g ON d.group_id = g.uid""",
    f"""SELECT format('{{}} is a duplicate of {{}} by bytes, but their sha256 differ', d.uid, d.dup_of)
        FROM {_DUPLICATES} d JOIN {_OUTCOMES} o USING (uid) JOIN {_OUTCOMES} w ON d.dup_of = w.uid
        WHERE d.level = 'bytes' AND o.sha256 IS DISTINCT FROM w.sha256""",
    f"""SELECT format('{{}} is a duplicate of {{}} with another text, but the scope is pair', d.uid, d.dup_of)
        FROM {_DUPLICATES} d JOIN {_OUTCOMES} o USING (uid) JOIN {_OUTCOMES} w ON d.dup_of = w.uid
        WHERE $scope = 'pair' AND o.text_key <> w.text_key""",
    f"""SELECT format('{{}} is {{}} bits from {{}}, more than the {{}} of the recipe', uid, distance, dup_of, $radius)
        FROM {_DUPLICATES} WHERE level = 'perceptual' AND distance > $radius""",
    f"""SELECT format('{{}} is said to be {{}} bits from {{}}, its hashes differ by {{}}', uid, distance, dup_of, bits)
        FROM (SELECT d.*, bit_count(xor(unhex(h.pdq)::BIT, unhex(w.pdq)::BIT)) AS bits
              FROM {_DUPLICATES} d JOIN {_HASHES} h USING (uid) JOIN {_HASHES} w ON d.dup_of = w.uid
              WHERE d.level = 'perceptual')
        WHERE CASE WHEN $dihedral THEN distance > bits ELSE distance <> bits END""",
)
_DECIDED = (
    f"""SELECT format('uid {{}} has {{}} decisions', uid, count(*))
        FROM {_DECISIONS} GROUP BY uid HAVING count(*) > 1""",
    f"""SELECT format('uid {{}} has a decision but is no ok outcome', d.uid)
        FROM {_DECISIONS} d LEFT JOIN {_OUTCOMES} o USING (uid) WHERE o.uid IS NULL""",
    f"""SELECT format('uid {{}} is ok, a round of select has read its unit {{}}, but it has no decision', o.uid, o.unit)
        FROM {_OUTCOMES} o JOIN (FROM read WHERE folder = $folder) r USING (unit) LEFT JOIN {_DECISIONS} d USING (uid)
        WHERE d.uid IS NULL AND o.generation <= r.generation""",
    f"""SELECT format('uid {{}}: kept is {{}}, dropped_by {{}}', uid, kept, coalesce(dropped_by, 'null'))
        FROM {_DECISIONS} WHERE kept IS DISTINCT FROM (dropped_by IS NULL)""",
    f"""SELECT format('uid {{}} is {{}}, but the decision says dropped_by {{}}', uid,
                      CASE WHEN d.uid IS NULL THEN 'no duplicate' ELSE 'a duplicate' END, coalesce(dropped_by, 'null'))
        FROM {_DECISIONS} c LEFT JOIN (FROM duplicates WHERE folder IN ($dedupe, $semantic)) d USING (uid)
        WHERE (d.uid IS NOT NULL) <> (dropped_by IS NOT DISTINCT FROM 'duplicate')
              AND dropped_by IS DISTINCT FROM 'retracted'""",
)
_SAMPLES = (
    """SELECT format('{}: key {} has uid {}, which select does not keep', s.shard, s.key, s.uid)
       FROM samples s LEFT JOIN (FROM decisions WHERE folder = $folder) d USING (uid) WHERE d.kept IS NOT TRUE""",
    """SELECT format('uid {} is kept, a round has read its unit {} of select, but no shard has it', d.uid, d.unit)
       FROM (FROM decisions WHERE folder = $folder) d JOIN taken t USING (unit) LEFT JOIN samples s USING (uid)
       WHERE d.kept AND s.uid IS NULL""",
)
_HASHED = (
    f"SELECT format('uid {{}} has {{}} hashes', uid, count(*)) FROM {_HASHES} GROUP BY uid HAVING count(*) > 1",
    f"""SELECT format('uid {{}} has a hash but is no ok outcome', h.uid)
        FROM {_HASHES} h LEFT JOIN {_OUTCOMES} o USING (uid) WHERE o.uid IS NULL""",
    f"""SELECT format('uid {{}} is ok, unit {{}} is hashed, but it has no hash', o.uid, o.unit)
        FROM {_OUTCOMES} o JOIN (FROM read WHERE folder = $hashes) r USING (unit) LEFT JOIN {_HASHES} h USING (uid)
        WHERE h.uid IS NULL AND o.generation <= r.generation""",
)


@dataclass(frozen=True)
class Curated:
    """Folders that were made from each other, and the settings of dedupe."""

    download: str
    """Base of the folder, as `keys` has it."""
    hashes: Folder | None
    dedupe: Folder | None
    select: Folder | None
    settings: Dedupe
    semantic: Folder | None
    compared: Semantic
    """What `semantic` was asked for."""
    embed: dict[str, Folder]
    """encoder → its folder"""
    scores: dict[str, Folder]


def made_from(state: State, shard_made_from: dict[str, str]) -> list[Curated]:
    """What the dataset was made from, then what else is current of select, semantic and dedupe, with what each read."""
    runs = read_runs(state.store)
    stages = [shard_made_from] if "select" in shard_made_from else []
    for stage in ("select", "semantic", "dedupe"):
        folder = state.current.get(stage)
        if folder and not any(known.get(stage) == folder.folder.fingerprint for known in stages):
            stages += [run.stages for run in [_run_of(runs, stage, folder.folder.fingerprint)] if run]
    return [made for known in stages if (made := _curated(state, runs, known))]


def _run_of(runs: Sequence[RunRecord], stage: str, fingerprint: str) -> RunRecord | None:
    return next((run for run in reversed(runs) if run.stages.get(stage) == fingerprint), None)


def _curated(state: State, runs: Sequence[RunRecord], stages: Mapping[str, str]) -> Curated | None:
    """None where nothing was decided."""
    folders = {folder.base: folder for folder in state.folders}
    found = {stage: folders.get(f"{stage_of(stage)}/{name}") for stage, name in stages.items()}
    if found.get("dedupe") is None or found.get("download") is None:
        return None
    run = _run_of(runs, "dedupe", stages["dedupe"])
    settings = Dedupe.model_validate(run.recipe["dedupe"]) if run else Dedupe()
    by_encoder = {
        stage: {
            key.partition("/")[2]: folder for key, folder in found.items() if folder and key.startswith(f"{stage}/")
        }
        for stage in PER_ENCODER
    }
    asked = _run_of(runs, "semantic", stages.get("semantic", ""))
    compared = Semantic.model_validate(asked.recipe["semantic"]) if asked else Semantic()
    return Curated(
        f"download/{stages['download']}", found.get("hashes"), found["dedupe"], found.get("select"), settings,
        found.get("semantic"), compared, by_encoder["embed"], by_encoder["scores"],
    )  # fmt: skip


def check_curated(
    state: State, made: Curated, report: Report, keys: Keys, pool: ThreadPoolExecutor, known: set[str]
) -> None:
    """Read the tables of dedupe, select and hashes, and prove them against each other and the outcomes.

    `known` are the folders that were read before, which gains these.
    """
    rows, files = report.check(1, "tables agree with their records"), report.check(4, "recorded files are there, whole")
    new: set[str] = set()
    for folder, table, columns in (
        (made.hashes, "hashes", HASHES), (made.dedupe, "duplicates", DUPLICATES),
        (made.semantic, "duplicates", DUPLICATES), (made.select, "decisions", DECISIONS),
    ):  # fmt: skip
        if folder is None or folder.base in known:
            continue
        new.add(folder.folder.stage)
        known.add(folder.base)
        keys.add("read", _read(folder))
        read = partial(_unit, state.store, folder, table, columns)
        for unit, found in ordered(pool, read, folder.current.values()):
            rows.add(found.num_rows if found is not None else 0, unit.rows)
            files.add(0, unit.files)
            if found is not None:
                keys.add(table, found)
    radius = made.settings.levels.get("pdq", False)
    values = {
        "source": made.download, "folder": made.dedupe.base if made.dedupe else "", "scope": made.settings.scope,
        "radius": 31 if radius is True else int(radius), "dihedral": made.settings.dihedral,
        "hashes": made.hashes.base if made.hashes else "",
    }  # fmt: skip
    if "dedupe" in new:
        check = report.check(3, "dropped duplicates have a kept witness")
        keys.run(check, WITNESSES, f"SELECT count(*) FROM {_DUPLICATES}", values)
    if "hashes" in new:
        keys.run(report.check(1, "hashes of ok rows"), _HASHED, f"SELECT count(*) FROM {_HASHES}", values)
    if "select" in new and made.select:
        values = {
            "source": made.download, "folder": made.select.base, "dedupe": values["folder"],
            "semantic": made.semantic.base if made.semantic else "",
        }  # fmt: skip
        check = report.check(1, "ok rows have one decision each")
        keys.run(check, _DECIDED, f"SELECT count(*) FROM {_DECISIONS}", values)


def check_chosen(made: Curated, report: Report, keys: Keys) -> None:
    """The samples are the rows that select keeps; once the samples are known."""
    if made.select:
        check = report.check(5, "samples are what select keeps")
        keys.run(check, _SAMPLES, "SELECT count(*) FROM samples", {"folder": made.select.base})


def _read(folder: Folder) -> pa.Table:
    """unit and generation: up to which generation the folder has read which download unit."""
    read: dict[str, int] = {}
    if folder.folder.stage == "hashes":
        read = {unit: record.generation for unit, record in folder.current.items()}
    else:
        for unit in descriptors(read_rounds(folder.folder)).values():
            if unit["unit"] in folder.current:
                read[unit["reads"]] = max(unit["reads_generation"], read.get(unit["reads"], -1))
    return pa.table({
        "unit": pa.array(list(read), pa.string()), "generation": pa.array(list(read.values()), pa.int32()),
        "folder": pa.array([folder.base] * len(read), pa.string()),
    })  # fmt: skip


def _unit(
    store: Store, folder: Folder, table: str, columns: tuple[str, ...], record: UnitRecord
) -> tuple[UnitTables, pa.Table | None]:
    """One table of a unit, checked against its record."""
    unit = UnitTables()
    found = unit.read(store, folder, record, table, columns)
    if found is not None:
        unit.rows += _counted(f"{folder.base}: unit {record.unit}", record, table, found)
        found = found.append_column("unit", pa.repeat(pa.scalar(record.unit), found.num_rows))
        found = found.append_column("folder", pa.repeat(pa.scalar(folder.base), found.num_rows))
    return unit, found


def _counted(place: str, record: UnitRecord, table: str, found: pa.Table) -> Iterator[str]:
    counts = present(record)
    if table == "duplicates":
        gone = counts.get("rejected", {}).get("duplicate", 0)
        if gone != found.num_rows:
            yield f"{place}: drops {found.num_rows} duplicates, its record says {gone}"
        return
    if found.num_rows != record.rows:
        yield f"{place}: has {found.num_rows} {table}, its record says {record.rows}"
    if table == "decisions":
        dropped = {one["values"]: one["counts"] for one in pc.value_counts(found["dropped_by"]).to_pylist()}
        kept = dropped.pop(None, 0)
        if dropped != counts.get("rejected", {}) or kept != counts.get("ok", {}).get("", 0):
            yield f"{place}: its decisions' counts are not its record's"
