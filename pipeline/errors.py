"""Errors that end a run with one clear line instead of a traceback."""


class InputError(ValueError):
    """Bad usage, recipe or input: exit code 2. The message names the value, the place and the way out."""


class HeldError(RuntimeError):
    """The ROOT is held by another run, which the message names: exit code 4."""


class LeaseLostError(RuntimeError):
    """Another run has taken the ROOT over; this one stops."""


class StoreError(OSError):
    """The store cannot be used or did not do what it was asked: exit code 1."""


class UnitError(StoreError):
    """What a unit reads is not what was recorded: it ends as failed, and the run goes on with the others."""
