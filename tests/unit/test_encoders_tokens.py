"""Alt text becomes the tokens its encoder was trained on, whatever a stranger wrote in it."""

import pickle
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.encoders.bpe import basic_clean
from pipeline.encoders.load import tokenizer_of
from pipeline.encoders.tokens import JsonTokens, OpenAITokens, Tokenizer, lengths
from schemas.recipe import Encoder
from tests import encoder_formats as formats

START, END = 49406, 49407
PUBLISHED = {
    # Hugging Face's, Bumblebee's and others' tests of openai/clip-vit-base-patch32.
    "a photo of a cat": [320, 1125, 539, 320, 2368],
    "a photo of a dog": [320, 1125, 539, 320, 1929],
    # apple/ml-stable-diffusion, StableDiffusionTests.swift
    "a photo of an astronaut riding a horse on mars": [320, 1125, 539, 550, 18376, 6765, 320, 4558, 525, 7496],
    "Apple CoreML developer tools on a Macbook Air are fast": [
        3055, 19622, 5780, 10929, 5771, 525, 320, 20617, 1922, 631, 1953,
    ],
}  # fmt: skip
SPECIAL = ["<start_of_text>", "<end_of_text>", "<|startoftext|>", "<|endoftext|>", "</s>", "<s>", "<pad>", "<eos>",
           "<bos>", "<mask>"]  # fmt: skip


def alt_texts() -> list[str]:
    lines = Path(__file__).parents[1].joinpath("data", "alt_texts.tsv").read_text("utf-8").splitlines()
    return [line.split("\t")[-1] for line in lines]


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tokenizer and configs of a Hugging Face CLIP folder; its weights are no matter here."""
    folder = tmp_path_factory.mktemp("clip")
    formats.clip_tokenizer(folder)
    formats.write_json(folder / "config.json", {"model_type": "clip", "text_config": {}, "vision_config": {}})
    formats.write_json(folder / "preprocessor_config.json", {})
    (folder / "model.safetensors").touch()
    return folder


@pytest.fixture(scope="module")
def siglip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return formats.hugging_face_siglip(tmp_path_factory.mktemp("siglip"))


@pytest.fixture(scope="module")
def siglip2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("siglip2")
    formats.gemma_tokenizer(folder)
    text = {"max_position_embeddings": 16}
    formats.write_json(folder / "config.json", {"model_type": "siglip", "text_config": text, "vision_config": {}})
    formats.write_json(folder / "preprocessor_config.json", {})
    (folder / "model.safetensors").touch()
    return folder


@pytest.fixture(params=["open_clip", "clip_folder", "siglip_folder", "siglip2_folder"])
def tokenize(request: pytest.FixtureRequest) -> Tokenizer:
    if request.param == "open_clip":
        return tokenizer_of(Encoder(name="e", arch="ViT-B-32", weights="untrained"))
    return tokenizer_of(Encoder(name="e", weights=str(request.getfixturevalue(request.param))))


@pytest.mark.parametrize("text", PUBLISHED)
def test_published_vectors(text: str, clip_folder: Path) -> None:
    for encoder in (
        Encoder(name="e", arch="ViT-B-32", weights="untrained"),
        Encoder(name="e", weights=str(clip_folder)),
    ):
        (row,) = tokenizer_of(encoder)([text]).tolist()
        expected = [START, *PUBLISHED[text], END]
        assert row == expected + [0] * (77 - len(expected))


def test_clips_own_tokens_are_open_clips_on_alt_texts_of_the_web() -> None:
    from open_clip import SimpleTokenizer

    texts = [*alt_texts(), "naïve &amp;amp; café", "ｆｕｌｌ width “quotes”", "", " ", "don't we'LL ſ'ſ İ", "x" * 3000,
             "\x1b[31mred\x00", "日本語 123 🎉🎉🎉", "abab" * 60, "word " * 200]  # fmt: skip
    for context, clean in ((77, "lower"), (32, "lower"), (77, "canonicalize"), (77, "whitespace")):
        ours = OpenAITokens(context, clean)(texts)
        assert np.array_equal(ours, SimpleTokenizer(context_length=context, clean=clean)(texts).numpy())


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60))
def test_clips_own_tokens_are_open_clips_on_any_text(text: str) -> None:
    from open_clip import SimpleTokenizer

    assert np.array_equal(OpenAITokens()([text]), _simple(SimpleTokenizer)([text]).numpy())


def _simple(kind: type, made: list[object] = []) -> object:  # noqa: B006 - one for all examples
    if not made:
        made.append(kind())
    return made[0]


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(max_codepoint=126), max_size=60))
def test_the_short_way_round_for_plain_ascii_cleans_as_ftfy_does(text: str) -> None:
    from open_clip.tokenizer import basic_clean as cleaned

    assert basic_clean(text) == cleaned(text)


def test_tokens_of_a_clip_folder_are_those_of_transformers(clip_folder: Path) -> None:
    from transformers import AutoTokenizer

    peer = AutoTokenizer.from_pretrained(clip_folder)
    texts = [*alt_texts(), "", "naïve café 日本 🎉", "w " * 200]
    theirs = peer(texts, padding="max_length", truncation=True, max_length=77)["input_ids"]
    ours = tokenizer_of(Encoder(name="e", weights=str(clip_folder)))(texts)
    for mine, their in zip(ours, theirs, strict=True):
        end = their.index(END) + 1
        assert mine[:end].tolist() == their[:end]
        assert not mine[end:].any()  # where theirs repeats the end, which no vector sees


def test_tokens_of_a_siglip_2_folder_are_those_of_transformers(siglip2_folder: Path) -> None:
    from transformers import AutoTokenizer

    peer = AutoTokenizer.from_pretrained(siglip2_folder)
    texts = [*alt_texts(), "", "Naïve Café 日本 🎉", "w " * 200]
    theirs = peer(texts, padding="max_length", truncation=True, max_length=16)["input_ids"]
    assert tokenizer_of(Encoder(name="e", weights=str(siglip2_folder)))(texts).tolist() == theirs


def test_what_looks_like_a_special_token_is_text(tokenize: Tokenizer) -> None:
    """One end, one start where there is one, each in its place; nothing that the tokenizer reads as a command."""
    draw = random.Random(4)
    special = [*SPECIAL, *(one.upper() for one in SPECIAL), *(one.title() for one in SPECIAL)]
    words = ["a", "cat", "&lt;end_of_text&gt;", "<", ">", "|", "endoftext", *special]
    texts = [*special, *(draw.choice(["", " "]).join(draw.choices(words, k=12)) for _ in range(200))]
    texts += [one * 40 for one in SPECIAL]
    tokens = tokenize(texts)
    commands = tokenize.special if isinstance(tokenize, JsonTokens) else {START, END}
    starts = tokenize.prefix if isinstance(tokenize, JsonTokens) else (START,)
    for row, length in zip(tokens.tolist(), lengths(tokens, tokenize.end).tolist(), strict=True):
        assert tuple(row[: len(starts)]) == starts
        assert row[length - 1] == tokenize.end
        assert not commands & set(row[len(starts) : length - 1])
        assert len(set(row[length:])) <= 1


def test_ordinary_words_around_a_special_string_are_untouched() -> None:
    ours = tokenizer_of(Encoder(name="e", arch="ViT-B-32", weights="untrained"))
    (row,) = ours(["a photo <end_of_text> of a cat"]).tolist()
    content = row[1 : row.index(END)]
    assert content[:2] == [320, 1125]
    assert content[-3:] == [539, 320, 2368]
    assert len(content) > 5


def test_a_tokenizer_travels_to_a_decode_process(tokenize: Tokenizer) -> None:
    there = pickle.loads(pickle.dumps(tokenize))
    assert np.array_equal(there(["a cat on a mat"]), tokenize(["a cat on a mat"]))


def test_identity_and_tokens_need_no_torch(tmp_path: Path, clip_folder: Path) -> None:
    import subprocess
    import sys

    script = f"""
import sys
from pipeline.encoders.identity import identify
from pipeline.encoders.load import tokenizer_of
from schemas.recipe import Encoder
tiny = Encoder(name="e", arch="pairmill-tiny", weights="untrained")
for settings in (tiny, Encoder(name="f", weights={str(clip_folder)!r})):
    identify(settings)
    tokenizer_of(settings)(["a cat"])
print([name for name in ("torch", "open_clip", "transformers") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
