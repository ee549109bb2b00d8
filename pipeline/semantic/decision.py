"""A round of `semantic`: all its rows read, compared with each other and what stayed before, and written by unit."""

import io
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
import pyarrow as pa

from pipeline.dedupe.committing import Decided, commit_round
from pipeline.dedupe.find import by_uid, first_equal, fixed, hexadecimal
from pipeline.dedupe.rows import ByUid
from pipeline.metadata import Metadata, before_scores, rule_schema
from pipeline.rounds import descriptors
from pipeline.rules import Rules
from pipeline.runner import Result
from pipeline.semantic import find
from pipeline.semantic.against import OVERLAPS, overlaps, read_items
from pipeline.semantic.clusters import POINTS, Floats, Index, kmeans, several_nearest
from pipeline.semantic.rows import THREADS, Gather, Rows
from pipeline.semantic.vectors import Vectors, vector_folder
from pipeline.stop import StopFlag
from pipeline.storage import Store
from pipeline.units import StageFolder
from schemas.recipe import Recipe
from schemas.records import Round
from schemas.tables import DUPLICATES

EXACT: Final = 1 << 14
"""Rows of a group up to which all are compared with all: it takes less than clustering them, and loses nothing."""

_log = logging.getLogger(__name__)


class Decision:
    """A whole round, decided when this is made."""

    def __init__(
        self, store: Store, recipe: Recipe, folders: Mapping[str, StageFolder], folder: StageFolder,
        rounds: Sequence[Round], unit: str,
    ) -> None:  # fmt: skip
        """`unit`: one of the round's."""
        self._store, self._folder, self._recipe = store, folder, recipe
        assert recipe.semantic.encoder is not None
        number = next(place for place, round_ in enumerate(rounds) if unit in descriptors([round_]))
        self._round = rounds[number].round
        self._units = list(descriptors([rounds[number]]).values())
        earlier = list(descriptors(rounds[:number]).values())
        encoder = recipe.semantic.encoder
        schema = rule_schema(store)
        # What had a vector made before `embed.eligible` was what it is now does not count.
        due = recipe.embed.eligible if f"embed/{encoder}" in folders else {}
        rules = [
            (Rules(recipe.dedupe.eligible, schema, "dedupe.eligible"), Rules(due, schema, "embed.eligible"))
            for _ in range(THREADS)
        ]
        vectors = Vectors(vector_folder(folders, encoder), encoder)
        rows = Gather(Metadata(before_scores(folders)), folders["dedupe"], folder, vectors, rules).read(
            earlier, self._units
        )
        self._uids, self._ends = rows.uids, rows.ends
        self._clusters: find.Clusters | None = None
        self._duplicates = ByUid(self._find_duplicates(rows))
        self._overlaps = ByUid(self._find_overlaps(rows))

    def _find_duplicates(self, rows: Rows) -> pa.Table:
        """The rows that go; schema DUPLICATES."""
        settings = self._recipe.semantic
        order = rows.by_rank()
        groups = _groups(rows, order, self._recipe.dedupe.scope)
        whole = find.Search(rows.vectors, settings.eps)
        spread = whole
        if any(len(group) > EXACT for group in groups):
            spread = find.Search(rows.vectors, settings.eps, self._clustered(rows.vectors, rows.table))
        gone, witness = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for group in groups:
            standing = int((group < rows.standing).sum())
            if standing == len(group):
                continue
            found = find.kept_witnesses(whole if len(group) <= EXACT else spread, group, standing)
            dropped = np.flatnonzero(found != np.arange(len(group)))
            gone.append(group[dropped])
            witness.append(group[found[dropped]])
        compared = whole.compared + (spread.compared if spread is not whole else 0)
        _log.info("semantic: %d rows, %d of earlier rounds; %d pairs compared", len(order), rows.standing, compared)
        return _told(rows, np.concatenate(gone), np.concatenate(witness))

    def _find_overlaps(self, rows: Rows) -> pa.Table:
        """Which rows of the round, eligible or not, are near which images of the evaluation sets."""
        settings, against = self._recipe.semantic, self._recipe.dedupe.against
        if settings.overlap_eps is None or not against:
            return OVERLAPS.empty_table()
        items = read_items(self._folder, self._recipe)
        many = len(items) * len(rows.vectors) > EXACT * EXACT
        clusters = self._clustered(rows.vectors, rows.table) if many else None
        return overlaps(rows, items, settings.overlap_eps, clusters)

    def _clustered(self, vectors: Floats, table: pa.Table) -> find.Clusters:
        if self._clusters is None:
            settings = self._recipe.semantic
            centroids = self._centroids(vectors, fixed(table["uid"], 16))
            probes = several_nearest(vectors, centroids, settings.probes).astype(np.int32)
            self._clusters = find.Clusters(np.ascontiguousarray(probes[:, 0]), probes, centroids)
        return self._clusters

    def _centroids(self, vectors: Floats, uids: "np.typing.NDArray[np.uint8]") -> Floats:
        """Made once a round: a run that finishes another's round, on whatever machine, takes that one's."""
        path = f"{self._folder.base}/centroids/{self._round}.npy"
        if (tagged := self._store.read_tagged(path)) is None:
            k = self._recipe.semantic.clusters or round(len(vectors) ** 0.5)
            learned = by_uid(uids)[: POINTS * k]  # uids are hashes: the lowest ones are a sample
            data = io.BytesIO()
            np.save(data, kmeans(vectors[learned], k, spherical=True))
            self._store.create(path, data.getvalue())
            tagged = self._store.read_tagged(path)
            assert tagged is not None
        centroids: Floats = np.load(io.BytesIO(tagged[0]))
        return centroids

    def commit(self, run: str, stop: StopFlag, report: Callable[[Result], None]) -> None:
        """Write those of the round's units that no record answers for."""
        commit_round(self._folder, self._units, self._unit, run, stop, report)

    def _unit(self, number: int) -> Decided:
        uids = self._uids[self._ends[number - 1] if number else 0 : self._ends[number]]
        return Decided(len(uids), self._duplicates.of(uids), self._overlaps.of(uids))


def _groups(rows: Rows, order: Index, scope: str) -> list[Index]:
    """Rows that may be duplicates of each other, by rank: all, or, with scope `pair`, those of one text."""
    if scope == "image":
        return [order] if len(order) > 1 else []
    text = first_equal(fixed(rows.table["text"], 16)[order].view(np.uint64))
    together = np.argsort(text, kind="stable")
    starts = np.flatnonzero(np.diff(text[together], prepend=-1))
    sizes = np.diff([*starts, len(together)])
    return [order[together[start : start + size]] for start, size in zip(starts, sizes, strict=True) if size > 1]


def _told(rows: Rows, gone: Index, witness: Index) -> pa.Table:
    """The table of those that go, by uid."""
    uids = fixed(rows.table["uid"], 16)
    order = by_uid(uids[gone])
    gone, witness = gone[order], witness[order]
    kept = hexadecimal(uids[witness])
    columns = {
        "uid": hexadecimal(uids[gone]), "dup_of": kept, "level": pa.repeat(pa.scalar("semantic"), len(gone)),
        "distance": pa.array(find.distances(rows.vectors, gone, rows.vectors, witness)), "group_id": kept,
    }  # fmt: skip
    return pa.table(columns, schema=DUPLICATES)
