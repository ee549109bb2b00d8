"""What --data may name, what an index holds of it, and the one line for each way in which it can be wrong."""

import json
import tarfile

import pytest

from pipeline.errors import InputError
from pipeline.train.dataset import find_dataset
from pipeline.train.index import make_index
from tests.pool_fixture import uid_of
from tests.train_fixture import caption_of, image_of, write_dataset


def _index(tmp_path, *places):
    return make_index([find_dataset(str(place)) for place in places], tmp_path / "out")


def test_our_dataset_is_its_samples_in_the_order_of_its_shards(tmp_path):
    index = _index(tmp_path, write_dataset(tmp_path / "data", 11, shards=3))
    assert len(index) == 11
    for number in range(11):
        assert index.read(number) == image_of(number)
        assert index.text(number) == caption_of(number)
        assert index.uid_of(number) == uid_of(number)
        assert index.samples_of(uid_of(number)) == [number]
        assert index.weight[number] == 1 + number % 3
    assert index.samples_of("0" * 32) == []


def test_anybodys_tars_are_counted_by_reading_them(tmp_path):
    folder = write_dataset(tmp_path / "data", 9, ours=False)
    index = _index(tmp_path, folder)
    assert [index.text(number) for number in range(9)] == [caption_of(number) for number in range(9)]


@pytest.mark.parametrize("place", ["data", "data/{00000..00001}.tar", "data/*.tar", "data/00001.tar"])
def test_a_folder_braces_a_glob_and_a_tar_name_tars(tmp_path, place):
    write_dataset(tmp_path / "data", 10, ours=False)
    assert len(_index(tmp_path, tmp_path / place)) == (5 if place.endswith("/00001.tar") else 10)


def test_several_datasets_follow_each_other(tmp_path):
    one, two = write_dataset(tmp_path / "one", 5), write_dataset(tmp_path / "two", 4, first=50)
    index = _index(tmp_path, one, two)
    assert index.sizes == [5, 4]
    assert index.text(5) == caption_of(50)
    assert index.text(4) == caption_of(4)


def test_the_same_samples_elsewhere_have_the_same_fingerprint(tmp_path):
    one = _index(tmp_path, write_dataset(tmp_path / "one", 6, shards=2))
    other = _index(tmp_path, write_dataset(tmp_path / "two", 6, shards=2))
    fewer = _index(tmp_path, write_dataset(tmp_path / "three", 5, shards=2))
    assert one.folder != other.folder
    assert one.fingerprint == other.fingerprint != fewer.fingerprint


def test_a_finished_index_is_not_made_again(tmp_path):
    data = write_dataset(tmp_path / "data", 6)
    first = _index(tmp_path, data).folder
    made = (first / "files.json").stat().st_mtime_ns
    assert _index(tmp_path, data).folder == first
    assert (first / "files.json").stat().st_mtime_ns == made


def test_tars_with_json_captions_or_pax_headers_are_read(tmp_path):
    (tmp_path / "data").mkdir()
    with tarfile.open(tmp_path / "data" / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for number in range(3):
            folder = "ordner-mit-langem-namen-ü" * 5
            for extension, data in (
                ("JPG", image_of(number)), ("json", json.dumps({"caption": f"text {number}", "url": "u"}).encode())
            ):  # fmt: skip
                path = tmp_path / "member"
                path.write_bytes(data)
                tar.add(path, f"{folder}/{number:04d}.{extension}")
    index = _index(tmp_path, tmp_path / "data")
    assert [index.text(number) for number in range(3)] == ["text 0", "text 1", "text 2"]
    assert index.read(2) == image_of(2)


def _without(name):
    return lambda data: (data / name).unlink()


def _cut(data):
    whole = (data / "00001.tar").read_bytes()
    (data / "00001.tar").write_bytes(whole[: len(whole) // 2])


def _broken_header(data):
    whole = bytearray((data / "00001.tar").read_bytes())
    at = whole.index(b"000010001.jpg")
    whole[at : at + 300] = bytes(range(256)) + bytes(range(44))
    (data / "00001.tar").write_bytes(whole)


def _wrong_count(data):
    sizes = json.loads((data / "sizes.json").read_text())
    (data / "sizes.json").write_text(json.dumps({**sizes, "00001.tar": 7}))


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (_without("00001.tar"), "shard 00001.tar of sizes.json is missing"),
        (lambda data: (data / "00001.tar").write_bytes(b""), "shard 00001.tar is an empty file"),
        (lambda data: (data / "00001.tar").write_bytes(b"<html>" * 200), "shard 00001.tar is no whole tar"),
        (_cut, "shard 00001.tar is no whole tar"),
        (_broken_header, "shard 00001.tar is no whole tar: the header at byte"),
        (_wrong_count, "shard 00001.tar has 5 samples, sizes.json says 7"),
        (_without("sizes.json"), "sizes.json is missing"),
        (lambda data: (data / "sizes.json").write_text("{"), "sizes.json is not JSON"),
        (lambda data: (data / "00000.parquet").write_text("PAR1"), "00000.parquet cannot be read"),
    ],
)
def test_a_broken_dataset_of_ours_is_one_line_that_names_it(tmp_path, harm, said):
    data = write_dataset(tmp_path / "data", 10)
    harm(data)
    with pytest.raises(InputError) as told:
        _index(tmp_path, data)
    assert said in str(told.value)
    assert str(data) in str(told.value)
    assert "\n" not in str(told.value)
    assert not list((tmp_path / "out").glob("index/*"))


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("nowhere", "there is no such folder"), ("empty", "has no tar and no dataset"),
        ("empty/none.tar", "none.tar is missing"), ("empty/{0..2}.tar", "0.tar is missing"),
        ("empty/*.tar", "no file matches"),
    ],
)  # fmt: skip
def test_a_place_with_no_data_is_one_line(tmp_path, place, said):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=said):
        find_dataset(str(tmp_path / place))


def test_a_dataset_of_no_samples_is_one_line(tmp_path):
    data = write_dataset(tmp_path / "data", 0, shards=1)
    with pytest.raises(InputError, match="has no sample"):
        _index(tmp_path, data)
