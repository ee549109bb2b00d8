"""A run as a whole, without Ray: resumes bit for bit, leaves out what cannot be decoded, makes models others load."""

import json
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.encoders.load import load
from pipeline.errors import InputError
from pipeline.train.checkpoint import why_broken
from pipeline.train.data import Input, Loader
from pipeline.train.dataset import find_dataset
from pipeline.train.index import SampleIndex, make_index
from pipeline.train.ledger import order_of, seen
from pipeline.train.loop import Job, train
from pipeline.train.model import make_towers
from pipeline.train.order import Order
from schemas.recipe import Encoder
from tests.integration.test_shard import dataset, make_pool, recipe, shard
from tests.pool_fixture import uid_of
from tests.ranks import ranks
from tests.train_fixture import RESNET, caption_of, curve, image_of, job_of, settings_of, towers_file, write_dataset

STEPS = 8


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A folder with a run of eight steps in out/, on 60 samples in data/."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("whole")
    assert train(job_of(folder)) == STEPS
    return folder


def stop_after(steps: int):
    """Says stop when asked for the `steps`-th time, which is in the step of that number of this start."""
    asked = iter(range(1, 1000))
    return lambda: next(asked) == steps


@pytest.mark.parametrize("stops", [[1], [3], [7], [2, 1, 3]])
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(whole, tmp_path, stops):
    for count in stops:
        assert train(job_of(tmp_path, data=whole / "data"), stop_after(count)) < STEPS
    assert train(job_of(tmp_path, data=whole / "data")) == STEPS
    assert curve(tmp_path) == curve(whole)


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": "siglip"}, {"precision": "bf16"}, {"accumulate": 3}, {"clip_norm": 0.5, "sample_weights": True},
        {"freeze": "text"}, {"checkpointing": True, "schedule": "constant"}, {"crop": "center", "decoders": 2},
    ],
    ids=str,
)  # fmt: skip
def test_every_kind_of_run_resumes_bit_for_bit(whole, tmp_path, changes):
    def job(out: str) -> Job:
        return job_of(tmp_path, out, whole / "data", samples=64, **changes)

    assert train(job("straight")) == 4
    assert train(job("stopped"), stop_after(2)) == 2
    assert train(job("stopped")) == 4
    assert curve(tmp_path, "stopped") == curve(tmp_path, "straight")


def test_a_resnet_resumes_bit_for_bit_its_running_statistics_too(whole, tmp_path):
    arch = towers_file(tmp_path / "resnet", RESNET)
    for out, stops in (("straight", []), ("stopped", [2])):
        for stop in [*map(stop_after, stops), lambda: False]:
            train(job_of(tmp_path, out, whole / "data", samples=64, arch=arch), stop)
    assert curve(tmp_path, "stopped") == curve(tmp_path, "straight")
    weights = [
        (tmp_path / out / "latest" / "open_clip_model.safetensors").read_bytes() for out in ("stopped", "straight")
    ]
    assert weights[0] == weights[1]


def test_accumulation_is_the_same_run_up_to_rounding(whole, tmp_path):
    train(job_of(tmp_path, data=whole / "data", accumulate=4))
    for ours, theirs in zip(curve(tmp_path)[:4], curve(whole), strict=False):
        assert ours == pytest.approx(theirs, rel=2e-3)


def _train_as_rank(job: Job, stop_at: int) -> int:
    return train(job, stop_after(stop_at))


def test_several_workers_resume_bit_for_bit_and_another_number_of_them_goes_on(whole, tmp_path):
    """3 workers of 16 samples: 6, 6 and 4, so that the last one's rows end in absent ones."""
    ranks(3, _train_as_rank, job_of(tmp_path, "straight", whole / "data"), 0)
    assert ranks(3, _train_as_rank, job_of(tmp_path, "stopped", whole / "data"), 3) == [3, 3, 3]
    ranks(3, _train_as_rank, job_of(tmp_path, "stopped", whole / "data"), 0)
    assert curve(tmp_path, "stopped") == curve(tmp_path, "straight")
    for ours, alone in zip(curve(tmp_path, "straight")[:4], curve(whole), strict=False):
        assert ours == pytest.approx(alone, rel=2e-3)

    ranks(3, _train_as_rank, job_of(tmp_path, "changed", whole / "data"), 3)
    ranks(2, _train_as_rank, job_of(tmp_path, "changed", whole / "data"), 2)
    train(job_of(tmp_path, "changed", whole / "data"))
    assert [line[0] for line in curve(tmp_path, "changed")] == list(range(1, STEPS + 1))
    assert curve(tmp_path, "changed")[:3] == curve(tmp_path, "straight")[:3]
    uids = [uid_of(number) for number in range(60)]
    assert seen(tmp_path / "changed" / "latest", uids) == seen(whole / "out" / "latest", uids)


@pytest.mark.parametrize("workers", [1, 2, 3, 5])
def test_the_global_batch_is_the_same_samples_in_the_same_order_and_crop_for_any_number_of_workers(
    whole, tmp_path, workers
):
    index = make_index([find_dataset(str(whole / "data"))], tmp_path)
    settings = settings_of(tmp_path)
    towers = make_towers(settings)
    order, made = Order(index.sizes, 16, 0), Input(towers.preprocess, towers.tokenize, True, 0)

    def batches(rank: int, world: int):
        loader = Loader(index, order, made, rank, world, 3, 5, 1, 2, False)
        try:
            return [(b.images.copy(), b.tokens.copy(), b.present.copy()) for b in loader]
        finally:
            loader.close()

    alone = batches(0, 1)
    parts = [batches(rank, workers) for rank in range(workers)]
    for step, (images, tokens, _) in enumerate(alone):
        present = np.concatenate([part[step][2] for part in parts])
        assert present.sum() == 16
        for place, expected in ((0, images), (1, tokens)):
            assert np.array_equal(np.concatenate([part[step][place] for part in parts])[present], expected)


def test_what_a_checkpoint_saw_is_what_its_batches_held(whole):
    checkpoint = whole / "out" / "latest"
    said = json.loads((checkpoint / "ledger.json").read_text())
    order, held = order_of(said), {}
    for step in range(said["step"]):
        for sample in order.samples(step).tolist():
            held.setdefault(uid_of(sample), []).append(step + 1)
    assert said["step"] == STEPS
    assert seen(checkpoint, [*map(uid_of, range(60)), "f" * 32]) == held
    early = sorted((whole / "out" / "checkpoints").iterdir())[0]
    assert max(step for steps in seen(early, map(uid_of, range(60))).values() for step in steps) == 6


def test_samples_that_cannot_be_used_are_left_out_named_and_not_counted_as_seen(tmp_path):
    broken = {3: b"no image", 7: image_of(7)[:200], 11: b""}
    data = write_dataset(tmp_path / "data", 40, images=broken, captions={20: " "})
    assert train(job_of(tmp_path, data=data)) == STEPS
    lines = [json.loads(line) for line in (tmp_path / "out" / "failed.jsonl").read_text().splitlines()]
    assert {line["uid"] for line in lines} == {uid_of(number) for number in (3, 7, 11, 20)}
    assert {line["reason"] for line in lines} == {"decode_error"}
    assert "text is empty" in next(line["detail"] for line in lines if line["uid"] == uid_of(20))
    saw = seen(tmp_path / "out" / "latest", map(uid_of, range(40)))
    assert set(saw) == {uid_of(number) for number in range(40)} - {line["uid"] for line in lines}
    counted = [json.loads(line)["failed"] for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert sum(counted) == len(lines)


def test_data_of_which_too_much_cannot_be_used_ends_the_run_with_a_line(tmp_path):
    data = write_dataset(tmp_path / "data", 40, images=dict.fromkeys(range(30), b"no image"))
    with pytest.raises(InputError, match=r"\d+ of \d+ samples cannot be used, more than max_bad 0.01; such as"):
        train(job_of(tmp_path, data=data, max_bad=0.01))


def test_open_clip_and_embed_load_a_checkpoint_as_it_is(whole):
    import open_clip

    folder = whole / "out" / "latest"
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    model.eval()
    encoder = load(Encoder(name="ours", weights=str(folder)))
    texts = [caption_of(3), caption_of(4)]
    with torch.inference_mode():
        theirs = model.encode_text(tokenizer(texts)).numpy()
    assert encoder.encode_texts(encoder.tokenize(texts)) == pytest.approx(theirs, abs=1e-6)
    assert transform.transforms[0].size == 32
    manifest = json.loads((folder / "checkpoint.json").read_text())
    assert encoder.weights_sha256 == manifest["weights_sha256"]
    assert encoder.logit_scale == pytest.approx(curve(whole)[-1][3])


def test_siglips_bias_comes_along(whole, tmp_path):
    import open_clip

    train(job_of(tmp_path, data=whole / "data", samples=32, loss="siglip"))
    model = open_clip.create_model(f"local-dir:{tmp_path / 'out' / 'latest'}")
    assert model.logit_bias.item() == pytest.approx(-10, abs=0.1)
    assert model.logit_bias.item() != -10


def test_the_card_says_data_recipe_metrics_and_licences(whole, tmp_path):
    job = job_of(tmp_path, data=whole / "data", samples=32)
    train(Job(job.settings, job.out, job.index, licences=("CC-BY-4.0",)))
    card = (tmp_path / "out" / "latest" / "README.md").read_text()
    index = SampleIndex(Path(job.index))
    for said in (index.fingerprint, "CC-BY-4.0", "| batch_size | 16 |", "| loss | ", "open_clip.create_model"):
        assert said in card


def test_only_the_last_checkpoints_stay_and_latest_is_the_newest(whole):
    out = whole / "out"
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["0000000006", "0000000008"]
    assert (out / "latest").resolve().name == "0000000008"
    assert all(why_broken(path) is None for path in (out / "checkpoints").iterdir())


def test_a_checkpoint_that_rotted_is_passed_over_for_the_one_before(whole, tmp_path):
    train(job_of(tmp_path, data=whole / "data"), stop_after(5))
    newest = tmp_path / "out" / "checkpoints" / "0000000005" / "state.pt"
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    assert train(job_of(tmp_path, data=whole / "data")) == STEPS
    assert curve(tmp_path) == curve(whole)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"batch_size": 8}, "trained with batch_size=16, not 8"),
        ({"arch": "pairmill-tiny"}, "not pairmill-tiny"),
        ({"loss": "siglip"}, "trained with loss=clip, not siglip"),
    ],
)
def test_another_run_in_the_same_folder_is_refused_and_changes_nothing(whole, tmp_path, changes, said):
    train(job_of(tmp_path, data=whole / "data", samples=32))
    before = (tmp_path / "out" / "metrics.jsonl").read_bytes()
    with pytest.raises(InputError, match=said):
        train(job_of(tmp_path, data=whole / "data", **{"samples": 32, **changes}))
    assert (tmp_path / "out" / "metrics.jsonl").read_bytes() == before


def test_other_data_in_the_same_folder_is_refused(whole, tmp_path):
    train(job_of(tmp_path, data=whole / "data", samples=32))
    other = write_dataset(tmp_path / "other", 50)
    with pytest.raises(InputError, match=r"trained on other data \(\w{16}, now \w{16}\)"):
        train(job_of(tmp_path, data=other, samples=32))


def test_a_run_may_start_from_weights_but_not_from_anothers_architecture(whole, tmp_path):
    init = str(whole / "out" / "latest")
    train(job_of(tmp_path, data=whole / "data", samples=32, init=init, lr=1e-9))
    assert curve(tmp_path)[0][3] == pytest.approx(curve(whole)[-1][3])  # its temperature
    with pytest.raises(InputError, match="and 32×192 in the architecture"):
        train(job_of(tmp_path, "other", whole / "data", arch="pairmill-tiny", init=init))


def test_a_loss_that_is_no_number_ends_the_run_and_spares_the_checkpoints(whole, tmp_path):
    with pytest.raises(InputError, match=r"the loss is nan at step \d+; lower lr"):
        train(job_of(tmp_path, data=whole / "data", lr=1e30, warmup=0, checkpoint_steps=1))
    kept = sorted((tmp_path / "out" / "checkpoints").iterdir())
    assert kept
    assert all(why_broken(path) is None for path in kept)


def test_an_index_of_the_pool_trains_as_its_tars_do(tmp_path):
    for mode in ("webdataset", "index"):
        shard(make_pool(tmp_path / mode), recipe(mode="index") if mode == "index" else recipe())
        train(job_of(tmp_path, f"out-{mode}", dataset(tmp_path / mode), samples=64))
    assert curve(tmp_path, "out-index") == curve(tmp_path, "out-webdataset")


def test_a_pool_image_that_is_not_the_one_recorded_is_left_out(tmp_path):
    shard(make_pool(tmp_path / "root"), recipe(mode="index"))
    index = make_index([find_dataset(str(dataset(tmp_path / "root")))], tmp_path / "out")
    drawn = int(Order(index.sizes, 16, 0).samples(0)[0])
    uri, path = index.files[int(index.file[drawn])]
    with (Path(uri) / path).open("r+b") as file:
        file.seek(int(index.offset[drawn]) + 5)
        file.write(b"XX")
    train(job_of(tmp_path, data=dataset(tmp_path / "root"), samples=64))
    lines = [json.loads(line) for line in (tmp_path / "out" / "failed.jsonl").read_text().splitlines()]
    assert {(line["uid"], line["reason"]) for line in lines} == {(index.uid_of(drawn), "hash_mismatch")}


def test_a_dataset_in_s3_trains_as_on_a_disk(whole, tmp_path, s3):
    import boto3

    bucket = s3.removeprefix("s3://").split("/")[0]
    for path in sorted((whole / "data").iterdir()):
        boto3.client("s3").upload_file(str(path), bucket, f"data/{path.name}")
    index = make_index([find_dataset(f"s3://{bucket}/data")], tmp_path / "out")
    train(Job(settings_of(tmp_path, samples=48), str(tmp_path / "out"), str(index.folder)))
    train(job_of(tmp_path, "disk", whole / "data", samples=48))
    assert curve(tmp_path) == curve(tmp_path, "disk")


def test_several_datasets_share_the_batches_by_their_weights(whole, tmp_path):
    second = write_dataset(tmp_path / "second", 30, first=100)
    index = make_index([find_dataset(str(place)) for place in (whole / "data", second)], tmp_path / "out")
    settings = settings_of(tmp_path, data_weights=[3, 1])
    train(Job(settings, str(tmp_path / "out"), str(index.folder)))
    saw = seen(tmp_path / "out" / "latest", [uid_of(number) for number in [*range(60), *range(100, 130)]])
    of_second = sum(len(saw.get(uid_of(number), [])) for number in range(100, 130))
    assert (of_second, sum(map(len, saw.values()))) == (32, 128)


def test_held_out_pairs_are_measured_by_all_workers_alike(whole, tmp_path):
    val = make_index([find_dataset(str(write_dataset(tmp_path / "val", 21, first=200)))], tmp_path / "index")
    found = []
    for workers in (1, 2):
        job = job_of(tmp_path, f"out{workers}", whole / "data", samples=64, evaluate_steps=2)
        ranks(workers, _train_as_rank, Job(job.settings, job.out, job.index, str(val.folder)), 0)
        lines = [json.loads(line) for line in (tmp_path / f"out{workers}" / "metrics.jsonl").read_text().splitlines()]
        found.append([(line["step"], line["val_image_to_text"]) for line in lines if "val_image_to_text" in line])
    assert [step for step, _ in found[0]] == [2, 4]
    for (_, one), (_, other) in zip(*found, strict=True):
        assert abs(one - other) <= 2 / 21  # rounding may turn a near tie


def test_tensorboard_gets_what_the_metrics_file_says(whole):
    """Read as the formats say: TFRecords of Event messages (tensorflow/core/util/event.proto)."""
    (path,) = (whole / "out" / "tensorboard").iterdir()
    data, found = path.read_bytes(), {}
    at = 0
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        event = data[at + 12 : at + 12 + length]
        for match in re.finditer(rb"\x0a\x04loss\x15(....)", event, re.DOTALL):
            found[event[10]] = struct.unpack("<f", match.group(1))[0]  # after wall_time and the step's tag
        at += length + 16
    assert found == {step: pytest.approx(loss, rel=1e-6) for step, loss, *_ in curve(whole)}


def test_tfrecords_carry_castagnolis_crc():
    from pipeline.train.events import _masked

    (masked,) = struct.unpack("<I", _masked(b"123456789"))
    turned = (masked - 0xA282EAD8) & 0xFFFFFFFF
    assert (turned >> 17 | turned << 15) & 0xFFFFFFFF == 0xE3069283  # RFC 3720, appendix B.4's check value
