"""Evaluation sets in the layout of CLIP_benchmark's webdatasets (clip_benchmark/datasets/builder.py), in local folders.

FOLDER/classnames.txt                           a class a line, by its number from 0
FOLDER/zeroshot_classification_templates.txt    a prompt a line, {c} for the class
FOLDER/dataset_type.txt                         classification (default), multilabel or retrieval
FOLDER/metrics.txt                              names of metrics, the main one first (optional)
FOLDER/test/nshards.txt                         how many tars there are: 0.tar …
FOLDER/test/0.tar                               KEY.webp|png|jpg|jpeg with KEY.cls (a number), KEY.npy (multilabel:
                                                0 or 1 a class; else metadata, a number a field), KEY.txt (captions)
"""

import difflib
import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError

KINDS = ("classification", "multilabel", "retrieval")
NO_LABEL = -1
"""Of a sample whose label is one of its metadata, by a task's `objective`."""
IMAGES = ("webp", "png", "jpg", "jpeg", "0.webp")


@dataclass(frozen=True)
class Sample:
    """`label` of classification, `labels` uint8 [classes] of multilabel, `captions` of retrieval; the rest is None."""

    key: str
    image: bytes
    label: int | None = None
    labels: NDArray[np.uint8] | None = None
    captions: tuple[str, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Dataset:
    name: str
    folder: Path
    kind: str
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    metrics: tuple[str, ...]

    def has(self, split: str) -> bool:
        return (self.folder / split).is_dir()

    def samples(self, split: str, fields: tuple[str, ...] = ()) -> Iterator[Sample]:
        """In the tars' order. `fields` names the numbers of a classification's .npy. Raises InputError."""
        for tar in tars(self.folder / split):
            for key, members in _grouped(tar):
                yield self._sample(f"{tar}: {key}", key, members, fields)

    def _sample(self, place: str, key: str, members: dict[str, bytes], fields: tuple[str, ...]) -> Sample:
        image = next((members[suffix] for suffix in IMAGES if suffix in members), None)
        if image is None:
            raise InputError(f"{place} has no image: {', '.join(IMAGES[:4])}; it has {', '.join(sorted(members))}")
        metadata = _metadata(place, members, fields if self.kind != "multilabel" else ())
        if self.kind == "retrieval":
            captions = tuple(_text(place, members, "txt").splitlines())
            if not captions:
                raise InputError(f"{place}.txt is empty: retrieval needs a caption")
            return Sample(key, image, captions=captions, metadata=metadata)
        if self.kind == "multilabel":
            labels = _array(place, members)
            if self.classes and labels.shape != (len(self.classes),):
                raise InputError(
                    f"{place}.npy has the shape {labels.shape}, classnames.txt {len(self.classes)} classes"
                )
            return Sample(key, image, labels=(labels > 0).astype(np.uint8), metadata=metadata)
        if "cls" not in members and fields:
            return Sample(key, image, label=NO_LABEL, metadata=metadata)
        said = _text(place, members, "cls").strip()
        if not said.isdecimal() or (self.classes and int(said) >= len(self.classes)):
            raise InputError(f"{place}.cls says class {said!r}; {self.folder} has {len(self.classes)} classes, from 0")
        return Sample(key, image, label=int(said), metadata=metadata)


def find(name: str, root: Path, folder: str | None = None) -> Path:
    """The folder of a dataset: as given, or below `root` under the names in use. Raises InputError."""
    plain = name.replace("/", "-")
    tried = [folder] if folder else [name, plain, f"wds_{plain}", f"wds_{plain}_test", f"wds_vtab-{plain}_test"]
    for candidate in tried:
        if (root / candidate).is_dir():
            return root / candidate
    near = difflib.get_close_matches(plain, [path.name for path in root.iterdir()] if root.is_dir() else [], n=1)
    hint = (
        f"did you mean {near[0]}?" if near else "--data DIR says where datasets lie, --only NAME... leaves others out"
    )
    raise InputError(f"dataset {name}: there is no folder {root / tried[0]}{'' if folder else ' (nor wds_…)'}; {hint}")


def open_dataset(name: str, folder: Path) -> Dataset:
    """Raises InputError where a file is not what the layout says."""
    if not folder.is_dir():
        raise InputError(f"dataset {name}: there is no folder {folder}")
    kind = (_lines(folder / "dataset_type.txt") or ["classification"])[0].lower()
    if kind not in KINDS:
        raise InputError(f"{folder / 'dataset_type.txt'} says {kind}; known: {', '.join(KINDS)}")
    classes = _lines(folder / "classnames.txt")
    if kind != "retrieval" and not classes:
        raise InputError(f"dataset {name}: {folder / 'classnames.txt'} is missing or empty: a class a line")
    templates = _lines(folder / "zeroshot_classification_templates.txt")
    metrics = _lines(folder / "metrics.txt")
    return Dataset(name, folder, kind, tuple(classes), tuple(templates), tuple(metrics))


def tars(folder: Path) -> list[Path]:
    """The tars of a split, in order; as many as nshards.txt says. Raises InputError."""
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such split")
    said = _lines(folder / "nshards.txt")
    if not said:
        raise InputError(f"{folder / 'nshards.txt'} is missing: it says how many tars the split has")
    if not said[0].isdecimal():
        raise InputError(f"{folder / 'nshards.txt'} says {said[0]!r}, which is no number of tars")
    paths = [folder / f"{number}.tar" for number in range(int(said[0]))]
    missing = [path for path in paths if not path.is_file()]
    extra = {path.name for path in folder.glob("*.tar")} - {path.name for path in paths}
    if missing or extra or not paths:
        wrong = f"{missing[0].name} is missing" if missing else f"{min(extra, default='no tar')} is there too"
        raise InputError(f"{folder / 'nshards.txt'} says {len(paths)} tars, but {wrong}")
    return paths


def _grouped(tar: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Members by their key: the name up to the first dot of its last part, as webdataset cuts it."""
    current, members = "", dict[str, bytes]()
    try:
        with tarfile.open(tar) as archive:
            for info in archive:
                if not info.isfile():
                    continue
                folder, slash, name = info.name.rpartition("/")
                stem, _, suffix = name.partition(".")
                key = folder + slash + stem
                if key != current and members:
                    yield current, members
                    members = {}
                current = key
                opened = archive.extractfile(info)
                members[suffix.lower()] = opened.read() if opened else b""
    except (tarfile.TarError, EOFError, OSError) as error:
        raise InputError(f"{tar} cannot be read to its end: {error}") from None
    if members:
        yield current, members


def _text(place: str, members: dict[str, bytes], suffix: str) -> str:
    if suffix not in members:
        raise InputError(f"{place} has no .{suffix}; it has {', '.join(sorted(members))}")
    try:
        return members[suffix].decode()
    except UnicodeDecodeError:
        raise InputError(f"{place}.{suffix} is no UTF-8") from None


def _array(place: str, members: dict[str, bytes]) -> NDArray[Any]:
    if "npy" not in members:
        raise InputError(f"{place} has no .npy; it has {', '.join(sorted(members))}")
    try:
        found: NDArray[Any] = np.load(io.BytesIO(members["npy"]), allow_pickle=False)
    except ValueError as error:
        raise InputError(f"{place}.npy cannot be read: {error}") from None
    return found


def _metadata(place: str, members: dict[str, bytes], fields: tuple[str, ...]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "json" in members:
        try:
            said = json.loads(members["json"])
        except ValueError as error:
            raise InputError(f"{place}.json cannot be read: {error}") from None
        found = said if isinstance(said, dict) else {}
    if fields and "npy" in members:
        numbers = _array(place, members).ravel()
        if len(numbers) != len(fields):
            raise InputError(f"{place}.npy has {len(numbers)} numbers, the suite names {len(fields)}: {fields}")
        found |= {name: number.item() for name, number in zip(fields, numbers, strict=True)}
    return found


def _lines(path: Path) -> list[str]:
    """Lines without blanks around them, nor blank ones at the end; none where there is no file."""
    if not path.is_file():
        return []
    try:
        return [line.strip() for line in path.read_text("utf-8").strip().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
