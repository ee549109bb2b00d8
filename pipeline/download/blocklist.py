"""Hash lists whose images must not be kept: sha256, sha1 or md5 of the bytes, or md5 of the URL."""

import hashlib
import re
from collections.abc import Sequence
from typing import Any

from pipeline.errors import InputError
from pipeline.storage import open_store

_KIND_BY_LENGTH = {32: "md5", 40: "sha1", 64: "sha256"}
_HEX = re.compile(r"[0-9a-f]+")


class Blocklist:
    """Fails closed: a line that is no hash is an InputError, not a line to skip."""

    def __init__(self, files: Sequence[str]) -> None:
        self._hashes: set[str] = set()
        for file in files:
            folder, _, name = file.rpartition("/")
            try:
                lines = open_store(folder or ".").read(name).decode().split("\n")
            except OSError as error:
                raise InputError(f"download.blocklists: cannot read {file}: {error}") from None
            for number, line in enumerate(lines, 1):
                entry = line.split("#")[0].strip().lower()
                if entry and (len(entry) not in _KIND_BY_LENGTH or not _HEX.fullmatch(entry)):
                    raise InputError(f"{file}:{number}: {entry[:80]!r} is no md5, sha1 or sha256 in hex")
                if entry:
                    self._hashes.add(entry)

    def url(self, url: str) -> str | None:
        """What matched, for a URL as given (img2dataset's and LAION's url md5), or None."""
        if not self._hashes:
            return None
        digest = hashlib.md5(url.encode(), usedforsecurity=False).hexdigest()
        return f"url_md5 {digest}" if digest in self._hashes else None

    def body(self, values: dict[str, Any]) -> str | None:
        """What matched among the hashes of a body, or None."""
        for kind in ("sha256", "sha1", "md5"):
            if values.get(kind) in self._hashes:
                return f"{kind} {values[kind]}"
        return None
