"""Nodes for the workers, where an autoscaler brings them."""

import logging
import time

from pipeline.stop import StopFlag

log = logging.getLogger(__name__)


def wait_for_nodes(kind: str, wanted: int, minutes: float, stop: StopFlag) -> float:
    """How many of `kind` (GPU, CPU) the cluster has, once there are `wanted`, `minutes` are over or the run is to stop.

    Training starts all its workers at once, and Ray Train gives a start a minute; a node from nothing takes longer.
    """
    import ray
    from ray.autoscaler.sdk import request_resources

    have = float(ray.cluster_resources().get(kind, 0))
    if have >= wanted or not minutes:
        return have
    log.info("waiting up to %g minutes for %d %ss; the cluster has %g", minutes, wanted, kind, have)
    until = time.monotonic() + 60 * minutes
    request_resources(bundles=[{kind: 1}] * wanted)
    try:
        while have < wanted and time.monotonic() < until and not stop.is_set():
            time.sleep(1.0)
            have = float(ray.cluster_resources().get(kind, 0))
    finally:
        request_resources(bundles=[])  # from here on the workers keep the nodes up
    return have
