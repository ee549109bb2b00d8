"""Training killed with SIGKILL where it hurts, resumed, and held against the run that nothing happened to."""

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from pipeline.errors import StoreError
from pipeline.train.checkpoint import Checkpoints, why_broken
from pipeline.train.ledger import seen
from pipeline.train.loop import Job, train
from tests.pool_fixture import uid_of
from tests.ranks import ranks
from tests.running import REPOSITORY, job, start
from tests.train_fixture import curve, image_of, job_of, towers_file, write_dataset

STEPS = 8


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("whole")
    assert train(job_of(folder)) == STEPS
    return folder


def _with_fault(wanted: Job, fault: str) -> int:
    os.environ["PAIRMILL_FAULT"] = fault
    return train(wanted)


def _train(wanted: Job) -> int:
    return train(wanted)


@pytest.mark.parametrize(
    "point", ["step@1", "step@2", "step@5", "step@8", "checkpoint-written", "checkpoint-rename", "checkpoint-done"]
)
def test_a_run_killed_anywhere_and_resumed_is_the_run_that_was_not(whole, tmp_path, point):
    wanted = job_of(tmp_path, data=whole / "data")
    with contextlib.suppress(RuntimeError):
        ranks(1, _with_fault, wanted, f"{point}:kill:{tmp_path / 'flag'}")
    assert (tmp_path / "flag").exists()
    assert ranks(1, _train, wanted) == [STEPS]
    assert curve(tmp_path) == curve(whole)
    uids = [uid_of(number) for number in range(60)]
    assert seen(tmp_path / "out" / "latest", uids) == seen(whole / "out" / "latest", uids)
    assert not list((tmp_path / "out" / "checkpoints").glob(".*"))


def test_kills_at_any_moment_add_up_to_the_same_run(whole, tmp_path):
    """A process that is killed again and again, each time a little later, by the clock."""
    wanted = job_of(tmp_path, data=whole / "data", checkpoint_steps=1)
    script = tmp_path / "go.py"
    script.write_text(
        "import sys, pickle, torch\nfrom pipeline.train.loop import train\ntorch.set_num_threads(1)\n"
        "print('ready', flush=True)\ntrain(pickle.load(open(sys.argv[1], 'rb')))\n"
    )
    import pickle

    (tmp_path / "job").write_bytes(pickle.dumps(wanted))
    for wait in (0.3, 0.9, 1.3, None):
        process = subprocess.Popen(
            [sys.executable, script, tmp_path / "job"], stdout=subprocess.PIPE, cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        if wait is not None:
            time.sleep(wait)
            process.kill()
        process.wait()
        process.stdout.close()
    assert curve(tmp_path) == curve(whole)


def test_a_killed_decode_process_costs_nothing(whole, tmp_path, monkeypatch):
    from pipeline.train import data

    started = []
    usual = data.ChildProcess

    def remembered(*given):
        started.append(usual(*given))
        if len(started) == 1:
            os.kill(started[0].pid, signal.SIGKILL)
        return started[-1]

    monkeypatch.setattr(data, "ChildProcess", remembered)
    assert train(job_of(tmp_path, data=whole / "data")) == STEPS
    assert len(started) > 1
    assert curve(tmp_path) == curve(whole)


def _on_a_disk_of(wanted: Job, free: int) -> str:
    """Train where no file can be longer than `free` bytes; returns the error."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free, free))
    try:
        train(wanted)
    except StoreError as error:
        return str(error)
    return "no error"


@pytest.mark.parametrize("free", [1 << 20, 8 << 20])  # in the weights (6.6 MB), in the optimiser's state (13 MB)
def test_a_disk_that_fills_while_checkpointing_leaves_the_last_one_and_says_so(whole, tmp_path, free):
    from pipeline.train.loop import train as again

    asked = iter(range(1, 99))
    again(job_of(tmp_path, data=whole / "data"), lambda: next(asked) == 3)
    (said,) = ranks(1, _on_a_disk_of, job_of(tmp_path, data=whole / "data"), free)
    assert "the checkpoint of step 4 cannot be written" in said
    assert "the checkpoint of step 3 is intact" in said
    assert "\n" not in said
    assert Checkpoints(tmp_path / "out", 2).steps() == [2, 3]
    assert why_broken(tmp_path / "out" / "checkpoints" / "0000000003") is None
    assert not list((tmp_path / "out" / "checkpoints").glob(".*"))
    assert train(job_of(tmp_path, data=whole / "data")) == STEPS
    assert curve(tmp_path) == curve(whole)


def _arguments(folder: Path, data: Path, *more: str, **changes: object) -> list[str]:
    told = {
        "arch": towers_file(folder), "batch_size": 16, "samples": 128, "warmup": 2, "lr": "1e-2", "threads": 1,
        "checkpoint_steps": 2, "keep": 2, **changes,
    }  # fmt: skip
    sets = [part for name, value in told.items() for part in ("--set", f"{name}={value}")]
    return ["--data", str(data), "--out", str(folder / "out"), *sets, *more]


def test_on_ray_a_killed_worker_is_replaced_and_the_curve_is_the_same(whole, tmp_path):
    arguments = _arguments(tmp_path, whole / "data")
    done = job("train", *arguments, env={"PAIRMILL_FAULT": f"step@5:kill:{tmp_path / 'flag'}"})
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "flag").exists()
    assert curve(tmp_path) == curve(whole)
    again = job("train", *arguments)
    assert again.returncode == 0, again.stderr
    assert "all 8 steps are trained" in again.stderr
    manifest = json.loads((tmp_path / "out" / "latest" / "checkpoint.json").read_text())
    assert manifest["step"] == STEPS


def test_on_ray_sigterm_checkpoints_and_the_same_command_goes_on(whole, tmp_path):
    """Long enough not to end by itself, on two workers."""
    arguments = _arguments(tmp_path, whole / "data", samples=160_000, workers=2, checkpoint_steps=1_000_000)
    process = start("train", *arguments)
    metrics = tmp_path / "out" / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and not (metrics.exists() and metrics.stat().st_size):
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 1, told
    assert "the same command goes on from there" in told
    newest = Checkpoints(tmp_path / "out", 2).newest()
    assert newest is not None
    assert newest[1]["step"] == curve(tmp_path)[-1][0]


def test_on_ray_bad_data_is_one_line_and_exit_2(tmp_path):
    data = write_dataset(tmp_path / "data", 40, images={number: image_of(0)[:50] for number in range(40)})
    done = job("train", *_arguments(tmp_path, data, max_bad=0.001))
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("pairmill train: ")
    assert "samples cannot be used, more than max_bad 0.001" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--set", "bach_size=3"], "--set bach_size: there is no such setting; did you mean batch_size"),
        (["--set", "batch_size=64"], "batch_size 64 takes 64 samples of a dataset of 60"),
        (["--set", "arch=ViT-B-33"], "arch ViT-B-33 is not one of open_clip's; did you mean ViT-B-32"),
        (["--data", "nowhere"], "--data nowhere: there is no such folder"),
        (["--preset", "huge"], "--preset huge: there is none"),
        (["--dta", "x"], "did you mean --data"),
    ],
)
def test_what_is_wrong_with_the_command_is_one_line_and_exit_2(whole, tmp_path, capsys, more, said):
    from jobs.train import main

    try:
        code = main(_arguments(tmp_path, whole / "data", *more))
    except SystemExit as ended:
        code = int(ended.code or 0)
    told = capsys.readouterr().err
    assert code == 2
    assert said in told
    assert len(told.strip().splitlines()) == 1
