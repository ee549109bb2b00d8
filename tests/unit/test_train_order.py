"""The order of training against what it promises: permutations, batches without repeats, any place found directly."""

import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.train.order import Order, Permutation


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64, 1000, 4097])
def test_a_permutation_holds_every_number_once_and_finds_its_place(size):
    permutation = Permutation(size, 7, 0, 3)
    numbers = permutation.at(np.arange(size))
    assert sorted(numbers.tolist()) == list(range(size))
    assert permutation.place_of(numbers).tolist() == list(range(size))


def test_permutations_of_other_epochs_and_seeds_differ_and_look_random():
    numbers = [Permutation(10_000, *key).at(np.arange(10_000)) for key in ((0, 0, 0), (0, 0, 1), (1, 0, 0))]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert (numbers[one] == numbers[other]).sum() < 10  # 1 is expected
    for found in numbers:
        moved = np.abs(np.corrcoef(found, np.arange(10_000))[0, 1])
        follows = np.abs(np.corrcoef(found[1:], found[:-1])[0, 1])
        assert max(moved, follows) < 0.05  # the standard deviation is 0.01


@pytest.mark.parametrize(("size", "batch"), [(16, 16), (17, 16), (23, 16), (50, 16), (61, 16), (1000, 16), (130, 7)])
def test_the_stream_is_permutations_end_to_end_and_no_batch_repeats_a_sample(size, batch):
    order = Order([size], batch, seed=3)
    steps = 6 * size // batch + 2
    batches = [order.samples(step).tolist() for step in range(steps)]
    assert all(len(set(one)) == batch for one in batches)
    stream = [sample for one in batches for sample in one]
    for epoch in range(steps * batch // size):
        assert sorted(stream[epoch * size : (epoch + 1) * size]) == list(range(size))


@pytest.mark.parametrize(("size", "batch"), [(23, 16), (61, 16), (500, 16)])
def test_any_batch_is_found_without_those_before_it(size, batch):
    steps = 5 * size // batch
    in_order = Order([size], batch, seed=1)
    expected = [in_order.samples(step).tolist() for step in range(steps)]
    for step in reversed(range(steps)):
        assert Order([size], batch, seed=1).samples(step).tolist() == expected[step]


@pytest.mark.parametrize("weights", [None, [1.0, 1.0, 2.0]])
def test_the_steps_that_saw_a_sample_are_those_whose_batch_held_it(weights):
    order, until = Order([40, 25, 60], 16, seed=5, weights=weights), 40
    held: dict[int, list[int]] = {}
    for step in range(until):
        for sample in order.samples(step).tolist():
            held.setdefault(sample, []).append(step)
    for sample in range(125):
        assert order.steps_seen(sample, until) == held.get(sample, [])


def test_weights_are_the_shares_of_the_datasets_in_the_batches():
    order = Order([200, 300, 400], 20, seed=0, weights=[1, 3, 6])
    counts = np.zeros(3)
    for step in range(50):
        samples = order.samples(step)
        assert len(set(samples.tolist())) == 20
        counts += np.bincount(np.searchsorted([200, 500], samples, side="right"), minlength=3)
    assert counts.tolist() == [100, 300, 600]


def test_each_dataset_of_a_weighted_run_is_gone_through_in_permutations():
    order = Order([50, 90], 16, seed=2, weights=[1, 2])
    stream = np.concatenate([order.samples(step) for step in range(60)])
    for low, high in ((0, 50), (50, 140)):
        own = stream[(stream >= low) & (stream < high)].tolist()
        size = high - low
        assert all(
            sorted(own[start : start + size]) == list(range(low, high)) for start in range(0, len(own) - size, size)
        )


def test_a_billion_samples_need_no_memory():
    order = Order([1_280_000_000], 90_112, seed=0)
    batch = order.samples(14_204)  # the one in which the second permutation begins
    assert len(set(batch.tolist())) == 90_112
    assert order.steps_seen(int(batch[-1]), 20_000)[-1] in range(20_000)


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(InputError, match="batch_size 64 takes 64 samples of a dataset of 60"):
        Order([60], 64, seed=0)


@pytest.mark.parametrize(
    ("weights", "said"),
    [([1.0], "1 numbers for 2 datasets"), ([1.0, 0.0], "above 0"), ([1.0, 1000.0], "no room for each")],
)
def test_weights_that_make_no_batch_are_refused(weights, said):
    with pytest.raises(InputError, match=said):
        Order([100, 100], 16, seed=0, weights=weights)
