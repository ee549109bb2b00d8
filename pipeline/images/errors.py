"""The one error an image's way to the pool ends in."""


class ImageError(Exception):
    """`reason` is one of schemas.statuses; `detail` says what was found, in a line."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail[:500]
