"""Tombstones: hashes of what was withdrawn, kept so that it never comes back, without saying what it was.

ROOT/retractions/0001.tombstone has a line `<kind> <sha256 of kind, U+001F, value>` for each listed value, and for the
uid, the URL and (unless the rest of its group stays) the sha256 of the bytes of each row that went. Only a PDQ hash is
there as it is, since distances to it are needed. A file counts once the record 0001.json beside it exists.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from pipeline.download.blocklist import PDQ_DISTANCE, PDQ_QUALITY
from pipeline.ingest.normalise import Fetchable, normalise_url
from pipeline.retract.listing import KINDS, Kind
from pipeline.storage import Store
from schemas.records import Retraction

FOLDER = "retractions"


def tombstone(kind: Kind, value: str) -> str:
    """A tombstone's line."""
    return f"{kind} {value if kind == 'pdq' else _digest(kind, value).hex()}"


def read_retractions(store: Store) -> list[Retraction]:
    """Every retraction of the ROOT, the oldest first."""
    paths = sorted(path for path, _ in store.files(FOLDER) if path.endswith(".json"))
    return [Retraction.model_validate_json(store.read(path)) for path in paths]


def unfinished_retraction(store: Store) -> Retraction | None:
    """The retraction that a kill has left unfinished, if there is one."""
    return next((one for one in read_retractions(store) if one.finished_at is None), None)


class Tombstones:
    """What must never be stored again; each question is answered with the retraction's name, or None."""

    def __init__(self, lines: Mapping[str, Iterable[str]]) -> None:
        """`lines`: retraction → its tombstones."""
        self._of: dict[str, dict[bytes, str]] = {kind: {} for kind in KINDS}
        pdq: dict[bytes, str] = {}
        for name, own in lines.items():
            for line in own:
                kind, _, digest = line.partition(" ")
                (pdq if kind == "pdq" else self._of[kind]).setdefault(bytes.fromhex(digest), name)
        self._pdq = np.frombuffer(b"".join(pdq), np.uint64).reshape(-1, 4)
        self._pdq_of = list(pdq.values())

    @classmethod
    def load(cls, store: Store, only: str | None = None) -> "Tombstones":
        """Those of the ROOT, or of one retraction."""
        names = [one.retraction for one in read_retractions(store) if only in (None, one.retraction)]
        return cls({name: store.read(f"{FOLDER}/{name}.tombstone").decode().split("\n")[:-1] for name in names})

    def __bool__(self) -> bool:
        return any(self._of.values()) or len(self._pdq) > 0

    @property
    def has_pdq(self) -> bool:
        return len(self._pdq) > 0

    def has(self, kind: Kind, value: str | None) -> str | None:
        known = self._of[kind]
        if not known or value is None:
            return None
        return known.get(_digest(kind, value))

    def holds_pdq(self, value: str) -> bool:
        """Whether this PDQ hash itself is listed."""
        return any((self._pdq == np.frombuffer(bytes.fromhex(value), np.uint64)).all(axis=1))

    def url(self, url: str | None, fetched: str | None = None) -> str | None:
        """For a URL as given and, if known, as fetched: by URL, host or md5 of either."""
        if url is None:
            return None
        if fetched is None:
            normal = normalise_url(url)
            fetched = normal.url if isinstance(normal, Fetchable) else url
        found = self.has("url", fetched)
        if not found and self._of["host"]:
            found = self.has("host", host_of(fetched))
        if not found and self._of["url_md5"]:
            found = next((name for one in {url, fetched} if (name := self.has("url_md5", md5_of(one)))), None)
        return found

    def body(self, values: Mapping[str, Any]) -> str | None:
        """For hashes of a body or a pool image: `sha256`, `sha1`, `md5`, `pool_sha256`, as far as they are known."""
        kinds: tuple[tuple[Kind, str], ...] = (
            ("sha256", "sha256"), ("sha256", "pool_sha256"), ("sha1", "sha1"), ("md5", "md5"),
        )  # fmt: skip
        return next((found for kind, name in kinds if (found := self.has(kind, values.get(name)))), None)

    def pdq(self, value: str | None, quality: int | None) -> str | None:
        """For a PDQ hash (64 hex digits) of an image."""
        if not self.has_pdq or value is None or (quality or 0) < PDQ_QUALITY:
            return None
        near = near_pdq(self._pdq, [value])
        return self._pdq_of[int(near[0])] if near[0] >= 0 else None


def near_pdq(listed: np.ndarray, values: Sequence[str]) -> np.ndarray:
    """For each hash (64 hex digits), the place in `listed` (n × 4 words) of one within PDQ_DISTANCE, or -1."""
    found = np.full(len(values), -1, np.int64)
    if not len(values) or not len(listed):
        return found
    words = np.frombuffer(bytes.fromhex("".join(values)), np.uint64).reshape(-1, 4)
    step = max(1, 1_000_000 // len(words))
    for start in range(0, len(listed), step):
        block = listed[start : start + step]
        apart = np.bitwise_count(words[:, None, :] ^ block[None, :, :]).sum(axis=2, dtype=np.uint16)
        best = apart.argmin(axis=1)
        hit = (apart[np.arange(len(words)), best] <= PDQ_DISTANCE) & (found < 0)
        found[hit] = start + best[hit]
    return found


def host_of(fetched: str) -> str | None:
    """The host of a URL as fetched: lower-case IDNA, no port."""
    try:
        host = urlsplit(fetched).hostname
    except ValueError:
        return None
    return f"[{host}]" if host and ":" in host else host


def _digest(kind: Kind, value: str) -> bytes:
    return hashlib.sha256(f"{kind}\x1f{value}".encode()).digest()


def md5_of(url: str) -> str:
    """md5 of a URL, as LAION and img2dataset give it."""
    return hashlib.md5(url.encode(), usedforsecurity=False).hexdigest()
