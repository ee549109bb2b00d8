"""Training: how long a device waits for data, a step beside the same step on synthetic tensors, checkpoints, open_clip.

    python tests/benchmarks/train.py [--images N] [--only device step checkpoint open_clip]

device: the loader feeds a device that is simulated (it sleeps), 224-pixel input from 256-pixel photos, batches of 64;
the share of time that the device waits, by how fast it is against what the decode processes manage.
step: pairmill-tiny on one thread of a CPU, batches of 64; the step by the run's own loop against the same step on
tensors that are there already, in wall and CPU seconds. The floor of both is the machine's noise.
checkpoint: seconds that training stands still for one, of a minute; and what the background writes meanwhile.
open_clip: samples/s of open_clip_train's own epoch (train_one_epoch and its webdataset pipeline, one worker process) on
the same shards, towers, batch and precision.
"""

import argparse
import io
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY))

BATCH, STEPS = 64, 8


def photo(number: int, side: int = 256) -> bytes:
    """A JPEG with the size and detail of a resized photo: smooth shapes under fine noise; 20 to 30 KB."""
    from PIL import Image

    rng = np.random.default_rng(number)
    small = Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8)).resize((side * 4 // 3, side), Image.BICUBIC)
    pixels = np.asarray(small).astype(np.int16) + rng.integers(-12, 12, (side, side * 4 // 3, 3), np.int16)
    data = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(data, "JPEG", quality=90)
    return data.getvalue()


def make_data(folder: Path, images: int) -> Path:
    from tests.train_fixture import write_dataset

    some = [photo(number) for number in range(min(images, 200))]
    return write_dataset(folder, images, shards=4, images={n: some[n % len(some)] for n in range(images)})


def loader_of(data: Path, out: Path, arch: str, steps: int, decoders: int):
    from pipeline.train.data import Input, Loader
    from pipeline.train.dataset import find_dataset
    from pipeline.train.index import make_index
    from pipeline.train.model import make_towers
    from pipeline.train.order import Order
    from pipeline.train.settings import TrainSettings

    index = make_index([find_dataset(str(data))], out)
    towers = make_towers(TrainSettings(arch=arch))
    made = Input(towers.preprocess, towers.tokenize, True, 0)
    order = Order(index.sizes, BATCH, 0)
    return Loader(index, order, made, 0, 1, 0, steps, decoders, 3, False), towers


def device(data: Path, out: Path) -> None:
    cores = os.cpu_count() or 1
    steps = 24
    config = out / "b32-shaped.json"  # 224 pixels in; the towers themselves are not run
    config.write_text(json.dumps({
        "embed_dim": 8,
        "vision_cfg": {"image_size": 224, "layers": 1, "width": 64, "head_width": 64, "patch_size": 32},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
    }))  # fmt: skip
    loader, _ = loader_of(data, out, str(config), steps, cores)
    taken, spent = [], 0.0
    for batch in loader:
        taken.append(time.perf_counter())
        spent += batch.spent
    loader.close()
    rate = (steps - 8) * BATCH / (taken[-1] - taken[7])
    print(
        f"device: {cores} decode processes manage {rate:.0f} images/s, {1000 * spent / steps / BATCH:.2f} ms CPU each"
    )
    print("  device's rate   data wait")
    for share in (0.5, 0.8, 0.9):
        loader, _ = loader_of(data, out, str(config), steps, cores)
        step_s = BATCH / (rate * share)
        waits = []
        for batch in loader:
            waits.append(batch.waited)
            time.sleep(step_s)
        loader.close()
        wait = sum(waits[4:])
        print(f"  {share:>4.0%} of it      {wait / (wait + step_s * len(waits[4:])):.2%}")


def middle(marks: list[float]) -> float:
    """The usual difference of neighbours, the first two left out."""
    return float(np.median(np.diff(marks[2:])))


def step(data: Path, out: Path) -> tuple[float, float]:
    """Samples a second of wall time and of this process's CPU time."""
    import torch

    from pipeline.train.dataset import find_dataset
    from pipeline.train.index import make_index
    from pipeline.train.loop import Job, train
    from pipeline.train.model import make_towers
    from pipeline.train.optimiser import make_optimiser
    from pipeline.train.settings import TrainSettings
    from pipeline.train.step import Rows, clip, gradients, hold_temperature
    from pipeline.train.world import World

    torch.set_num_threads(1)  # threads that wait for each other on busy cores spend CPU seconds too
    settings = TrainSettings(batch_size=BATCH, samples=BATCH * STEPS, lr=1e-4, threads=1, checkpoint_minutes=1e6)
    towers = make_towers(settings)
    optimiser = make_optimiser(towers.model, settings)
    side = towers.preprocess.size[0]
    images = torch.randint(0, 256, (BATCH, side, side, 3), dtype=torch.uint8)
    tokens = torch.from_numpy(towers.tokenize([f"a picture of number {n}" for n in range(BATCH)]))
    rows = Rows(images, tokens, torch.ones(BATCH), torch.ones(BATCH, dtype=torch.bool))

    def synthetic() -> tuple[float, float]:
        wall, cpu = [], []
        for _ in range(STEPS):
            gradients(towers, rows, "clip", 1, False, World())
            clip(towers.model, None)
            optimiser.step()
            hold_temperature(towers.model)
            wall.append(time.perf_counter())
            cpu.append(time.process_time())
        return middle(wall), middle(cpu)

    index = make_index([find_dataset(str(data))], out)
    wall, cpu = [], []

    def marked() -> bool:
        """Asked once a step."""
        wall.append(time.perf_counter())
        cpu.append(time.process_time())
        return False

    before = synthetic()
    train(Job(settings, str(out / "run"), str(index.folder)), marked)
    after = synthetic()
    lines = [json.loads(line) for line in (out / "run" / "metrics.jsonl").read_text().splitlines()][2:]
    decode = float(np.median([line["decode_cpu_s"] for line in lines]))
    waited = float(np.median([line["data_wait_s"] / line["step_s"] for line in lines]))
    print("step        ours  synthetic before, after")
    print(f"  wall s  {middle(wall):>6.3f}  {before[0]:.3f}, {after[0]:.3f}")
    print(f"  CPU s   {middle(cpu):>6.3f}  {before[1]:.3f}, {after[1]:.3f}")
    print(f"  CPU ratio {middle(cpu) / min(before[1], after[1]):.3f}")
    print(f"  decode {decode:.3f} s CPU a batch, in its own process; data wait {waited:.2%}")
    return BATCH / middle(wall), BATCH / middle(cpu)


def checkpoint(out: Path) -> None:
    from pipeline.train.checkpoint import Checkpoints, copied, save_state
    from pipeline.train.export import write_model
    from pipeline.train.model import make_towers
    from pipeline.train.settings import TrainSettings

    for arch in ("pairmill-tiny", "ViT-B-32"):
        towers = make_towers(TrainSettings(arch=arch))
        state = towers.model.state_dict()
        moments = {name: (value.clone(), value.clone()) for name, value in state.items()}
        kept = Checkpoints(out / arch, 2)
        kept.begin()
        held: dict = {}
        for number, name in ((1, "first"), (2, "next")):
            start, began = time.perf_counter(), time.thread_time()
            held = copied({"weights": state, "optimiser": moments}, held)

            def write(folder: Path, held=held, towers=towers) -> dict:
                write_model(folder, held["weights"], towers.config, towers.preprocess, [])
                save_state(folder / "state.pt", {"optimiser": held["optimiser"]})
                return {}

            kept.save(number, write)
            stood, spent = time.perf_counter() - start, time.thread_time() - began
            kept.wait()
            whole = time.perf_counter() - start
            size = sum(path.stat().st_size for path in (out / arch / "latest").iterdir())
            stands = f"training stands {stood:.2f} s ({stood / 60:.2%} of a minute; {spent:.2f} s CPU)"
            print(f"checkpoint: {arch}, {size / 1e6:,.0f} MB, {name}: {stands}, written after {whole:.1f} s")
        kept.close()


def open_clip_epoch(data: Path, images: int, ours: tuple[float, float]) -> None:
    import open_clip
    import torch
    from open_clip.loss import ClipLoss
    from open_clip_train.data import get_wds_dataset
    from open_clip_train.scheduler import cosine_lr
    from open_clip_train.train import train_one_epoch

    from pipeline.encoders.source import OWN_CONFIGS
    from pipeline.train.optimiser import make_optimiser
    from pipeline.train.settings import TrainSettings

    open_clip.add_model_config(OWN_CONFIGS)
    model, transform, _ = open_clip.create_model_and_transforms("pairmill-tiny", output_dict=True)
    steps = STEPS
    args = SimpleNamespace(
        train_data=f"{data}/{{00000..00003}}.tar", train_data_upsampling_factors=None, train_num_samples=steps * BATCH,
        val_num_samples=None, dataset_resampled=False, seed=0, batch_size=BATCH, workers=1, world_size=1, rank=0,
        local_rank=0, distributed=False, device="cpu", precision="fp32", accum_freq=1, distill=False, horovod=False,
        skip_scheduler=False, grad_clip_norm=None, log_every_n_steps=1, wandb=False, log_local=False,
    )  # fmt: skip
    loaded = get_wds_dataset(args, transform, is_train=True, tokenizer=open_clip.get_tokenizer("pairmill-tiny"))
    optimiser = make_optimiser(model, TrainSettings())
    wall: list[float] = []
    cpu: list[float] = []
    torch.set_num_threads(1)
    usual = torch.optim.AdamW.step

    def marked(self, *given, **more):
        wall.append(time.perf_counter())
        cpu.append(time.process_time())
        return usual(self, *given, **more)

    torch.optim.AdamW.step = marked
    try:
        train_one_epoch(
            model, {"train": loaded}, ClipLoss(), 0, optimiser, None, cosine_lr(optimiser, 1e-4, 2, steps), None, args
        )
    finally:
        torch.optim.AdamW.step = usual
    for kind, one, other in (("wall", ours[0], BATCH / middle(wall)), ("CPU", ours[1], BATCH / middle(cpu))):
        print(f"open_clip: {other:.1f} samples a {kind} second by its own loop, {one:.1f} by ours: {one / other:.2f}×")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2_000)
    parser.add_argument("--only", nargs="+", default=["device", "step", "checkpoint", "open_clip"])
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        data = make_data(out / "data", flags.images)
        print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
        if "device" in flags.only:
            device(data, out)
        ours = step(data, out) if {"step", "open_clip"} & set(flags.only) else (0.0, 0.0)
        if "checkpoint" in flags.only:
            checkpoint(out)
        if "open_clip" in flags.only:
            open_clip_epoch(data, flags.images, ours)


if __name__ == "__main__":
    main()
