"""Alt text as token ids, by the encoder's own tokenizer, made without its towers and without torch.

Alt text comes from strangers. What looks like a special token in it ("</s>", "<|endoftext|>") is text here: every row
is one start (where the encoder has one), the content, one end, padding. A tokenizer whose vocabulary holds such a
string as an ordinary piece, as SentencePiece's may, has it taken out.
"""

import string
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.encoders.bpe import END, basic_clean, framed, token_ids
from pipeline.encoders.source import Source, find, read_json
from pipeline.errors import InputError
from schemas.recipe import Encoder

Tokens = NDArray[np.int64]
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ROLES = ("bos_token", "eos_token", "cls_token", "sep_token", "mask_token")
_ADDS = (("add_bos_token", "bos_token"), ("add_eos_token", "eos_token"))


def _spaces(text: str) -> str:
    return " ".join(text.split())


CLEAN: dict[str, Callable[[str], str]] = {
    "none": lambda text: text,
    "lower": lambda text: _spaces(basic_clean(text)).lower(),
    "whitespace": lambda text: _spaces(basic_clean(text)),
    "canonicalize": lambda text: _spaces(basic_clean(text).replace("_", " ").translate(_NO_PUNCTUATION).lower()),
    "siglip": lambda text: _spaces(text.lower().translate(_NO_PUNCTUATION)),  # transformers' SiglipTokenizer
    "siglip2": str.lower,  # transformers' Siglip2Tokenizer
}
"""What is done to a text before it is cut; the first three after none are open_clip's (tokenizer.py)."""


class Tokenizer(Protocol):
    """Texts as ids [n, context]; can be pickled."""

    @property
    def context(self) -> int:
        """Ids a text."""

    @property
    def largest(self) -> int:
        """The largest id there can be."""

    @property
    def end(self) -> int:
        """Id of the end; nothing after a row's first one is content."""

    def __call__(self, texts: Sequence[str]) -> Tokens: ...


def lengths(tokens: Tokens, end: int) -> Tokens:
    """Ids of each row [n] up to its end, the end included."""
    found = tokens == end
    counted: Tokens = np.where(found.any(axis=1), found.argmax(axis=1) + 1, tokens.shape[1])
    return counted


@dataclass(frozen=True)
class OpenAITokens:
    """CLIP's own vocabulary of 49,408."""

    context: int = 77
    clean: str = "lower"
    largest: int = END
    end: int = END

    def __call__(self, texts: Sequence[str]) -> Tokens:
        clean = CLEAN[self.clean]
        return framed([token_ids(clean(text), self.context - 2) for text in texts], self.context)


@dataclass(frozen=True)
class JsonTokens:
    """A tokenizer.json, of which only normalisation, cutting and vocabulary are used: the frame is put on here."""

    path: str
    context: int
    clean: str
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    padding: int
    special: frozenset[int]
    largest: int

    @property
    def end(self) -> int:
        return self.suffix[-1] if self.suffix else self.padding

    def __call__(self, texts: Sequence[str]) -> Tokens:
        clean, tokenizer = CLEAN[self.clean], _opened(self.path)
        tokens = np.full((len(texts), self.context), self.padding, np.int64)
        room = self.context - len(self.prefix) - len(self.suffix)
        for row, text in zip(tokens, texts, strict=True):
            ids = tokenizer.encode(clean(text), add_special_tokens=False).ids
            content = [id for id in ids if id not in self.special][:room]
            framed_ids = (*self.prefix, *content, *self.suffix)
            row[: len(framed_ids)] = framed_ids
        return tokens


@lru_cache(8)
def _opened(path: str) -> Any:
    from tokenizers import Tokenizer as Rust

    tokenizer = Rust.from_file(path)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True  # special strings in a text are text
    return tokenizer


def tokenizer_of(settings: Encoder) -> Tokenizer:
    """The encoder's tokenizer. Raises InputError where a file it needs is missing."""
    return tokenizer(find(settings))


def tokenizer(source: Source) -> Tokenizer:
    files = tokenizer_files(source)
    if source.kind == "hugging_face":
        text = (source.config or {}).get("text_config") or {}
        siglip = (source.config or {})["model_type"] == "siglip"
        context = text.get("max_position_embeddings", 64 if siglip else 77)
        if siglip:
            return _json_tokens(source, files, context, _hugging_face_clean(source, files))
        # A CLIP text tower sees nothing behind the end, so that padding may be 0 as open_clip's is.
        return replace(_json_tokens(source, files, context, "none"), padding=0)
    text = (source.config or {}).get("text_cfg", {})
    options = text.get("tokenizer_kwargs") or {}
    unknown = sorted(set(options) - {"clean", "strip_sep_token"})
    if unknown or text.get("tokenizer_mode"):
        raise InputError(f"{source.place}: tokenizer option {(unknown or ['tokenizer_mode'])[0]} is not known here")
    context = text.get("context_length", 77)
    if not files:
        return OpenAITokens(context, options.get("clean", "lower"))
    made = _json_tokens(source, files, context, options.get("clean", "whitespace"))
    if options.get("strip_sep_token"):  # CLIPA: the end is a zero
        made = replace(made, suffix=(0,) * len(made.suffix))
    return made


def tokenizer_files(source: Source) -> list[Path]:
    """tokenizer.json and what is said beside it; none for CLIP's own vocabulary, which open_clip carries."""
    if source.kind == "hugging_face":
        assert source.folder is not None
        return _beside(source, source.folder)
    text = (source.config or {}).get("text_cfg", {})
    repository = text.get("hf_tokenizer_name")
    if not repository:
        return []
    if source.folder is not None and (source.folder / "tokenizer.json").is_file():
        return _beside(source, source.folder)
    return _beside(source, _fetched(source, repository))


def _beside(source: Source, folder: Path) -> list[Path]:
    paths = [folder / name for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")]
    if not paths[0].is_file():
        raise InputError(
            f"{source.place}: {paths[0]} is missing; transformers.AutoTokenizer.from_pretrained(FOLDER)"
            ".save_pretrained(FOLDER) writes it"
        )
    return [path for path in paths if path.is_file()]


@lru_cache(64)
def _cached(repository: str) -> Path | str:
    """The folder in Hugging Face's cache, or why there is none; asked once a process."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    wanted = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"]
    try:
        with suppress(LocalEntryNotFoundError):  # the hub may have it
            folder = Path(snapshot_download(repository, allow_patterns=wanted, local_files_only=True))
            if (folder / "tokenizer.json").is_file():
                return folder
        return Path(snapshot_download(repository, allow_patterns=wanted))
    except Exception as error:  # noqa: BLE001 - whatever the hub or the network raises, the way out is the same
        said = str(error).strip().partition("\n")[0]
        return f"{type(error).__name__}: {said[:160]}"


def _fetched(source: Source, repository: str) -> Path:
    folder = _cached(repository)
    if isinstance(folder, str):
        where = f"beside the weights in {source.folder}" if source.folder else "into a folder with the weights"
        raise InputError(
            f"{source.place}: its tokenizer is tokenizer.json of {repository}, which is neither in the cache nor to be "
            f"fetched ({folder}); put it {where}"
        )
    return folder


def _hugging_face_clean(source: Source, files: list[Path]) -> str:
    said = _said(source, files).get("tokenizer_class") or "SiglipTokenizer"
    return "siglip" if str(said).startswith(("SiglipTokenizer", "T5Tokenizer")) else "siglip2"


def _said(source: Source, files: list[Path]) -> dict[str, Any]:
    said: dict[str, Any] = {}
    for path in reversed(files[1:]):
        said.update(read_json(path, source.settings))
    return said


def _json_tokens(source: Source, files: list[Path], context: int, clean: str) -> JsonTokens:
    path, said = files[0], _said(source, files)
    try:
        rust = _opened(str(path))
    except ModuleNotFoundError:
        raise InputError(f"{source.place}: {path} needs tokenizers: pip install 'pairmill[encode]'") from None
    except Exception as error:  # noqa: BLE001 - tokenizers raises bare Exception
        raise InputError(f"{source.place}: {path} cannot be read: {error}") from None

    def token(role: str) -> int | None:
        value = said.get(role)
        name = value.get("content") if isinstance(value, dict) else value
        id: int | None = rust.token_to_id(name) if isinstance(name, str) else None
        return id

    declared = read_json(path, source.settings)
    added = {one["id"] for one in declared.get("added_tokens") or [] if one.get("special")}
    roles = {id for role in _ROLES if (id := token(role)) is not None}
    special = frozenset(roles | (added - {token("unk_token"), rust.token_to_id("<unk>"), rust.token_to_id("[UNK]")}))
    prefix, suffix = _frame(rust, said, token)
    padding = token("pad_token")
    if padding is None:
        padding = (declared.get("padding") or {}).get("pad_id")
    if padding is None:
        raise InputError(f"{source.place}: neither {path} nor tokenizer_config.json beside it names a pad_token")
    if said.get("padding_side", "right") != "right":
        raise InputError(f"{source.place}: padding_side {said['padding_side']!r} of its tokenizer; only right is read")
    largest = max(rust.get_vocab(with_added_tokens=True).values())
    return JsonTokens(str(path), context, clean, prefix, suffix, padding, special, largest)


def _frame(
    rust: Any, said: dict[str, Any], token: Callable[[str], int | None]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What is put before and behind the content: as the config says, else as tokenizer.json's own template does."""
    if any(key in said for key, _ in _ADDS):
        first, last = (token(role) if said.get(key) else None for key, role in _ADDS)
        return tuple(id for id in [first] if id is not None), tuple(id for id in [last] if id is not None)
    encoding = rust.encode("a")
    mask = [*encoding.special_tokens_mask, 1]
    inside = [place for place, special in enumerate(mask) if not special] or [0]
    return tuple(encoding.ids[: inside[0]]), tuple(encoding.ids[inside[-1] + 1 :])
