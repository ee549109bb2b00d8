"""Loss and gradients against open_clip's ClipLoss and SigLipLoss, in float64, on one to three ranks."""

from functools import lru_cache

import pytest
import torch

from pipeline.train.loss import contrast
from pipeline.train.world import World
from tests.ranks import ranks

ROWS, DIM = 4, 6


def _features(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(size)
    made = torch.randn(2, size * ROWS, DIM, generator=generator, dtype=torch.float64)
    images, texts = torch.nn.functional.normalize(made, dim=-1)
    return images, texts


CASES = [("clip", True), ("clip", False), ("siglip", True), ("siglip", False)]


@lru_cache
def _answers(size: int) -> list:
    """Every rank's answers, one a case; the processes are started once."""
    return ranks(size, _rank_of_all)


def _rank_of_all() -> list:
    return [_rank_of_both(*case) for case in CASES]


def _rank_of_both(name: str, local: bool) -> dict[str, list]:
    """This rank's numbers by us and by open_clip, for one global batch."""
    import torch.distributed as dist
    from open_clip.loss import ClipLoss, SigLipLoss

    rank, size = dist.get_rank(), dist.get_world_size()
    mine = slice(rank * ROWS, (rank + 1) * ROWS)
    images, texts = (one[mine].clone().requires_grad_() for one in _features(size))
    log_scale = torch.tensor(1.7, dtype=torch.float64, requires_grad=True)
    bias = torch.tensor(-3.0, dtype=torch.float64, requires_grad=True) if name == "siglip" else None
    ours = contrast(
        name, images, texts, log_scale, bias, torch.ones(ROWS, dtype=torch.float64), torch.ones(ROWS, dtype=torch.bool),
        World(rank, size),
    )  # fmt: skip
    if name == "clip":
        theirs = ClipLoss(local_loss=local, gather_with_grad=True, rank=rank, world_size=size)
        loss = theirs(images, texts, log_scale.exp())
    else:
        theirs = SigLipLoss(rank=rank, world_size=size, dist_impl="bidir" if local else "gather")
        loss = theirs(images, texts, log_scale.exp(), bias)
    loss.backward()

    def summed(value: torch.Tensor) -> float:
        whole = value.detach().clone()
        dist.all_reduce(whole)
        return whole.item()

    told = {
        "loss": [summed(ours.loss), summed(loss) / size],
        # DistributedDataParallel averages theirs over the ranks.
        "images": [ours.images.tolist(), (images.grad / size).tolist()],
        "texts": [ours.texts.tolist(), (texts.grad / size).tolist()],
        "log_scale": [summed(ours.log_scale), summed(log_scale.grad) / size],
    }
    if bias is not None:
        told["bias"] = [summed(ours.bias), summed(bias.grad) / size]
    return told


@pytest.mark.parametrize("case", range(len(CASES)), ids=lambda case: "-".join(map(str, CASES[case])))
@pytest.mark.parametrize("size", [1, 2, 3])
def test_loss_and_gradients_are_open_clips(case, size):
    for told in _answers(size):
        for part, (ours, theirs) in told[case].items():
            one, other = (torch.tensor(value, dtype=torch.float64) for value in (ours, theirs))
            torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-14, msg=part)


def _alone(name, images, texts, weights=None, present=None, log_scale=1.7, bias=-3.0):
    count = len(images)
    return contrast(
        name, images, texts, torch.tensor(log_scale, dtype=torch.float64), torch.tensor(bias, dtype=torch.float64),
        torch.ones(count, dtype=torch.float64) if weights is None else weights,
        torch.ones(count, dtype=torch.bool) if present is None else present, World(),
    )  # fmt: skip


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_rows_a_block_at_a_time_give_the_same_as_all_at_once(name, monkeypatch):
    images, texts = _features(3)
    whole = _alone(name, images, texts)
    monkeypatch.setattr("pipeline.train.loss.BLOCK_LOGITS", 5 * len(images))
    parts = _alone(name, images, texts)
    assert parts.loss.item() == pytest.approx(whole.loss.item(), rel=1e-13)
    torch.testing.assert_close(parts.images, whole.images, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(parts.log_scale, whole.log_scale, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_an_absent_row_is_as_if_it_had_never_been_drawn(name):
    images, texts = _features(2)
    present = torch.tensor([True, False, True, True, True, True, False, True])
    weights = present.double()
    with_absent = _alone(name, images, texts, weights, present)
    without = _alone(name, images[present], texts[present])
    assert with_absent.loss.item() == pytest.approx(without.loss.item(), rel=1e-13)
    torch.testing.assert_close(with_absent.images[present], without.images, rtol=1e-12, atol=1e-15)
    assert with_absent.texts[~present].abs().max() == 0


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_a_batch_of_absent_rows_only_teaches_nothing(name):
    images, texts = _features(1)
    nobody = torch.zeros(len(images), dtype=torch.bool)
    told = _alone(name, images, texts, nobody.double(), nobody)
    assert told.loss == 0
    assert told.images.abs().max() == 0


def test_a_sample_of_weight_two_counts_as_two_in_the_mean():
    images, texts = _features(1)
    weights = torch.tensor([2.0, 1, 1, 1], dtype=torch.float64)
    scale = torch.tensor(1.7, dtype=torch.float64).exp()
    logits = scale * images @ texts.T
    each = -(logits.log_softmax(1).diag() + logits.T.log_softmax(1).diag()) / 2
    expected = (weights * each).sum() / weights.sum()
    assert _alone("clip", images, texts, weights, bias=0.0).loss.item() == pytest.approx(expected.item(), rel=1e-13)


def test_accuracy_counts_rows_whose_own_text_is_nearest():
    images = torch.eye(4, dtype=torch.float64)
    texts = images[[0, 1, 3, 2]]
    assert _alone("clip", images, texts).correct == 2
