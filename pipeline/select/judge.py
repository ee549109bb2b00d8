"""What is known of a unit's rows before they are compared with the rest of the round: a table of verdicts a unit.

| columns | |
| --- | --- |
| `uid` | |
| `drop_duplicate`, `drop_contaminated`, `drop_not_embedded` | what takes a row before any rule |
| `pass_<rule>`, `pass_uids`, `pass_listed_words`, `pass_image_based` | in the order in which they take a row |
| `value` | of `top`'s column |
| `entries` | numbers of `balance`'s entries that the text holds |
| `weight` | of `select.weight` |

`drop_not_embedded` and those from `pass_uids` on are there where the recipe asks for them.
"""

import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.metadata import CLIP_SCORE, TEXT_COUNT, Metadata, before_scores, rule_schema, score_columns
from pipeline.rounds import open_table, table_path
from pipeline.rules import Rules, passed
from pipeline.runner import Unit
from pipeline.select.decide import CONTAMINATED, DUPLICATE, IMAGE_BASED, NOT_EMBEDDED, UIDS, WORDS
from pipeline.select.entries import Matcher, read_entries
from pipeline.select.text_count import TextCounts
from pipeline.select.top import ranked_type
from pipeline.select.uids import among, read_uids
from pipeline.select.weight import Weight
from pipeline.storage import Store
from pipeline.units import StageFolder
from schemas.recipe import Recipe

if TYPE_CHECKING:
    from pipeline.semantic.image_based import ClusterFilter

DROP, PASS = "drop_", "pass_"
VALUE, ENTRIES, WEIGHT = "value", "entries", "weight"
INPUT_UID = "src_uid"
"""A uid that the input gave the row, as DataComp's does: `select.uids` may list it instead of ours."""


class Judging:
    """What all units need, read once; `judge` may be called from several threads.

    Memory: 16 bytes a listed uid and, for text_count, a distinct text; the entries' automaton.
    """

    def __init__(
        self, store: Store, recipe: Recipe, folders: Mapping[str, StageFolder], units: Iterable[Unit],
        matcher: Matcher | None, clusters: "ClusterFilter | None",
    ) -> None:  # fmt: skip
        """`units`: descriptors of this round and those before it, whose texts are counted."""
        self._store, self.settings, self._matcher, self._clusters = store, recipe.select, matcher, clusters
        self._metadata = Metadata(folders)
        self._deciders = {stage: folders[stage] for stage in ("dedupe", "semantic") if stage in folders}
        self._embedded = {key: folder for key, folder in folders.items() if key.startswith("embed/")}
        self._generations = {key: folder.generations() for key, folder in {**self._deciders, **self._embedded}.items()}
        self._schema = rule_schema(store, recipe.embed).append(TEXT_COUNT)
        self._eligible, self._before = recipe.embed.eligible, Metadata(before_scores(folders))
        self._scores = {CLIP_SCORE.name, *score_columns(recipe.embed)}
        select = self.settings
        self._sets = None if select.decontaminate == "all" else select.decontaminate
        self._uids = read_uids(select.uids) if select.uids else None
        self._words = {word.lower() for word in read_entries(select.words, "select.words")} if select.words else None
        columns = set(Rules(select.rules, self._schema, "select.rules").columns)
        if select.weight is not None:
            columns |= set(Weight(select.weight, self._schema).columns)
        if select.top:
            columns.add(select.top.column)
        texts = TEXT_COUNT.name in columns
        if texts or matcher or self._words:
            columns.add("text")
        if self._uids is not None and INPUT_UID in self._schema.names:
            columns.add(INPUT_UID)
        self._columns = [name for name in self._schema.names if name in columns and name != TEXT_COUNT.name]
        self._texts = TextCounts(self._metadata, units) if texts else None
        self._local = threading.local()

    def texts(self, unit: Unit) -> pa.ChunkedArray:
        """The texts of a unit's rows."""
        return self._metadata.read(unit, ["text"])["text"]

    def judge(self, unit: Unit) -> pa.Table:
        """The verdicts of a unit's rows, in the order of its outcomes."""
        select, rows = self.settings, self._metadata.read(unit, self._columns)
        if not hasattr(self._local, "rules"):
            self._local.engine = duckdb.connect(config={"threads": 1})
            self._local.rules = Rules(select.rules, self._schema, "select.rules")
            self._local.weight = Weight(select.weight, self._schema) if select.weight is not None else None
            self._local.eligible = Rules(self._eligible, self._schema, "embed.eligible")
        if self._texts:
            rows = rows.append_column(TEXT_COUNT, self._texts.of(self._local.engine, rows["text"]))
        due = self._due(unit, rows["uid"]) if self._embedded else None
        if due is not None:
            for name in self._scores.intersection(rows.column_names):
                scores = pc.if_else(pa.array(due), rows[name], pa.scalar(None, rows[name].type))
                rows = rows.set_column(rows.column_names.index(name), name, scores)
        found: dict[str, pa.Array | pa.ChunkedArray] = {"uid": rows["uid"]}
        gone = {DUPLICATE: self._named(unit, "duplicates"), CONTAMINATED: self._named(unit, "overlaps")}
        for reason, uids in gone.items():
            found[f"{DROP}{reason}"] = pc.is_in(rows["uid"], uids)
        if due is not None:
            found[f"{DROP}{NOT_EMBEDDED}"] = pa.array(~(due & self._with_vectors(unit, rows["uid"])))
        passes = self._local.rules.judge(rows)
        found |= {f"{PASS}{name}": passes[name] for name in passes.column_names}
        if self._uids is not None:
            listed = among(rows["uid"], self._uids)
            if INPUT_UID in rows.column_names:
                listed |= among(rows[INPUT_UID], self._uids)
            found[f"{PASS}{UIDS}"] = pa.array(listed)
        if self._words is not None:
            split = ((text or "").lower().split() for text in rows["text"].to_pylist())
            found[f"{PASS}{WORDS}"] = pa.array([not self._words.isdisjoint(words) for words in split], pa.bool_())
        if self._clusters:
            found[f"{PASS}{IMAGE_BASED}"] = pa.array(self._clusters.of(unit, rows["uid"]))
        if select.top:
            values = rows[select.top.column]
            found[VALUE] = values.cast(ranked_type(values.type))
        if self._matcher:
            found[ENTRIES] = self._matcher.match(rows["text"])
        if self._local.weight:
            found[WEIGHT] = self._local.weight.of(rows)
        return pa.table(found)

    def overlaps(self, unit: Unit) -> pa.Table:
        """The unit's overlaps with evaluation sets, of `dedupe` and `semantic`; distances are bits or cosines."""
        found = [
            _read(folder, self._generations[stage], unit[stage], "overlaps")
            for stage, folder in self._deciders.items()
        ]  # fmt: skip
        return pa.concat_tables(found, promote_options="permissive")

    def _named(self, unit: Unit, table: str) -> pa.Array:
        """uids of the unit's duplicates, or of those whose overlap counts."""
        if table == "overlaps":
            found = self.overlaps(unit)
            if self._sets is not None:
                found = found.filter(pc.is_in(found["eval_set"], pa.array(self._sets, pa.string())))
            return found["uid"].combine_chunks()
        return pa.chunked_array(
            [
                chunk
                for stage, folder in self._deciders.items()
                for chunk in _read(folder, self._generations[stage], unit[stage], table, ["uid"])["uid"].chunks
            ],
            pa.string(),
        ).combine_chunks()

    def _due(self, unit: Unit, uids: pa.ChunkedArray) -> npt.NDArray[np.bool_]:
        """Which rows `embed` is to embed. Others may have vectors of a time when dedupe or `embed.eligible` said
        otherwise: they count as if there were none, so that a ROOT's past does not shape its dataset."""
        gone = _read(self._deciders["dedupe"], self._generations["dedupe"], unit["dedupe"], "duplicates", ["uid"])
        due: npt.NDArray[np.bool_] = ~pc.is_in(uids, gone["uid"].combine_chunks()).to_numpy()
        if self._eligible:
            due &= passed(self._local.eligible, self._before.read(unit, self._local.eligible.columns))
        return due

    def _with_vectors(self, unit: Unit, uids: pa.ChunkedArray) -> npt.NDArray[np.bool_]:
        """Which rows every encoder of the recipe has an ok vector of."""
        has = np.ones(len(uids), np.bool_)
        for key, folder in self._embedded.items():
            if (generation := self._generations[key].get(unit["reads"])) is None:
                return np.zeros(len(uids), np.bool_)
            system, root = self._store.arrow()
            path = table_path(folder, folder.record(unit["reads"], generation), "embeddings")
            # Two columns of a file that is nearly all vectors: the rest is not read.
            read = pq.read_table(f"{root}/{path}", filesystem=system, columns=["uid", "status"], partitioning=None)
            ok = read.filter(pc.equal(read["status"], "ok"))
            has &= pc.is_in(uids, ok["uid"].combine_chunks()).to_numpy()
        return has


def _read(
    folder: StageFolder, generations: Mapping[str, int], unit: str, table: str, columns: list[str] | None = None
) -> pa.Table:
    return open_table(folder, table_path(folder, folder.record(unit, generations[unit]), table)).read(columns=columns)


def left(verdicts: pa.Table) -> npt.NDArray[np.bool_]:
    """Rows that nothing so far has dropped."""
    stays = np.ones(verdicts.num_rows, np.bool_)
    for name in verdicts.column_names:
        if name.startswith(PASS):
            stays &= verdicts[name].to_numpy()
        elif name.startswith(DROP):
            stays &= ~verdicts[name].to_numpy()
    return stays


class Spill:
    """Verdicts on local disk between the passes over a round. Safe to use from several threads: a file a unit."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, unit: str, verdicts: pa.Table) -> None:
        path = str(self._folder / f"{unit}.arrow")
        with pa.OSFile(path, "wb") as file, pa.ipc.new_file(file, verdicts.schema) as writer:
            writer.write_table(verdicts)

    def get(self, unit: str, drop: Iterable[str] = ()) -> pa.Table | None:
        """The unit's verdicts without some columns; None where it was not put there."""
        path = self._folder / f"{unit}.arrow"
        if not path.exists():
            return None
        with pa.OSFile(str(path)) as file:
            schema = pa.ipc.open_file(file).schema
            wanted = [place for place, name in enumerate(schema.names) if name not in set(drop)]
            options = pa.ipc.IpcReadOptions(included_fields=wanted)
            return pa.ipc.open_file(file, options=options).read_all()
