"""A ROOT knows the models that were trained on it: a row's story and a retraction's receipt name the checkpoints."""

import json
from pathlib import Path

import pytest
import torch

from jobs.retract import main as retract_main
from jobs.trace import main as trace_main
from pipeline.train.dataset import find_dataset
from pipeline.train.index import SampleIndex, make_index
from pipeline.train.ledger import checkpoints_of, seen
from pipeline.train.loop import Job, train
from pipeline.train.registry import register
from tests.integration.test_index import made_root
from tests.train_fixture import settings_of


@pytest.fixture
def trained(tmp_path: Path) -> tuple[Path, Path, SampleIndex]:
    """A ROOT of 45 rows, the folder of a run of two steps on it, and the run's index."""
    torch.set_num_threads(1)
    root, out = tmp_path / "root", tmp_path / "out"
    made_root(str(root))
    index = make_index([find_dataset(str(root))], out)
    register(index.datasets[0]["root"], out, index.fingerprint)
    train(Job(settings_of(tmp_path, samples=16, batch_size=8, checkpoint_steps=1), str(out), str(index.folder)))
    return root, out, index


def _some(out: Path, index: SampleIndex) -> tuple[str, str]:
    """A uid that the second step saw, and one that none did."""
    uids = [index.uid_of(number) for number in range(len(index))]
    saw = seen(checkpoints_of(out)[-1], uids)
    return next(uid for uid in uids if saw.get(uid) == [2]), next(uid for uid in uids if uid not in saw)


def test_a_rows_story_names_the_checkpoints_that_saw_it(trained, capsys):
    root, out, index = trained
    late, never = _some(out, index)
    for uid, expected in ((late, [{"checkpoint": str(checkpoints_of(out)[-1]), "steps": [2]}]), (never, None)):
        assert trace_main([str(root), "--json", "--uid", uid]) == 0
        assert json.loads(capsys.readouterr().out)[0].get("checkpoints") == expected


def test_a_retractions_receipt_names_the_checkpoints_that_saw_what_went(trained, tmp_path, capsys):
    root, out, index = trained
    late, never = _some(out, index)
    for uid, expected in ((never, []), (late, [str(checkpoints_of(out)[-1])])):
        listed = tmp_path / f"{uid}.txt"
        listed.write_text(f"{uid}\n")
        assert retract_main([str(root), "--list", str(listed), "--why", "asked to"]) == 0
        receipts = sorted((root / "retractions").glob("*.json"))
        assert json.loads(receipts[-1].read_text())["checkpoints"] == expected
    assert "trained on some of it, and not changed" in capsys.readouterr().out


def test_a_run_whose_folder_is_gone_is_named_itself(trained, capsys):
    root, out, index = trained
    out.rename(out.with_name("moved"))
    assert trace_main([str(root), "--json", "--uid", index.uid_of(0)]) == 0
    (told,) = json.loads(capsys.readouterr().out)[0]["checkpoints"]
    assert told == {"checkpoint": str(out), "steps": "cannot be read from here"}
