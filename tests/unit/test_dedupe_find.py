"""Who goes, who stays and for whom, against brute force over all pairs."""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.dedupe import search
from pipeline.dedupe.find import FOUND, ROWS, find_duplicates
from pipeline.dedupe.hashes import COLOUR_BYTES
from pipeline.errors import InputError
from schemas.recipe import Dedupe

NO_ROWS = ROWS.empty_table()
GREY = bytes([128]) * COLOUR_BYTES
RED = bytes([128, 200, 180]) * (COLOUR_BYTES // 3)


def row(name: str, pdq: bytes | None = None, **values: Any) -> dict[str, Any]:
    return {
        "uid": digest(name)[:16],
        "sha256": digest(name),
        "text": digest("text")[:16],
        "pixels": 100,
        "bytes": 100,
        "pdq": pdq,
        "pdq_quality": None if pdq is None else 100,
        "colour": None if pdq is None else GREY,
        **values,
    }


def digest(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=ROWS)


def found(rows: list[dict[str, Any]], standing: list[dict[str, Any]] | None = None, **keys: Any) -> dict[str, dict]:
    made = find_duplicates(table(rows), table(standing or []), Dedupe(**keys))
    return {line["uid"]: line for line in made.to_pylist()}


def flipped(pdq: bytes, *bits: int) -> bytes:
    value = int.from_bytes(pdq)
    for bit in bits:
        value ^= 1 << bit
    return value.to_bytes(32)


def near(pdq: bytes, bits: int, rng: np.random.Generator) -> bytes:
    return flipped(pdq, *(int(bit) for bit in rng.permutation(256)[:bits]))


def uid(name: str) -> str:
    return digest(name)[:16].hex()


def test_equal_bytes_with_equal_text_leave_the_largest() -> None:
    same = {"sha256": digest("picture")}
    rows = [row("small", **same), row("large", **same, pixels=200), row("other text", **same, text=digest("x")[:16])]
    assert found(rows, scope="pair") == {
        uid("small"): {
            "uid": uid("small"), "dup_of": uid("large"), "level": "bytes", "distance": 0, "group_id": uid("large")
        }
    }  # fmt: skip


def test_scope_image_ignores_the_text() -> None:
    rows = [row("a", sha256=digest("p")), row("b", sha256=digest("p"), text=digest("x")[:16], bytes=99)]
    assert list(found(rows, scope="image")) == [uid("b")]


def test_a_standing_row_outranks_a_larger_new_one() -> None:
    gone = found([row("new", digest("h"), pixels=900)], [row("old", digest("h"), pixels=1)])
    assert gone[uid("new")]["dup_of"] == uid("old")


def test_standing_rows_never_go() -> None:
    assert found([], [row("a", digest("h")), row("b", digest("h"), sha256=digest("a"))]) == {}


@pytest.mark.parametrize(("bits", "goes"), [(0, True), (31, True), (32, False)])
def test_the_radius_is_inclusive(bits: int, goes: bool) -> None:
    pdq = digest("h")
    assert bool(found([row("a", pdq), row("b", flipped(pdq, *range(bits)))])) is goes


@pytest.mark.parametrize(("quality", "goes"), [(50, True), (49, False), (None, False)])
def test_a_hash_of_low_quality_says_nothing(quality: int | None, goes: bool) -> None:
    assert bool(found([row("a", digest("h")), row("b", digest("h"), pdq_quality=quality)])) is goes


def test_another_colour_is_another_image() -> None:
    assert found([row("austria", digest("flag")), row("botswana", digest("flag"), colour=RED)]) == {}


def test_levels_that_are_off_drop_nothing() -> None:
    rows = [row("a", digest("h")), row("b", digest("h"), sha256=digest("a"))]
    assert found(rows, levels={"bytes": False, "pdq": False}) == {}
    assert [line["level"] for line in found(rows, levels={"pdq": 0}).values()] == ["perceptual"]
    assert [line["level"] for line in found(rows, levels={"bytes": True}).values()] == ["bytes"]


def test_the_witness_by_bytes_may_go_by_pdq_and_the_group_ends_at_the_row_that_stays() -> None:
    pdq = digest("h")
    rows = [
        row("best", pdq, pixels=9),
        row("copy", flipped(pdq, 1, 2), pixels=8),
        row("same bytes", flipped(pdq, 1, 2), pixels=7, sha256=digest("copy")),
    ]
    gone = found(rows)
    assert (gone[uid("same bytes")]["level"], gone[uid("same bytes")]["dup_of"]) == ("bytes", uid("copy"))
    assert (gone[uid("copy")]["level"], gone[uid("copy")]["distance"]) == ("perceptual", 2)
    assert {line["group_id"] for line in gone.values()} == {uid("best")}


def test_rank_takes_any_number_and_null_is_last() -> None:
    scored = ROWS.append(pa.field("clip_score", pa.float32()))
    rows = [row("none", clip_score=None), row("low", clip_score=0.1), row("high", clip_score=0.3)]
    rows = [{**line, "sha256": digest("p")} for line in rows]
    made = find_duplicates(
        pa.Table.from_pylist(rows, schema=scored), scored.empty_table(), Dedupe(rank=["clip_score", "uid"])
    )
    assert set(made["dup_of"].to_pylist()) == {uid("high")}


def test_an_unknown_rank_and_a_radius_out_of_reach_are_refused() -> None:
    with pytest.raises(InputError, match=r"dedupe\.rank: sharpness is not a number"):
        found([row("a")], rank=["sharpness"])
    with pytest.raises(InputError, match=r"dedupe\.levels\.pdq is 40: give 0 to 31"):
        found([row("a")], levels={"pdq": 40})


def test_no_rows_give_an_empty_table() -> None:
    assert find_duplicates(NO_ROWS, NO_ROWS, Dedupe()).schema == FOUND


@pytest.mark.parametrize("order", ["along", "against", "random"])
def test_a_chain_does_not_collapse(order: str) -> None:
    """200 points, each 10 bits from the next: neighbours to the third match, ends do not."""
    rng = np.random.default_rng(4)
    hashes = [digest("first")]
    for link in range(199):
        hashes.append(flipped(hashes[-1], *((10 * link + bit) % 256 for bit in range(10))))
    ranks = {"along": range(200, 0, -1), "against": range(200), "random": rng.permutation(200).tolist()}[order]
    rows = [row(f"{n}", pdq, pixels=int(rank)) for n, (pdq, rank) in enumerate(zip(hashes, ranks, strict=True))]
    check(rows, 0, find_duplicates(table(rows), NO_ROWS, Dedupe()), 31)


@dataclass
class Case:
    rows: list[dict[str, Any]]
    standing: int
    scope: str


@st.composite
def cases(draw: st.DrawFn) -> Case:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    heads = [rng.bytes(32) for _ in range(draw(st.integers(1, 4)))]
    rows = []
    for number in range(draw(st.integers(0, 40))):
        pdq = near(heads[int(rng.integers(len(heads)))], int(rng.choice([0, 2, 6, 10, 16, 20])), rng)
        values: dict[str, Any] = {"pixels": int(rng.integers(3)), "text": digest(f"{rng.integers(2)}")[:16]}
        values |= {"sha256": digest(f"{rng.integers(30)}"), "colour": GREY if rng.random() < 0.8 else RED}
        rows.append(row(f"{number}", pdq, **values))
    scope = draw(st.sampled_from(["pair", "image"]))
    kept = greedy(rows, 0, 31, scope) if draw(st.booleans()) else []
    standing = [rows[n] for n in kept[: len(kept) // 2]]
    return Case(standing + [line for line in rows if line not in standing], len(standing), scope)


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(cases(), st.integers(1, 40))
def test_random_groups_as_brute_force_finds_them(case: Case, small: int) -> None:
    standing, new = table(case.rows[: case.standing]), table(case.rows[case.standing :])
    chosen = Dedupe(scope=case.scope)
    whole = find_duplicates(new, standing, chosen)
    check(case.rows, case.standing, whole, 31, case.scope)
    shuffled = new.take(np.random.default_rng(1).permutation(len(new)))
    assert find_duplicates(shuffled, standing, chosen, threads=3).equals(whole)
    with pytest.MonkeyPatch.context() as patch:  # tables in place of comparing all with all
        patch.setattr(search, "SMALL", small)
        by_tables = find_duplicates(new, standing, chosen.model_copy(update={"levels": {"bytes": True, "pdq": 24}}))
        assert find_duplicates(shuffled, standing, chosen, 7).equals(find_duplicates(new, standing, chosen, 2))
    check(case.rows, case.standing, by_tables, 24, case.scope)


def check(rows: list[dict], standing: int, made: pa.Table, radius: int, scope: str = "pair") -> None:
    """The rows that stay are brute force's; every witness matches, ranks higher and is kept by its level."""
    by_uid = {line["uid"].hex(): line for line in rows}
    gone = {line["uid"]: line for line in made.to_pylist()}
    stays = {rows[n]["uid"].hex() for n in greedy(rows, standing, radius, scope)}
    assert by_uid.keys() - gone.keys() == stays
    assert made["uid"].to_pylist() == sorted(gone)
    for line in gone.values():
        mine, witness = by_uid[line["uid"]], by_uid[line["dup_of"]]
        assert line["group_id"] in stays
        if line["level"] == "bytes":
            assert mine["sha256"] == witness["sha256"]
            assert line["dup_of"] not in gone or gone[line["dup_of"]]["level"] == "perceptual"
        else:
            assert line["dup_of"] == line["group_id"]
            assert line["distance"] == apart(mine, witness) <= radius
            assert mine["colour"] == witness["colour"]
        assert scope == "image" or mine["text"] == witness["text"]


def greedy(rows: list[dict], standing: int, radius: int, scope: str) -> list[int]:
    """Positions of the rows that stay, taken best first, level by level."""
    order = sorted(
        range(len(rows)), key=lambda n: (n >= standing, -rows[n]["pixels"], -rows[n]["bytes"], rows[n]["uid"])
    )

    def taken(order: list[int], match: Any) -> list[int]:
        kept: list[int] = []
        for n in order:
            alike = (scope == "image" or rows[n]["text"] == rows[k]["text"] for k in kept)
            if n < standing or not any(a and match(rows[n], rows[k]) for a, k in zip(alike, kept, strict=True)):
                kept.append(n)
        return kept

    by_bytes = taken(order, lambda a, b: a["sha256"] == b["sha256"])
    return taken(by_bytes, lambda a, b: apart(a, b) <= radius and a["colour"] == b["colour"])


def apart(a: dict, b: dict) -> int:
    return (int.from_bytes(a["pdq"]) ^ int.from_bytes(b["pdq"])).bit_count()
