"""The Ray a run uses: the cluster it was submitted to, one named in the recipe, or an embedded one."""

import contextlib
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future

from schemas.recipe import Recipe

_releasing: list[threading.Thread] = []
_ahead: "list[Future[None]]" = []
"""The connection that was begun ahead, if one was."""


def connect_ahead(recipe: Recipe) -> None:
    """Begin to connect while there is other work; `connect` waits for it, and raises what went wrong."""
    if _ahead:
        return
    connected: Future[None] = Future()
    _ahead.append(connected)

    def stay() -> None:
        try:
            _connect(recipe)
            connected.set_result(None)
        except BaseException as error:  # noqa: BLE001 - raised by whoever needs Ray
            connected.set_exception(error)
        # An embedded Ray's processes die with the thread that started them.
        threading.Event().wait()

    threading.Thread(target=stay, daemon=True).start()


def connect(recipe: Recipe) -> None:
    """Connect to Ray, quietly, once. Raises ConnectionError where a named cluster does not answer."""
    for connected in _ahead:
        connected.result()
    _connect(recipe)


def _connect(recipe: Recipe) -> None:
    # Else it takes SIGTERM from us, for good where it connects outside the main thread, and aborts the process.
    os.environ["RAY_DISABLE_FAILURE_SIGNAL_HANDLER"] = "1"
    import ray

    del os.environ["RAY_DISABLE_FAILURE_SIGNAL_HANDLER"]  # it has been read; workers keep theirs
    while _releasing:
        _releasing.pop().join()
    if ray.is_initialized():
        return
    address = recipe.ray.address or os.environ.get("RAY_ADDRESS") or "local"
    if address == "local":
        # Its workers are this run's own work, not somebody's background job; and nobody reads its usage reports.
        os.environ.setdefault("RAY_worker_niceness", "0")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # What workers do is in their results; Ray's own log files keep the rest.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    terminate = signal.getsignal(signal.SIGTERM)
    with _without_dashboard() if address == "local" else contextlib.nullcontext():
        ray.init(
            address=address,
            logging_level=logging.ERROR,
            log_to_driver=bool(os.environ.get("PAIRMILL_WORKER_LOGS")),
            **({"include_dashboard": False} if address == "local" else {}),
        )
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, terminate)  # ray.init puts its own there


@contextlib.contextmanager
def _without_dashboard() -> Iterator[None]:
    """Ray starts as where its dashboard's dependencies are not installed: 0.9 s sooner, for nobody would look at it.

    `include_dashboard=False` alone starts its process and its agent all the same, with all they import.
    """
    name = "ray.dashboard.optional_deps"
    known = sys.modules.get(name)
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]
        if known is not None:
            sys.modules[name] = known


def shutdown() -> None:
    """Disconnect; an embedded Ray ends, and every worker of this run with it."""
    import ray

    for connected in _ahead:
        connected.exception()  # a Ray under way has to be up before it can be ended
    ray.shutdown()


def release() -> None:
    """Disconnect in the background: no stage of this run needs Ray any more."""
    thread = threading.Thread(target=shutdown)
    _releasing.append(thread)
    thread.start()


def pool_size(recipe: Recipe, stage: str) -> int:
    """Workers at a time: the recipe's, or one for each of the cluster's CPUs."""
    import ray

    return recipe.ray.pools.get(stage) or max(1, int(ray.cluster_resources().get("CPU", 1)))


def job_id() -> str | None:
    """The submission id of the Ray job this process is the driver of, or None."""
    config = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")  # what `ray job submit` sets
    submission: str | None = (config.get("metadata") or {}).get("job_submission_id")
    return submission
