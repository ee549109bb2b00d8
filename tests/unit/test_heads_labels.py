"""Label lists as heads: what CLIP's own zero-shot recipe gives on the same towers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs.heads import main
from pipeline.encoders.encoder import LoadedEncoder
from pipeline.encoders.load import load
from pipeline.errors import InputError
from pipeline.heads.head import Evaluator
from pipeline.heads.labels import read_labels, zero_shot
from pipeline.heads.recipe import head_columns, heads_of
from schemas.recipe import Encoder, Recipe
from tests.tiny_clip import DIM, tiny_clip
from tests.unit.test_heads import units

torch.set_num_threads(1)
ANIMALS = """
templates: ["a photo of a {}.", "a {} in the {} house"]
labels:
  dog: [dog, puppy]
  other: landscape
"""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("encoders") / "tiny")


@pytest.fixture(scope="module")
def encoder(weights: Path) -> LoadedEncoder:
    return load(Encoder(name="tiny", weights=str(weights)))


def test_prompts_are_every_name_in_every_template() -> None:
    labels = read_labels(ANIMALS.encode(), "animals.yaml")
    assert labels.prompts("dog") == [
        "a photo of a dog.", "a dog in the dog house", "a photo of a puppy.", "a puppy in the puppy house",
    ]  # fmt: skip
    assert labels.prompts("other") == ["a photo of a landscape.", "a landscape in the landscape house"]


def test_labels_given_as_a_list_are_named_after_themselves() -> None:
    labels = read_labels(b"labels: [Golden Retriever, cat]", "l.yaml")
    assert labels.columns("zs") == ["zs_golden_retriever", "zs_cat"]
    assert labels.prompts("golden_retriever") == ["Golden Retriever"]


@pytest.mark.parametrize("score", ["cosine", "probability"])
def test_scores_are_clips_own_zero_shot(score: str, weights: Path, encoder: LoadedEncoder) -> None:
    """open_clip's zero_shot_classifier and softmax, written out on its own model and tokenizer."""
    import open_clip

    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{weights}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{weights}")
    labels = read_labels(f"score: {score}\n{ANIMALS}".encode(), "animals.yaml")
    vectors = units(30, DIM)
    with torch.no_grad():
        classes = []
        for label in labels.labels:
            made = torch.nn.functional.normalize(model.encode_text(tokenizer(labels.prompts(label))), dim=-1)
            classes.append(torch.nn.functional.normalize(made.mean(dim=0), dim=-1))
        expected = torch.from_numpy(vectors) @ torch.stack(classes).T
        if score == "probability":
            expected = (model.logit_scale.exp() * expected).softmax(dim=-1)
    head = zero_shot(labels, "animals", encoder)
    np.testing.assert_allclose(Evaluator(head)(vectors), expected.numpy(), rtol=1e-4, atol=1e-5)
    assert head.spec.columns("animals") == ["animals_dog", "animals_other"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("labels: [dog]", "at least 2 labels"),
        ("labels: {dog: [dog], cat: []}", "labels.cat: list should have at least 1 item"),
        ("labels: [dog, cat]\ntemplates: [a photo]", "template 'a photo' has no {} for the label"),
        ("labels: {Dog: [dog], cat: [cat]}", "label 'Dog' is no name"),
        ("labels: [dog, cat]\nscore: logit", "score: input should be 'probability' or 'cosine'"),
        ("label: [dog, cat]", "labels: field required"),
        ("labels: [a dog, a-dog]", "two labels have the same name"),
        ("- dog", "expected labels: and templates:, got list"),
        ("labels: [", "is no YAML"),
    ],
)
def test_a_list_that_cannot_be_is_one_line(text: str, said: str) -> None:
    with pytest.raises(InputError, match=r"^l\.yaml: ") as caught:
        read_labels(text.encode(), "l.yaml")
    assert said in str(caught.value)


def test_a_recipe_with_several_encoders_must_say_whose_labels_they_are(tmp_path: Path, weights: Path) -> None:
    (tmp_path / "zs.yaml").write_text("labels: [dog, cat]")
    encoders = [{"name": name, "weights": str(weights)} for name in ("one", "two")]
    recipe = Recipe.model_validate({"embed": {"encoders": encoders, "heads": {"zs": str(tmp_path / "zs.yaml")}}})
    one, two = recipe.embed.encoders
    with pytest.raises(InputError, match="names no encoder; give encoder: one of one, two"):
        heads_of(recipe, one)
    (tmp_path / "zs.yaml").write_text("labels: [dog, cat]\nencoder: two")
    assert heads_of(recipe, one) == {}
    assert heads_of(recipe, two).keys() == {"zs_dog", "zs_cat"}
    assert head_columns(recipe.embed) == ["zs_cat", "zs_dog"]


def test_a_converted_head_is_bound_to_the_recipes_encoder(tmp_path: Path, weights: Path) -> None:
    torch.save(torch.nn.Linear(DIM, 1).state_dict(), tmp_path / "linear.pth")
    recipe = {"embed": {"encoders": [{"name": "one", "weights": str(weights)}],
                        "heads": {"aesthetic": str(tmp_path / "aesthetic.json")}}}  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    flags = ["--out", str(tmp_path / "aesthetic.json"), "--recipe", str(tmp_path / "recipe.yaml")]
    assert main(["laion-aesthetic", str(tmp_path / "linear.pth"), *flags]) == 0
    parsed = Recipe.model_validate(recipe)
    assert heads_of(parsed, parsed.embed.encoders[0]).keys() == {"aesthetic"}


def test_another_template_is_another_digest(tmp_path: Path, weights: Path) -> None:
    path = tmp_path / "zs.yaml"
    encoders = [{"name": "one", "weights": str(weights)}]
    recipe = Recipe.model_validate({"embed": {"encoders": encoders, "heads": {"zs": str(path)}}})
    path.write_text("labels: [dog, cat]")
    first = heads_of(recipe, recipe.embed.encoders[0])
    path.write_text(json.dumps({"labels": ["dog", "cat"], "templates": ["{}"]}))  # what was the default, said aloud
    assert heads_of(recipe, recipe.embed.encoders[0]) == first
    path.write_text(json.dumps({"labels": ["dog", "cat"], "templates": ["a {}"]}))
    assert heads_of(recipe, recipe.embed.encoders[0]) != first
