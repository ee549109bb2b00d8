"""jobs.retract between real builds: what was withdrawn is asked for no more, and stored no more, whatever brings it."""

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from jobs.demo.web import Web
from pipeline.storage import LocalStore
from tests.adoptable import add_datacomp_metadata, make_download
from tests.running import endings, job, more_hits, stage_folder, write_recipe
from tests.traces_left import needles, traces

DEDUPE = {"levels": {"bytes": True, "pdq": 31}, "scope": "image"}


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    with Web(tmp_path_factory.mktemp("web"), rows=400, seed=5) as web:
        yield web


@pytest.fixture(scope="module")
def recipe(web: Web, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "r.yaml"
    return write_recipe(path, web.recipe, shard={"number_sample_per_shard": 50}, dedupe=DEDUPE)


@pytest.fixture(scope="module")
def finished(web: Web, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("finished") / "root"
    done = job("build", "--recipe", recipe, "--input", web.list_path, "--output", root)
    assert done.returncode == 0, done.stderr
    return root


@pytest.fixture
def root(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "root"))


def rows(root: Path, name: str) -> list[dict[str, Any]]:
    """A published table's rows, from the files that latest.json names."""
    files = json.loads((root / "tables" / name / "latest.json").read_text())["files"]
    return [row for file in files for row in pq.read_table(root / file["path"]).to_pylist()]


def retract(root: Path, tmp_path: Path, *lines: str, flags: tuple[str, ...] = ()) -> str:
    (tmp_path / "list.txt").write_text("\n".join(lines) + "\n")
    done = job("retract", root, "--list", tmp_path / "list.txt", "--why", "the owner asked", *flags)
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


def a_group(root: Path) -> tuple[str, str]:
    """uids of a witness in the dataset and of the only copy that gave way to it: the same bytes, from another URL."""
    url = {row["uid"]: row["url"] for row in rows(root, "outcomes")}
    duplicates = rows(root, "duplicates")
    size = Counter(row["group_id"] for row in duplicates)
    return next(
        (row["dup_of"], row["uid"])
        for row in duplicates
        if row["level"] == "bytes" and size[row["group_id"]] == 1 and url[row["dup_of"]] != url[row["uid"]]
    )


def verified(root: Path) -> bool | str:
    """True, or what is wrong."""
    done = job("verify", root)
    return done.returncode == 0 or str(done.stdout)


def test_the_same_input_again_brings_no_request_and_no_row(web: Web, recipe: Path, root: Path, tmp_path: Path) -> None:
    before, store = rows(root, "outcomes"), LocalStore(root)
    everywhere = needles(store, before, {row["uid"]: row["pdq"] for row in rows(root, "hashes")})
    witness, copy = a_group(root)
    host = next(row for row in before if row["status"] == "ok" and row["uid"] not in (witness, copy))["url"]
    host = f"host:{host.split('/')[2].split(':')[0]}"
    retract(root, tmp_path, f"uid:{witness}", host)
    left = rows(root, "outcomes")
    uids = {row["uid"] for row in left}
    assert not {witness, copy} & uids, "the whole group of a witness goes"
    gone = [row for row in before if row["uid"] not in uids]
    stays = set(needles(store, left, {row["uid"]: row["pdq"] for row in rows(root, "hashes")}))
    texts = b"\n".join(row["text"].encode() for row in [*left, *rows(root, "rejects")] if row["text"])
    wanted = [value for value in everywhere if value not in stays and value not in texts]
    assert wanted
    assert traces(store, wanted) == []
    assert verified(root) is True
    hits, dataset = web.hits(), sorted((stage_folder(root, "shard") / "dataset").iterdir())
    again = job("build", "--recipe", recipe, "--input", web.list_path, "--output", root)
    assert again.returncode == 0, again.stderr
    renamed = tmp_path / "again.parquet"
    shutil.copyfile(web.list_path, renamed)
    more = job("build", "--recipe", recipe, "--input", renamed, "--output", root)
    assert more.returncode == 0, more.stderr
    assert more_hits(hits, web.hits()) == {}
    assert rows(root, "outcomes") == left
    assert sorted((stage_folder(root, "shard") / "dataset").iterdir()) == dataset
    ended = endings(root)
    numbers = {row["source_row"] for row in gone}
    assert {ended[str(renamed), number] for number in numbers} == {("refused", "retracted")}
    assert traces(store, wanted) == []
    assert verified(root) is True


def test_the_rest_of_a_kept_group_is_decided_again_by_the_next_build(
    web: Web, recipe: Path, root: Path, tmp_path: Path
) -> None:
    witness, copy = a_group(root)
    said = retract(root, tmp_path, f"uid:{witness}", flags=("--keep-group",))
    assert "the next jobs.build decides them again" in said
    uids = {row["uid"] for row in rows(root, "outcomes")}
    assert witness not in uids
    assert copy in uids
    assert verified(root) is True
    hits = web.hits()
    again = job("build", "--recipe", recipe, "--input", web.list_path, "--output", root)
    assert again.returncode == 0, again.stderr
    assert more_hits(hits, web.hits()) == {}
    assert {row["uid"]: row["kept"] for row in rows(root, "decisions")}[copy] is True
    samples = [
        uid
        for path in (stage_folder(root, "shard") / "dataset").glob("*.parquet")
        for uid in pq.read_table(path, columns=["uid"])["uid"].to_pylist()
    ]
    assert samples.count(copy) == 1
    assert len(samples) == len(set(samples))
    assert verified(root) is True


def test_bytes_that_were_withdrawn_are_stored_from_no_other_url(
    web: Web, recipe: Path, finished: Path, tmp_path: Path
) -> None:
    witness, copy = a_group(finished)
    known = {row["uid"]: row for row in rows(finished, "outcomes")}
    listed = pq.read_table(web.list_path)
    urls = listed["url"].to_pylist()
    for name, uid in (("first", witness), ("second", copy)):
        place = urls.index(known[uid]["url"])
        pq.write_table(listed.slice(place, 1), tmp_path / f"{name}.parquet")
    root = tmp_path / "root"
    first = job("build", "--recipe", recipe, "--input", tmp_path / "first.parquet", "--output", root)
    assert first.returncode == 0, first.stderr
    everywhere = needles(LocalStore(root), rows(root, "outcomes"), {r["uid"]: r["pdq"] for r in rows(root, "hashes")})
    retract(root, tmp_path, f"uid:{witness}")
    second = job("build", "--recipe", recipe, "--input", tmp_path / "second.parquet", "--output", root)
    assert second.returncode == 0, second.stderr
    (row,) = rows(root, "outcomes")
    assert (row["uid"], row["status"], row["reason"], row["detail"]) == (
        copy, "refused", "blocklisted", "retraction 0001",
    )  # fmt: skip
    assert (row["sha256"], row["md5"], row["bytes"], row["pool_file"]) == (None, None, None, None)
    assert traces(LocalStore(root), [value for value in everywhere if value.decode("latin-1") != row["text"]]) == []
    assert verified(root) is True


def test_a_build_finishes_a_retraction_that_was_killed(web: Web, recipe: Path, root: Path, tmp_path: Path) -> None:
    witness, _ = a_group(root)
    (tmp_path / "list.txt").write_text(f"uid:{witness}\n")
    fault = {"PAIRMILL_FAULT": f"after-record@dedupe:kill:{tmp_path / 'killed'}"}
    killed = job("retract", root, "--list", tmp_path / "list.txt", "--why", "the owner asked", env=fault)
    assert killed.returncode == -9
    hits = web.hits()
    again = job("build", "--recipe", recipe, "--input", web.list_path, "--output", root)
    assert again.returncode == 0, again.stderr
    assert "the retraction that was cut short is finished" in again.stderr
    assert more_hits(hits, web.hits()) == {}
    assert witness not in {row["uid"] for row in rows(root, "outcomes")}
    assert verified(root) is True


@pytest.mark.parametrize("copied", [False, True])
def test_an_adopted_row_goes_with_its_scores_and_vectors_and_tars_of_others_are_told(
    tmp_path: Path, copied: bool
) -> None:
    download = make_download(tmp_path / "download", 40)
    add_datacomp_metadata(download)
    root = tmp_path / "root"
    own = write_recipe(tmp_path / "r.yaml", {"dedupe": {"levels": {}}})
    adopted = job("adopt", download, "--output", root, *(["--copy"] if copied else []))
    assert adopted.returncode == 0, adopted.stderr
    built = job("build", "--recipe", own, "--output", root)
    assert built.returncode == 0, built.stderr
    before = rows(root, "outcomes")
    row = next(row for row in before if row["status"] == "ok")
    assert row["uid"] in {one["uid"] for one in rows(root, "embeddings")}
    said = retract(root, tmp_path, row["url"])
    for name in ("outcomes", "scores", "embeddings", "decisions"):
        assert row["uid"] not in {one["uid"] for one in rows(root, name)}
        assert len(rows(root, name)) > 0
    assert ("not ours to change" in said) == (not copied)
    receipt = json.loads((root / "retractions/0001.json").read_text())
    assert receipt["adopted"] == ({} if copied else {row["pool_file"]: 1})
    wanted = [row[name].encode() for name in ("uid", "url", "text", "sha256", "pool_sha256", "src_uid")]
    assert traces(LocalStore(root), wanted) == []
    assert verified(root) is True
