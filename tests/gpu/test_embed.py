"""On a GPU: the stage's vectors are those of a CPU, in bf16 too. Skipped where there is none; speed: embed_speed.py."""

from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.units import StageFolder
from schemas.recipe import Encoder, parse_recipe

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_a_gpu_gives_the_vectors_that_a_cpu_gives(tmp_path: Path, dtype: Any) -> None:
    from pipeline.embed.stage import embed_due
    from pipeline.embed.worker import EmbedWorker
    from pipeline.encoders.load import load, tokenizer_of
    from tests.embed_fixture import embeddings
    from tests.pool_fixture import Pool, curate

    pool = Pool(tmp_path)
    pool.unit("0001-0000000", range(300), side=120)
    folders = curate(pool)
    upstream = {key: (one.stage, one.fingerprint) for key, one in folders.items()}
    settings = parse_recipe({"embed": {"batch_size": 64}}, "test")
    found = []
    for device, precision in (("cpu", "fp32"), ("cuda", dtype)):
        encoder = Encoder(name="tiny", arch="pairmill-tiny", weights="untrained", dtype=precision)
        folders["embed/tiny"] = StageFolder(pool.store, "embed", device)
        worker = EmbedWorker(
            pool.store.uri, upstream, device, settings.embed, encoder, partial(load, encoder),
            partial(tokenizer_of, encoder), "run", device, 4,
        )  # fmt: skip
        with closing(worker):
            for unit in embed_due(pool.store, settings, folders, encoder):
                assert worker.run(unit, alone=True)["state"] == "done"
        found.append(embeddings(folders["embed/tiny"]))
    cpu, gpu = found
    assert cpu.keys() == gpu.keys()
    least = 0.9999 if dtype == "fp32" else 0.99
    for side in ("image_embedding", "text_embedding"):
        cosines = [float(np.dot(cpu[uid][side], gpu[uid][side])) for uid in cpu]
        assert min(cosines) > least
