"""The main job on the embedded web: every row as expected, nothing forbidden touched, and nothing done twice."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.demo.web import Web
from tests.running import endings, job, snapshot, stage_folder, table, write_recipe


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    with Web(tmp_path_factory.mktemp("web"), rows=600, seed=1) as web:
        yield web


@pytest.fixture(scope="module")
def built(web: Web, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Any]:
    """A finished build: its ROOT, its recipe, and the process that made it."""
    folder = tmp_path_factory.mktemp("built")
    recipe = write_recipe(folder / "r.yaml", web.recipe, shard={"number_sample_per_shard": 100})
    done = job("build", "--recipe", recipe, "--input", web.list_path, "--output", folder / "root")
    assert done.returncode == 0, done.stderr
    return folder / "root", recipe, done


def test_every_row_of_the_embedded_web_ends_as_expected(web: Web, built: tuple[Path, Path, Any]) -> None:
    ended = {row: ending for (_, row), ending in endings(built[0]).items()}
    expected = {number: pair.expected for number, pair in enumerate(web.pairs)}
    wrong = {
        row: (web.pairs[row].url, expected[row], ended.get(row)) for row in expected if ended.get(row) != expected[row]
    }
    assert not wrong
    assert len(ended) == len(expected)


def test_no_forbidden_address_is_ever_connected_to(web: Web, built: tuple[Path, Path, Any]) -> None:
    assert web.canary() == 0


def test_the_result_verifies(built: tuple[Path, Path, Any]) -> None:
    for flags in ([], ["--quick"], ["--sample", "0.5"]):
        checked = job("verify", built[0], *flags)
        assert checked.returncode == 0, checked.stdout + checked.stderr


def test_building_again_makes_no_request_and_touches_no_file(web: Web, built: tuple[Path, Path, Any]) -> None:
    root, recipe, _ = built
    hits, files = (
        web.hits(),
        {name: snapshot(root / name) for name in ("ingest", "download", "shard", "tables", "batches")},
    )
    again = job("build", "--recipe", recipe, "--input", web.list_path, "--output", root)
    assert again.returncode == 0, again.stderr
    assert web.hits() == hits
    assert {name: snapshot(root / name) for name in files} == files


def test_limits_and_names_may_change_without_a_request(web: Web, built: tuple[Path, Path, Any]) -> None:
    root, recipe, _ = built
    hits = web.hits()
    settings = [
        "--set",
        "download.timeout=9",
        "--set",
        "download.contact=mailto:a@b.example",
        "--set",
        "ray.pools.download=1",
    ]
    again = job("build", "--recipe", recipe, "--output", root, *settings)
    assert again.returncode == 0, again.stderr
    assert web.hits() == hits


def test_another_shard_size_makes_new_shards_beside_the_old_and_no_request(
    web: Web, built: tuple[Path, Path, Any]
) -> None:
    root, recipe, _ = built
    hits, old = web.hits(), stage_folder(root, "shard")
    kept = snapshot(old)
    again = job("build", "--recipe", recipe, "--output", root, "--set", "shard.number_sample_per_shard=50")
    assert again.returncode == 0, again.stderr
    assert web.hits() == hits
    assert snapshot(old) == kept
    assert len(list((root / "shard").iterdir())) == 2
    assert job("build", "--recipe", recipe, "--output", root).returncode == 0  # and back


def test_the_funnel_counts_every_input_row(web: Web, built: tuple[Path, Path, Any]) -> None:
    shown = json.loads(job("show", built[0], "--json").stdout)
    ingest = [row for row in shown["funnel"] if row["stage"] == "ingest"]
    assert sum(row["rows"] for row in ingest) == len(web.pairs)
    (run,) = [json.loads(path.read_text()) for path in (built[0] / "runs").glob("*.json")][:1]
    assert run["exit_code"] == 0
    assert run["funnel"]


def test_trace_tells_a_sample_from_its_input_row_to_its_shard(web: Web, built: tuple[Path, Path, Any]) -> None:
    outcomes = table(built[0], "outcomes").to_pylist()
    one = next(row for row in outcomes if row["status"] == "ok")
    for flags in (["--uid", one["uid"]], ["--url", one["url"]], ["--sha256", one["sha256"]]):
        told = job("trace", built[0], *flags)
        assert told.returncode == 0, told.stderr
        assert one["source"] in told.stdout
        assert "00000" in told.stdout


def test_a_plan_writes_and_requests_nothing(web: Web, built: tuple[Path, Path, Any], tmp_path: Path) -> None:
    hits = web.hits()
    planned = job("build", "--recipe", built[1], "--input", web.list_path, "--output", tmp_path / "new", "--plan")
    assert planned.returncode == 0, planned.stderr
    assert f"{len(web.pairs):,}" in planned.stdout
    assert not (tmp_path / "new" / "batches").exists()
    assert web.hits() == hits


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "download.timout=3"], "download.timout is unknown; did you mean timeout?"),
        (["--set", "gates.g=SELECT nothing FROM nowhere"], "gate"),
        (["--set", "ingest.prefilter.p=n_chrs > 3"], "n_chrs"),
        (["--set", "ingest.url_col=link"], "link"),
        (["--input", "/nowhere/at/all.parquet"], "/nowhere/at/all.parquet"),
        (["--no-such-flag"], "--no-such-flag"),
        (["--accept", "0099"], "0099"),
        (["--set", "select.rules.r=widht > 3"], "widht"),
        (["--set", "select.rules.duplicate=width > 3"], "select.rules.duplicate"),
        (["--set", "dedupe.eligible.r=sum(width) > 3"], "dedupe.eligible.r"),
        (["--set", "dedupe.levels={pdq: 40}"], "pdq is 40"),
        (["--set", "dedupe.rank=[beauty]"], "beauty"),
        (["--set", "dedupe.against={imagenet: /nowhere}"], "/nowhere"),
        (["--set", "select.decontaminate=[imagenet]"], "imagenet"),
        (["--set", "select.uids=/nowhere.npy"], "/nowhere.npy"),
        (["--set", "select.top={column: clip_score, fraction: 0.3}"], "give embed.encoders"),
        (["--set", "select.rules.aligned=clip_score >= 0.3"], "select.rules.aligned"),
        (["--set", "download.blocklists=/nowhere/list"], "/nowhere/list"),
        (["--set", "download.bbox_col=faces"], "add it to ingest.keep_columns"),
        (["--set", "download.allow_addresses=nonsense"], "nonsense"),
        (["--set", "download.ca_file=/nowhere/ca.pem"], "/nowhere/ca.pem"),
        (["--set", "download.image_size=[1"], "not YAML"),
    ],
)
def test_bad_input_is_one_line_with_exit_code_2(
    web: Web, built: tuple[Path, Path, Any], tmp_path: Path, arguments: list[str], message: str
) -> None:
    done = job("build", "--recipe", built[1], "--input", web.list_path, "--output", tmp_path / "r", *arguments)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "r" / "batches").exists()


def test_a_stage_whose_input_is_not_there_yet_says_which_job_to_run(
    web: Web, built: tuple[Path, Path, Any], tmp_path: Path
) -> None:
    recipe, root = built[1], tmp_path / "r"
    assert job("ingest", "--recipe", recipe, "--input", web.list_path, "--output", root).returncode == 0
    for path in root.glob("ingest/*/units/*.json"):
        path.unlink()
    early = job("download", "--recipe", recipe, "--output", root)
    assert early.returncode == 2
    assert "run jobs.ingest" in early.stderr
    assert not list(root.glob("download/*/complete.json"))


def test_a_folder_that_cannot_be_written_is_refused_by_name(web: Web, built: tuple[Path, Path, Any]) -> None:
    refused = job("build", "--recipe", built[1], "--input", web.list_path, "--output", "/proc/no-root")
    assert refused.returncode == 2
    assert "/proc/no-root" in refused.stderr


def test_a_failed_gate_is_exit_3_with_results_written_until_somebody_accepts_it(
    web: Web, built: tuple[Path, Path, Any]
) -> None:
    root, recipe, _ = built
    sql = "(SELECT sum(rows) FILTER (status = 'ok') > 0.99 * sum(rows) FROM funnel WHERE stage = 'download')"
    gate = ["--set", f"gates.mostly_ok={sql}"]
    failed = job("build", "--recipe", recipe, "--output", root, *gate)
    assert failed.returncode == 3, failed.stderr
    assert "mostly_ok" in failed.stderr
    accepted = job("build", "--recipe", recipe, "--output", root, *gate, "--accept", "0001")
    assert accepted.returncode == 0, accepted.stderr
    assert job("build", "--recipe", recipe, "--output", root, *gate).returncode == 0


def test_limit_takes_the_same_rows_every_time(web: Web, built: tuple[Path, Path, Any], tmp_path: Path) -> None:
    taken = []
    for name in ("a", "b"):
        root = tmp_path / name
        done = job(
            "build",
            "--recipe",
            built[1],
            "--input",
            web.list_path,
            "--output",
            root,
            "--limit",
            40,
            "--until",
            "ingest",
        )
        assert done.returncode == 0, done.stderr
        taken.append(set(endings_of_ingest(root)))
    assert taken[0] == taken[1]
    assert len(taken[0]) == 40
    other = job("build", "--recipe", built[1], "--output", tmp_path / "a", "--input", web.list_path, "--limit", 41)
    assert other.returncode == 2


def endings_of_ingest(root: Path) -> list[tuple[str, int]]:
    rows = table(root, "pairs").select(["source", "source_row"]).to_pylist()
    rows += table(root, "rejects").select(["source", "source_row"]).to_pylist()
    return [(row["source"], row["source_row"]) for row in rows]
