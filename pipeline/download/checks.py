"""What a fetched body must pass before anything of it is kept: hash lists, its recorded hash, and consent inside it."""

import hashlib
from typing import Any

from pipeline.download.blocklist import Blocklist
from pipeline.download.consent import IN_BYTES, honoured
from pipeline.download.embedded import embedded_signals
from pipeline.download.fetch import Fetched
from pipeline.images.errors import ImageError
from schemas.recipe import Download

Reasons = dict[int, tuple[str, str | None]]
"""Row → (reason, detail) of those that have ended."""


class BodyChecks:
    def __init__(self, settings: Download, blocklist: Blocklist) -> None:
        self._settings = settings
        self._blocklist = blocklist
        self._in_bytes = [name for name in honoured(settings.consent) if name in IN_BYTES]
        verified = [settings.verify_hash[1]] if settings.verify_hash else []
        self._hashes = {"sha256", *settings.compute_hash, *verified}

    def body(
        self, fetched: Fetched, rows: list[int], columns: dict[str, list[Any]], reasons: Reasons, values: dict[str, Any]
    ) -> None:
        """Hash the body into `values`, end `rows` in `reasons`, and add to `fetched` the signals in the bytes."""
        body = fetched.body
        assert body is not None
        if fetched.final_url and (match := self._blocklist.url(fetched.final_url)):
            _end(rows, reasons, *match)
            return
        for kind in self._hashes:
            values[kind] = hashlib.new(kind, body, usedforsecurity=False).hexdigest()
        values["bytes"] = len(body)
        if match := self._blocklist.body(body, values):
            _end(rows, reasons, *match)
            return
        if self._in_bytes:
            fetched.signals += embedded_signals(body, self._in_bytes)
            fetched.evaluated = [*fetched.evaluated, *self._in_bytes]
            if denied := fetched.denied():
                _end(rows, reasons, "opt_out", f"{denied.source}: {denied.value}")
        if self._settings.verify_hash:
            column, kind = self._settings.verify_hash
            for row in rows:
                expected = columns[column][row]
                if expected is not None and str(expected).strip().lower() != values[kind]:
                    reasons.setdefault(row, ("hash_mismatch", f"{kind} {values[kind]}, expected {expected}"))

    def image(self, data: bytes, rows: list[int], reasons: Reasons) -> bool:
        """Whether an image may be stored, by its own hash and by PDQ; where not, `rows` have ended."""
        if self._blocklist and (match := self._blocklist.body(data, {})):
            _end(rows, reasons, *match)
            return False
        if not self._blocklist.has_pdq:
            return True
        from pipeline.dedupe.hashes import hash_image

        try:
            hashes = hash_image(data)
        except ImageError as error:
            _end(rows, reasons, error.reason, error.detail)
            return False
        match = self._blocklist.image(hashes.pdq, hashes.quality)
        if match:
            _end(rows, reasons, *match)
        return match is None


def _end(rows: list[int], reasons: Reasons, reason: str, detail: str) -> None:
    for row in rows:
        reasons.setdefault(row, (reason, detail))
