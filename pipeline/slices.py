"""What each rule and each level of duplicates drops, by language, host and size: where a recipe bites unevenly.

Every input row is in one slice of each kind. A row that a rule or a level dropped counts for the first that did; rows
that the web did not give (failed), that we must not have (refused) or that wait for a decision (pending) are lost, not
dropped.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.errors import InputError
from pipeline.storage import Store
from pipeline.tables import open_table, read_published

By = Literal["lang", "host", "size"]
KINDS: tuple[By, ...] = ("lang", "host", "size")

LEAST = 50
"""Slices of fewer rows are folded into one: their shares say little."""
TOP = 20
"""Hosts shown, of those with enough rows the most affected; the rest is folded."""

LOST = ("failed", "refused", "pending")

_SLICE: dict[By, str] = {
    "lang": "coalesce(lang, 'unknown')",
    "host": r"""coalesce(nullif(regexp_extract(
                    lower(url), '^[a-z]+://(?:[^/?#@]*@)?(\[[^\]]*\]|[^/?#:]+)', 1), ''), 'none')""",
    "size": """CASE WHEN least(original_width, original_height) IS NULL THEN 'no image'
                    WHEN least(original_width, original_height) < 100 THEN '0 to 99 px'
                    WHEN least(original_width, original_height) < 200 THEN '100 to 199 px'
                    WHEN least(original_width, original_height) < 400 THEN '200 to 399 px'
                    WHEN least(original_width, original_height) < 800 THEN '400 to 799 px'
                    WHEN least(original_width, original_height) < 1600 THEN '800 to 1599 px'
                    ELSE '1600 px and more' END""",
}
"""SQL of a row's slice. Size is that of the shorter side of the fetched image. A reject that an older version wrote has
no language of its own: it has that of the pair that stayed, or none."""

_ENDED = """CASE WHEN status IN ('failed', 'refused') THEN status
                 WHEN reason = 'duplicate' THEN 'duplicate url'
                 WHEN reason = 'text_rule' THEN concat('text_rule ', detail)
                 WHEN status <> 'ok' THEN reason
                 WHEN level IS NOT NULL THEN concat('duplicate ', level)
                 WHEN kept THEN 'kept'
                 WHEN dropped_by IS NOT NULL THEN dropped_by
                 ELSE {undecided} END"""


@dataclass(frozen=True)
class Slice:
    """`folded` is how many slices this one stands for: 1, or those too small or too many to be shown apart."""

    name: str
    folded: int
    rows: int
    kept: int
    share_kept: float
    share_dropped: float
    dropped: dict[str, int]
    """Rule or level → rows, the most first."""
    lost: dict[str, int]


def read_slices(
    store: Store, kinds: Sequence[By] = KINDS, least: int = LEAST, top: int = TOP
) -> dict[str, list[Slice]]:
    """kind → its slices, those that lose the largest share to rules and levels first, the folded one last.

    From the published tables alone. Raises InputError where nothing is published.
    """
    import duckdb

    engine = duckdb.connect(config={"enable_external_access": "false"})
    there = set()
    for table in ("outcomes", "rejects", "pairs", "duplicates", "decisions"):
        published = read_published(store, table)
        if published is None:
            continue
        engine.register(f"{table}_", open_table(store, [file.path for file in published.files], table))
        if published.rows or table in ("outcomes", "rejects"):
            there.add(table)
    if not {"outcomes", "rejects"} <= there:
        raise InputError(f"{store.uri}: no tables are published yet; they are at the end of a build")
    return {kind: _fold(engine, kind, there, least, top) for kind in kinds}


def _fold(engine: Any, kind: By, there: set[str], least: int, top: int) -> list[Slice]:
    engine.execute(f"CREATE OR REPLACE TEMP TABLE counted AS {_counted(kind, there)}")
    dropped = f"sum(n) FILTER (WHERE ended NOT IN {('kept', *LOST)})"
    query = f"""
        SELECT slice FROM counted GROUP BY slice HAVING sum(n) >= {least}
        ORDER BY coalesce({dropped}, 0) / sum(n) DESC, sum(n) DESC, slice"""
    names = [name for (name,) in engine.execute(query + (f" LIMIT {top}" if kind == "host" else "")).fetchall()]
    shown: dict[str, list[tuple[str, int]]] = {name: [] for name in names}
    rest: list[tuple[str, int]] = []
    query = "SELECT CASE WHEN slice IN (SELECT unnest(?::VARCHAR[])) THEN slice END, ended, sum(n)::BIGINT FROM counted"
    for name, ended, rows in engine.execute(f"{query} GROUP BY 1, 2 ORDER BY 3 DESC, 2", [names]).fetchall():
        (rest if name is None else shown[name]).append((ended, rows))
    slices = [_slice(name, 1, dict(ended)) for name, ended in shown.items()]
    if rest:
        (distinct,) = engine.execute("SELECT count(DISTINCT slice) FROM counted").fetchone()
        slices.append(_slice("other", distinct - len(names), dict(rest)))
    return slices


def _counted(kind: By, there: set[str]) -> str:
    """SQL of (slice, ended, n) over every input row."""
    columns = {"lang": "lang", "host": "url", "size": "original_width, original_height"}[kind]
    level = "level" if "duplicates" in there else "NULL::VARCHAR"
    decided = "kept, dropped_by" if "decisions" in there else "NULL::BOOLEAN AS kept, NULL::VARCHAR AS dropped_by"
    own = "o.url" if kind == "host" else columns
    joins = "LEFT JOIN (SELECT uid, lang FROM pairs_) p USING (uid)" if kind == "lang" else ""
    if "duplicates" in there:
        joins += " LEFT JOIN (SELECT uid, any_value(level) AS level FROM duplicates_ GROUP BY 1) d USING (uid)"
    if "decisions" in there:
        joins += " LEFT JOIN (SELECT uid, kept, dropped_by FROM decisions_) s USING (uid)"
    undecided = "'pending'" if "decisions" in there else "'kept'"
    of_reject = {"lang": "coalesce(r.lang, p.lang)", "host": "url", "size": "NULL::INT, NULL::INT"}[kind]
    witness = "LEFT JOIN (SELECT uid AS dup_of, lang FROM pairs_) p USING (dup_of)" if kind == "lang" else ""
    return f"""
        SELECT {_SLICE[kind]} AS slice, {_ENDED.format(undecided=undecided)} AS ended, count(*) AS n FROM (
            SELECT {own}, status, reason, detail, {level} AS level, {decided} FROM outcomes_ o {joins}
            UNION ALL
            SELECT {of_reject}, status, reason, detail, NULL, NULL, NULL FROM rejects_ r {witness}
        ) GROUP BY 1, 2"""


def _slice(name: str, folded: int, ended: dict[str, int]) -> Slice:
    rows, kept = sum(ended.values()), ended.pop("kept", 0)
    lost = {ending: ended.pop(ending) for ending in LOST if ending in ended}
    return Slice(name, folded, rows, kept, kept / rows, sum(ended.values()) / rows, ended, lost)
