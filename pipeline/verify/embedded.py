"""What `embed`, `scores` and `semantic` made of the pool: one row a pair and encoder, vectors of length 1, true scores,
and for each semantic duplicate a witness that stayed."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.storage import Store
from pipeline.units import count
from pipeline.verify.curated import Curated
from pipeline.verify.files import chosen
from pipeline.verify.keys import Keys
from pipeline.verify.ordered import ordered
from pipeline.verify.report import Report
from pipeline.verify.state import Folder
from pipeline.verify.units import UnitTables, present
from schemas.records import UnitRecord

VECTORS = ("image_embedding", "text_embedding")
NEAR = 1e-3
"""Of lengths and cosines: float32 vectors of half-precision towers are normalised in float32."""

_EMBEDDED = (
    """SELECT format('{} has {} embeddings in {}', uid, count(*), folder) FROM embeddings WHERE folder = $folder
       GROUP BY uid, folder HAVING count(*) > 1""",
    """SELECT format('{} has an embedding in {} but is no pair', e.uid, folder) FROM embeddings e
       LEFT JOIN pairs p USING (uid) WHERE folder = $folder AND p.uid IS NULL""",
    """SELECT format('{} was due to be embedded, but {} has no vector of it', d.uid, $folder)
       FROM (FROM decisions WHERE folder = $select) d
       LEFT JOIN (FROM embeddings WHERE folder = $folder AND status = 'ok') e USING (uid)
       WHERE e.uid IS NULL AND coalesce(d.dropped_by, '') NOT IN ('duplicate', 'contaminated', 'retracted',
                                                                  'not_embedded')""",
)
_SCORED = (
    """SELECT format('{} has {} scores in {}', uid, count(*), folder) FROM scores WHERE folder = $scores
       GROUP BY uid, folder HAVING count(*) > 1""",
    """SELECT format('{} has the score {}, its vectors say {}', s.uid, s.clip_score, e.clip_score)
       FROM (FROM scores WHERE folder = $scores) s LEFT JOIN (FROM embeddings WHERE folder = $folder) e USING (uid)
       WHERE s.clip_score IS DISTINCT FROM e.clip_score""",
)
_OF = "(FROM duplicates WHERE folder = $semantic)"
_SEMANTIC = (
    f"""SELECT format('{{}} gave way to {{}}, which is no ok outcome', d.uid, coalesce(d.dup_of, 'nothing'))
        FROM {_OF} d LEFT JOIN (FROM outcomes WHERE folder = $source) o ON d.dup_of = o.uid WHERE o.uid IS NULL""",
    f"""SELECT format('{{}} gave way by semantic to {{}}, which {{}} had dropped', d.uid, w.uid, w.level) FROM {_OF} d
        JOIN (FROM duplicates WHERE folder IN ($dedupe, $semantic)) w ON d.dup_of = w.uid""",
    f"""SELECT format('{{}} is dropped by semantic and by {{}}', d.uid, w.level) FROM {_OF} d
        JOIN (FROM duplicates WHERE folder = $dedupe) w USING (uid)""",
    f"SELECT format('{{}} is dropped {{}} times', uid, count(*)) FROM {_OF} GROUP BY uid HAVING count(*) > 1",
    f"""SELECT format('{{}} is {{}} from {{}}, more than the {{}} of the recipe', uid, distance, dup_of, $eps)
        FROM {_OF} WHERE distance > $eps + 1e-6 OR level <> 'semantic'""",
    f"""SELECT format('{{}} gave way by semantic to {{}}, which has another text: scope pair', d.uid, d.dup_of)
        FROM {_OF} d JOIN (FROM outcomes WHERE folder = $source) o USING (uid)
        JOIN (FROM outcomes WHERE folder = $source) w ON d.dup_of = w.uid
        WHERE $scope = 'pair' AND o.text_key <> w.text_key""",
    f"""SELECT format('{{}} and {{}} are semantic duplicates, but one has no vector', d.uid, d.dup_of) FROM {_OF} d
        LEFT JOIN (FROM embeddings WHERE folder = $folder AND status = 'ok') a USING (uid)
        LEFT JOIN (FROM embeddings WHERE folder = $folder AND status = 'ok') b ON d.dup_of = b.uid
        WHERE $folder <> '' AND (a.uid IS NULL OR b.uid IS NULL)""",
)


def check_embedded(
    store: Store, made: Curated, report: Report, keys: Keys, pool: ThreadPoolExecutor, share: float, known: set[str]
) -> None:
    """`share` of the units have their vectors read. `known` are the folders read before, which gains these."""
    rows, files = report.check(1, "tables agree with their records"), report.check(4, "recorded files are there, whole")
    length = report.check(2, "vectors of length 1, true cosines")
    for stage, table in (("embed", "embeddings"), ("scores", "scores")):
        for folder in (made.embed if stage == "embed" else made.scores).values():
            if folder.base in known:
                continue
            known.add(folder.base)
            for unit, found, looked, wrong in ordered(
                pool, partial(_unit, store, folder, table, share), folder.current.values()
            ):
                rows.add(found.num_rows if found is not None else 0, unit.rows)
                files.add(0, unit.files)
                length.add(looked, wrong)
                if found is not None:
                    keys.add(table, found)
    for name, folder in made.embed.items():
        values = {"folder": folder.base, "select": made.select.base if made.select else ""}
        check = report.check(2, "rows due are embedded once")
        keys.run(check, _EMBEDDED, "SELECT count(*) FROM embeddings WHERE folder = $folder", values)
        if name in made.scores:
            values = {"folder": folder.base, "scores": made.scores[name].base}
            check = report.check(1, "scores are those of the vectors")
            keys.run(check, _SCORED, "SELECT count(*) FROM scores WHERE folder = $scores", values)
    if made.semantic:
        compared = made.embed.get(made.compared.encoder or "")
        mixed = {
            "semantic": made.semantic.base, "dedupe": made.dedupe.base if made.dedupe else "", "source": made.download,
            "scope": made.settings.scope, "eps": made.compared.eps, "folder": compared.base if compared else "",
        }  # fmt: skip
        check = report.check(3, "semantic duplicates have a kept witness")
        keys.run(check, _SEMANTIC, f"SELECT count(*) FROM {_OF}", mixed)


def _unit(
    store: Store, folder: Folder, table: str, share: float, record: UnitRecord
) -> tuple[UnitTables, pa.Table | None, int, list[str]]:
    """One table of a unit, checked against its record; of some units the vectors too: how many, and what is wrong."""
    unit = UnitTables()
    embeds = table == "embeddings"
    whole = embeds and chosen(f"{folder.base}/{record.unit}", share)
    columns = ("uid", *(("status", "reason") if embeds else ()), "clip_score", *(VECTORS if whole else ()))
    found = unit.read(store, folder, record, table, columns)
    if found is None:
        return unit, None, 0, []
    place = f"{folder.base}: unit {record.unit}"
    if embeds and count(found["status"].to_pylist(), found["reason"].to_pylist()) != present(record):
        unit.rows.append(f"{place}: its embeddings' counts are not its record's")
    wrong = list(_vectors(place, found)) if whole else []
    kept = found.select([name for name in ("uid", "status", "clip_score") if name in found.column_names])
    kept = kept.append_column("folder", pa.repeat(pa.scalar(folder.base), kept.num_rows))
    return unit, kept, found.num_rows if whole else 0, wrong


def _vectors(place: str, table: pa.Table) -> Iterator[str]:
    """An ok row has two vectors of length 1 whose product is its score; another has none."""
    ok = pc.equal(table["status"], "ok")
    for name in VECTORS:
        for uid in pc.filter(table["uid"], pc.not_equal(pc.is_valid(table[name]), ok)).to_pylist():
            yield f"{place}: {uid} has a {name} where its status is not ok, or none where it is"
    rows = table.filter(ok)
    if not rows.num_rows:
        return
    image, text = (_matrix(rows[name]) for name in VECTORS)
    if image is None or text is None or image.shape != text.shape:
        yield f"{place}: its vectors are not all of one length"
        return
    lengths = np.maximum(abs(np.linalg.norm(image, axis=1) - 1), abs(np.linalg.norm(text, axis=1) - 1))
    told = rows["clip_score"].to_numpy()
    off = abs(np.einsum("ij,ij->i", image, text) - told)
    for row in np.flatnonzero(~((lengths < NEAR) & (off < NEAR))):
        uid = rows["uid"][int(row)]
        yield f"{place}: {uid} has a vector that is not of length 1, or another cosine than {told[row]}"


def _matrix(column: pa.ChunkedArray) -> np.ndarray | None:
    flat = column.combine_chunks()
    sizes = pc.unique(pc.list_value_length(flat)).to_pylist()
    if len(sizes) != 1 or sizes[0] is None:
        return None
    return np.asarray(flat.flatten().to_numpy(zero_copy_only=False)).reshape(len(flat), sizes[0])
