"""How a fetch says that it will not bring a body."""


class Failure(Exception):
    """Ends a try: `reason` is one of schemas.statuses, `detail` the value that decided."""

    def __init__(
        self,
        reason: str,
        detail: str,
        *,
        retry: bool = False,
        retry_after: float | None = None,
        reached: bool = True,
    ) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail[:500]
        self.retry = retry
        """A further try may go better: timeouts, resets, 429 and 5xx."""
        self.retry_after = retry_after
        """Seconds the server asked for."""
        self.reached = reached
        """False where no connection came about; such failures in a row take the host down."""
