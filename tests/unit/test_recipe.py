"""Recipes: what is refused and how it is said, and which keys make a stage's work new."""

import re

import pytest

from jobs.arguments import load_recipe, recipe_names
from jobs.build import main as build_main
from schemas.recipe import Recipe, RecipeError, fingerprint, parse_recipe


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"download": {"timout": 3}}, "recipe r.yaml: download.timout is unknown; did you mean timeout?"),
        ({"downlod": {}}, "recipe r.yaml: downlod is unknown; did you mean download?"),
        (
            {"download": {"per_host": {"conections": 3}}},
            "download.per_host.conections is unknown; did you mean connect",
        ),
        (
            {"download": {"image_size": "big"}},
            "recipe r.yaml: download.image_size is 'big': input should be a valid int",
        ),
        ({"download": {"image_size": 0}}, "download.image_size is 0: input should be greater than or equal to 1"),
        (
            {"embed": {"encoders": [{"name": "a", "weights": "w", "dtpye": "bf16"}]}},
            "recipe r.yaml: embed.encoders.0.dtpye is unknown; did you mean dtype?",
        ),
        ({"embed": {"encoders": [{"name": "a"}]}}, "recipe r.yaml: embed.encoders.0.weights is missing: file"),
        ({"select": {"top": {"colum": "x"}}}, "recipe r.yaml: select.top.column is missing: column ranked, descending"),
        (
            {"select": {"top": {"column": "x", "count": 1, "off": "pool"}}},
            "recipe r.yaml: select.top.off is unknown; did you mean of?",
        ),
        ([1, 2], "recipe r.yaml: expected sections such as download:, got list"),
    ],
)
def test_a_wrong_recipe_is_refused_in_one_line_that_names_the_place_and_the_way_out(data: object, message: str) -> None:
    with pytest.raises(RecipeError) as error:
        parse_recipe(data, "r.yaml")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_parses(name: str) -> None:
    load_recipe(name, [])


def test_a_setting_on_the_command_line_beats_the_recipe() -> None:
    recipe = load_recipe("default", ["download.image_size=128", "download.per_host.connections=2", "gates.a=true"])
    assert recipe.download.image_size == 128
    assert recipe.download.per_host.connections == 2


def test_an_unknown_recipe_names_the_nearest_shipped_one() -> None:
    with pytest.raises(RecipeError, match="did you mean default"):
        load_recipe("defualt", [])


def test_a_field_that_shapes_results_changes_its_stage_and_the_set_level_stages_after_it() -> None:
    encoder = "embed.encoders=[{name: b32, weights: untrained}]"
    before, after = (load_recipe("default", [encoder, *more]) for more in ([], ["download.image_size=128"]))
    old, new = fingerprint(before, "download", {}), fingerprint(after, "download", {})
    assert old != new
    assert fingerprint(before, "shard", {"download": old}) != fingerprint(after, "shard", {"download": new})
    assert fingerprint(before, "embed/b32", {"download": old}) == fingerprint(after, "embed/b32", {"download": new})


@pytest.mark.parametrize(
    "setting",
    ["timeout=99", "retries=0", "min_success=0.9", "user_agent_token=x", "max_bytes=5", "per_host.connections=1"],
)
def test_limits_gates_and_names_change_no_fingerprint(setting: str) -> None:
    changed = load_recipe("default", [f"download.{setting}"])
    assert fingerprint(changed, "download", {}) == fingerprint(Recipe(), "download", {})


def test_ingest_settings_belong_to_batches_and_change_no_fingerprint() -> None:
    changed = load_recipe("default", ["ingest.dedupe=url"])
    assert fingerprint(changed, "ingest", {}) == fingerprint(Recipe(), "ingest", {})


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("dedupe.levels.pqd=3", "dedupe.levels.pqd is unknown; did you mean pdq?"),
        ("download.consent.c2paa=false", "download.consent.c2paa is unknown; did you mean c2pa?"),
    ],
)
def test_an_unknown_key_of_a_closed_dict_names_the_nearest(setting: str, told: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(told)):
        load_recipe("default", [setting])


def test_setting_one_key_of_a_default_leaves_the_others() -> None:
    assert load_recipe("default", ["dedupe.levels.pdq=20"]).dedupe.levels == {"bytes": True, "pdq": 20}
    assert load_recipe("default", ["download.per_host.connections=2"]).download.per_host.per_second == 20


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("select.rules.r=widht > 3", "widht"),
        ("gates.g=SELECT nothing FROM nowhere", "gate"),
        ("dedupe.against={imagenet: /nowhere}", "/nowhere"),
        ("embed.num_gpus=1.5", "num_gpus is 1.5"),
        ("semantic.overlap_eps=0.1", "semantic.encoder"),
    ],
)
def test_a_recipe_that_cannot_be_run_is_not_printed(
    capsys: pytest.CaptureFixture[str], setting: str, message: str
) -> None:
    assert build_main(["--recipe", "default", "--print-recipe"]) == 0
    assert "rules:" in capsys.readouterr().out
    assert build_main(["--recipe", "default", "--print-recipe", "--set", setting]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.out == ""
