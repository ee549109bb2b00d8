"""On a cluster whose GPU nodes come later, as they do where an autoscaler brings them."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from pipeline.cluster import connect, shutdown
from pipeline.embed.stage import plan_of
from pipeline.runner import Pass, UnitWorker
from pipeline.stop import StopFlag
from pipeline.train.nodes import wait_for_nodes
from schemas.recipe import parse_recipe


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A node of two CPUs, to which we are connected."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 0, "include_dashboard": False})
    try:
        connect(parse_recipe({"ray": {"address": cluster.address}}, "test"))
        yield cluster
    finally:
        shutdown()
        cluster.shutdown()


def plan(address: str, **ray: object) -> Pass:
    def make(gpu: bool, threads: int, decoders: int) -> UnitWorker:
        raise NotImplementedError  # planned, never started

    return plan_of(parse_recipe({"ray": {"address": address, **ray}}, "test"), "embed", make, 1)


def test_encoders_and_training_wait_for_gpus_that_are_not_there_yet(cluster: Cluster, tmp_path: Path) -> None:
    stop = StopFlag(str(tmp_path), "run")
    assert plan(cluster.address).gpus == 0
    told = plan(cluster.address, gpus=True, pools={"embed": 4})
    assert (told.gpus, told.cpus, told.actors) == (1, 0, 4)
    assert wait_for_nodes("GPU", 1, 0, stop) == 0

    with ThreadPoolExecutor() as beside:
        waiting = beside.submit(wait_for_nodes, "GPU", 1, 2, stop)
        cluster.add_node(num_cpus=0, num_gpus=1)
        assert waiting.result() == 1
    assert plan(cluster.address).gpus == 1
    assert plan(cluster.address, gpus=False).gpus == 0
