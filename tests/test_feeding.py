"""What training is fed with: items, their randomness, the sampler, streams, the cache."""

import os
import pickle
from concurrent.futures import ThreadPoolExecutor

import datasets
import numpy as np
import pytest
import torch
from filelock import FileLock
from helpers import encode, grey, truncated_png, write, write_folder
from test_data import (
    ONE_CHANNEL,
    PLAIN,
    images,  # noqa: F401 - fixtures
)

from commandline import UsageError
from corpora.load import load_corpus
from corpora.record import BadImageError
from images.transform import ImageTransform
from output_folder import FILE_STAGING
from training.arguments import DataArguments
from training.feeding import EpochSampler, PretrainDataset, PretrainIterableDataset, _ItemMaker, collate
from training.pretraining_data import grey_statistics, load_data

RANDOM = ImageTransform(32, random_resized_crop=True, horizontal_flip=True, vertical_flip=True)


def same(one: dict, two: dict) -> bool:
    return (
        torch.equal(one["pixel_values"], two["pixel_values"])
        and torch.equal(one["noise"], two["noise"])
        and one["file_name"] == two["file_name"]
    )


def test_items(images):
    item = PretrainDataset(images, ImageTransform((32, 48)), patch_size=16, num_channels=3)[4]
    assert item["pixel_values"].shape == (3, 32, 48) and item["pixel_values"].dtype == torch.float32
    assert item["noise"].shape == (6,) and item["noise"].dtype == torch.float32
    assert item["file_name"] == "04.png"


def test_randomness_is_a_function_of_seed_epoch_and_index(images):
    def make(seed: int) -> PretrainDataset:
        return PretrainDataset(images, RANDOM, patch_size=8, num_channels=3, seed=seed)

    torch.manual_seed(1)
    first = [make(0)[key] for key in range(30)]
    torch.manual_seed(2)  # the global state has no say
    again = {key: make(0)[key] for key in reversed(range(30))}
    assert all(same(first[key], again[key]) for key in range(30))
    assert [item["file_name"] for item in first[10:20]] == images["file_name"]
    noises = torch.stack([item["noise"] for item in first] + [make(1)[3]["noise"]])
    correlation = torch.corrcoef(noises)[~torch.eye(31, dtype=torch.bool)]
    assert correlation.abs().max() < 0.95 and correlation.abs().mean() < 0.3
    assert not torch.equal(first[3]["pixel_values"], first[13]["pixel_values"])


def test_masks_do_not_depend_on_the_transform(images):
    plain = PretrainDataset(images, PLAIN, patch_size=8, num_channels=3)
    augmented = PretrainDataset(images, RANDOM, patch_size=8, num_channels=3)
    assert torch.equal(plain[23]["noise"], augmented[23]["noise"])


def test_evaluation_is_fixed(images):
    one = PretrainDataset(images, RANDOM, patch_size=8, num_channels=3, seed=0, train=False)
    two = PretrainDataset(images, RANDOM, patch_size=8, num_channels=3, seed=9, train=False)
    assert all(same(one[i], two[i]) for i in range(10))
    assert not torch.equal(one[0]["noise"], one[1]["noise"])
    with pytest.raises(IndexError):
        one[10]


def test_workers_change_nothing(images):
    dataset = PretrainDataset(images, RANDOM, patch_size=8, num_channels=3)
    sampler = EpochSampler(10, 4, seed=0)
    sampler.set_epoch(2)
    batches = [
        list(torch.utils.data.DataLoader(dataset, 4, sampler=sampler, num_workers=workers, collate_fn=collate))
        for workers in (0, 2)
    ]
    assert len(batches[0]) == 2
    assert all(same(one, two) for one, two in zip(*batches, strict=True))
    assert isinstance(batches[0][0]["file_name"], list) and batches[0][0]["noise"].shape == (4, 16)


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """No test writes to the user's cache."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "glcm_mae_images"


@pytest.mark.parametrize("workers", [0, 2])
def test_cache_gives_the_same_items_to_the_last_bit(images, workers, own_cache, monkeypatch):
    transform = ImageTransform(32, horizontal_flip=True)
    plain = PretrainDataset(images, transform, patch_size=8, num_channels=3)
    cached = PretrainDataset(images, transform, patch_size=8, num_channels=3, cache=True)
    expected = [[plain[epoch * 10 + index] for index in range(10)] for epoch in range(2)]
    monkeypatch.setattr(type(cached._make_item), "decode", None)  # from here on, nothing is decoded
    for epoch in range(2):
        sampler = EpochSampler(10, 5, seed=0)
        sampler.set_epoch(epoch)
        loader = torch.utils.data.DataLoader(cached, 5, sampler=sampler, num_workers=workers, collate_fn=collate)
        for batch, keys in zip(loader, torch.tensor(list(sampler)).split(5), strict=True):
            assert same(batch, collate([expected[epoch][int(key) % 10] for key in keys]))
    assert len(list(own_cache.glob("*.npy"))) == 1


@pytest.mark.parametrize("kind", ["16 bits", "grey", "colour at last", "one channel"])
def test_cache_keeps_depth_and_colour(tmp_path, kind, own_cache):
    bits, channels = (16 if kind == "16 bits" else 8), (1 if kind == "one channel" else 3)
    for index in range(5):
        colour = kind == "colour at last" and index == 4
        image = np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8) if colour else None
        write(
            tmp_path / "raw" / f"{index}.png", encode(grey(40, 48, bits=bits, seed=index) if image is None else image)
        )
    images = load_corpus(str(tmp_path / "raw"))
    transform = ImageTransform(32, resize="squash", image_mean=(0.4, 0.5, 0.6)[:channels], image_std=(0.3,) * channels)
    plain, cached = (
        PretrainDataset(images, transform, patch_size=8, num_channels=channels, cache=cache) for cache in (False, True)
    )
    assert all(same(plain[index], cached[index]) for index in range(5))
    (file,) = own_cache.glob("*.npy")
    stored = 3 if kind == "colour at last" else 1  # grey takes a third
    assert file.stat().st_size == 5 * stored * 32 * 32 * 4 + 128


def test_cache_is_found_again_and_made_again_where_it_must_be(images, own_cache, monkeypatch, caplog):
    decoded, decode = [], _ItemMaker.decode
    monkeypatch.setattr(_ItemMaker, "decode", lambda self, row: (decoded.append(row), decode(self, row))[1])

    def made(part=images, transform=PLAIN, **given):
        decoded.clear()
        dataset = PretrainDataset(part, transform, patch_size=8, num_channels=3, cache=True, **given)
        return dataset, len(decoded)

    first, count = made()
    assert count == 10
    again, count = made(seed=3, train=False)
    assert count == 0 and torch.equal(again[7]["pixel_values"], first[7]["pixel_values"])
    # What changes no pixel of the file has the same file; what does has another one.
    assert made(transform=ImageTransform(32, image_mean=(0.1,) * 3, vertical_flip=True))[1] == 0
    others = [{"transform": ImageTransform(32, resize="squash")}, {"transform": ImageTransform(16)}]
    others += [{"part": images.select(range(9))}, {"part": images.select(range(9, -1, -1))}]
    assert all(made(**other)[1] >= 9 for other in others)
    worker = pickle.dumps(first)
    assert len(worker) < len(pickle.dumps(images)) + 5000, "a worker that is spawned is sent no pixels"
    assert same(pickle.loads(worker)[3], first[3])

    file = first._cache.file
    for damage in (lambda: os.truncate(file, file.stat().st_size - 1), lambda: file.write_bytes(b"no array")):
        del first, again
        damage()
        caplog.clear()
        first, count = made()
        assert count == 10 and f"{file} is damaged" in caplog.text and "is made again" in caplog.text
        again, count = made()
        assert count == 0 and "damaged" not in caplog.text.split("made again", 1)[1]


def test_a_cache_that_was_cut_short_is_cleared_away_and_others_of_other_files_are_not(images, own_cache):
    file = PretrainDataset(images, PLAIN, patch_size=8, num_channels=3, cache=True)._cache.file
    file.unlink()
    names = {"cut": file.name, "going on": file.name, "other": "other.npy"}
    left = {kind: write(own_cache / f"{FILE_STAGING}{kind}" / name, b"half") for kind, name in names.items()}
    for kind in ("cut", "other"):
        os.utime(left[kind], (0, 0))
    PretrainDataset(images, PLAIN, patch_size=8, num_channels=3, cache=True)
    assert file.exists() and [kind for kind, path in left.items() if path.exists()] == ["going on", "other"]
    assert not left["cut"].parent.exists()


def test_one_process_writes_the_cache_and_another_waits(images, own_cache, caplog):
    caplog.set_level("INFO")
    file = PretrainDataset(images, PLAIN, patch_size=8, num_channels=3, cache=True)._cache.file
    kept = file.rename(file.with_suffix(".kept"))
    pool = ThreadPoolExecutor()
    with FileLock(f"{file}.lock"):
        waiting = pool.submit(PretrainDataset, images, PLAIN, patch_size=8, num_channels=3, cache=True)
        with pytest.raises(TimeoutError):
            waiting.result(timeout=1)
        kept.rename(file)
        written = file.stat().st_mtime_ns
    assert waiting.result(60)._cache.file == file and file.stat().st_mtime_ns == written
    assert f"another process writes {file}" in caplog.text


def test_cache_refuses_what_it_cannot_hold(images, own_cache):
    with pytest.raises(ValueError, match="cache_images.*random_resized_crop"):
        PretrainDataset(images, RANDOM, patch_size=8, num_channels=3, cache=True)
    own_cache.parent.write_text("a file is in the way")
    with pytest.raises(UsageError, match="cache_images: .*npy cannot be written .*HF_DATASETS_CACHE.*to false"):
        PretrainDataset(images, PLAIN, patch_size=8, num_channels=3, cache=True)


def test_epoch_sampler():
    sampler = EpochSampler(10, 4, seed=0)
    assert len(sampler) == 8
    first = list(sampler)
    assert len(set(first)) == 8 and max(first) < 10 and first == list(sampler)
    sampler.set_epoch(3)
    later = list(sampler)
    assert all(30 <= key < 40 for key in later)
    assert [key - 30 for key in later] != first
    assert list(EpochSampler(10, 4, seed=1)) != first
    with pytest.raises(ValueError, match="3 training images are fewer than one batch of 4"):
        EpochSampler(3, 4, seed=0)


def test_dataset_settings_are_validated(images):
    with pytest.raises(ValueError, match="32 x 32 is not a multiple of patch_size 12"):
        PretrainDataset(images, PLAIN, patch_size=12, num_channels=3)
    with pytest.raises(ValueError, match=r"image_mean has 3 value\(s\), num_channels is 1"):
        PretrainDataset(images, PLAIN, patch_size=8, num_channels=1)


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_streaming(images, tmp_path, kind):
    source = tmp_path / "images"
    if kind == "parquet":
        source = tmp_path / "parquet"
        source.mkdir()
        images.cast_column("image", datasets.Image()).to_parquet(source / "train.parquet")
    stream = load_corpus(str(source), streaming=True)
    options = {"patch_size": 8, "num_channels": 3, "seed": 5}
    expected = PretrainDataset(images, RANDOM, **options)
    streamed = PretrainIterableDataset(stream, RANDOM, **options)
    for epoch in (0, 2):
        streamed.set_epoch(epoch)
        items = list(streamed)
        assert len(items) == 10
        assert all(same(item, expected[epoch * 10 + i]) for i, item in enumerate(items))


def test_streaming_shuffles_anew_each_epoch(images):
    stream = PretrainIterableDataset(
        images.to_iterable_dataset(), PLAIN, patch_size=8, num_channels=3, shuffle_buffer=10
    )
    orders = []
    for epoch in (0, 1, 0):
        stream.set_epoch(epoch)
        orders.append([item["file_name"] for item in stream])
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == images["file_name"]


def _seen(items) -> list[bytes]:
    return [item["pixel_values"].numpy().tobytes() for item in items]


def _write_shards(folder, shards: list[list[dict]], features: dict) -> None:
    for index, rows in enumerate(shards):
        shard = datasets.Dataset.from_list(rows, features=datasets.Features(features))
        shard.to_parquet(folder / f"train-{index:05d}-of-{len(shards):05d}.parquet")


@pytest.mark.parametrize("shuffle_buffer", [0, 10])
@pytest.mark.parametrize("path", ["{}.png", None])  # as push_to_hub leaves them of a/0.png, b/0.png; and numbered names
def test_a_stream_trains_on_all_but_the_held_out_images_whatever_their_names(
    tmp_path, monkeypatch, tiny_config, path, shuffle_buffer
):
    # datasets waits for the threads of pyarrow after every pass, five seconds where a tenth is enough
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.1)
    shards = [
        [{"image": {"bytes": encode(grey(seed=10 * s + i)), "path": path and path.format(i)}} for i in range(4)]
        for s in range(4)
    ]
    _write_shards(tmp_path / "images", shards, {"image": datasets.Image()})
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "0.png", encode(grey(seed=99)))  # not an image of the stream, though called like one
    given = {"corpus": str(tmp_path / "images"), "streaming": True, "shuffle_buffer": shuffle_buffer}
    every = set(_seen(load_data(DataArguments(**given, held_out=0), tiny_config(), 0).train))
    data = load_data(DataArguments(**given, held_out=3), tiny_config(), 0)
    held_out = set(_seen(data.held_out[i] for i in range(3)))
    assert len(every) == 16 and len(held_out) == 3 and held_out < every
    for epoch in range(4):
        data.train.set_epoch(epoch)
        trained = _seen(data.train)
        assert len(trained) == 13 and set(trained) == every - held_out, f"epoch {epoch}"


def test_a_stream_trains_on_no_copy_and_no_patient_of_a_held_out_image(tmp_path, tiny_config):
    # held out are the first two: one of patient a, and one of whose patient nothing is known
    groups = [["a", None, "a", "b"], ["b", None, "a", " "], ["c", None]]
    seeds = [[0, 1, 2, 3], [4, 5, 6, 7], [1, 8]]
    shards = [
        [{"image": {"bytes": encode(grey(seed=s)), "path": None}, "group": g} for s, g in zip(*shard, strict=True)]
        for shard in zip(seeds, groups, strict=True)
    ]
    _write_shards(tmp_path, shards, {"image": datasets.Image(), "group": datasets.Value("string")})
    given = {"corpus": str(tmp_path), "streaming": True, "shuffle_buffer": 0}
    every = _seen(load_data(DataArguments(**given, held_out=0), tiny_config(), 0).train)
    assert len(every) == 10
    for workers in (0, 2):
        data = load_data(DataArguments(**given, held_out=2), tiny_config(), 0)
        trained = _seen(torch.utils.data.DataLoader(data.train, batch_size=None, num_workers=workers))
        assert sorted(trained) == sorted(every[i] for i in (3, 4, 5, 7, 9))


def test_a_stream_of_a_folder_knows_held_out_images_by_their_paths(tmp_path, tiny_config):
    write_folder(tmp_path, ["a/0.png", "a/1.png", "b/0.png", "b/1.png"])
    arguments = DataArguments(corpus=str(tmp_path), streaming=True, shuffle_buffer=0, held_out=1)
    data = load_data(arguments, tiny_config(), 0)
    assert [item["file_name"] for item in data.train] == ["a/1.png", "b/0.png", "b/1.png"]


@pytest.mark.parametrize("workers", [0, 2])
def test_streaming_raises_or_skips_and_counts(tmp_path, workers):
    write_folder(tmp_path, [f"{i}.png" for i in range(6)])
    write(tmp_path / "1.png", truncated_png())
    write(tmp_path / "4.png", b"")
    stream = load_corpus(str(tmp_path)).to_iterable_dataset(num_shards=2)
    options = {"patch_size": 8, "num_channels": 3}
    strict = PretrainIterableDataset(stream, PLAIN, **options)
    with pytest.raises(BadImageError, match=r"1\.png.*--bad_images skip"):
        list(strict)
    lenient = PretrainIterableDataset(stream, PLAIN, bad_images="skip", **options)
    loader = torch.utils.data.DataLoader(lenient, batch_size=None, num_workers=workers)
    items = list(loader)
    assert sorted(item["file_name"] for item in items) == ["0.png", "2.png", "3.png", "5.png"]
    assert lenient.skipped == 2
    assert len({tuple(item["noise"].tolist()) for item in items}) == 4, "no two images share a mask"


def test_grey_statistics(tmp_path):
    values = np.full((32, 32), 51, dtype=np.uint8)
    values[:16] = 204
    write(tmp_path / "a.png", encode(values))
    dataset = PretrainDataset(load_corpus(str(tmp_path)), ONE_CHANNEL, patch_size=8, num_channels=1)
    found = grey_statistics(dataset, value_range=(-1, 1), levels=32, channel="mean")
    assert found["mean_pixel"] == pytest.approx([0], abs=1e-5)
    assert (found["occupied_levels"], found["levels"], found["num_images"]) == (2, 32, 1)
    assert found["outside_fraction"] == 0
    found = grey_statistics(dataset, value_range=(-1, 0), levels=8, channel=0)
    assert found["outside_fraction"] == 0.5 and found["occupied_levels"] == 2


def test_grey_statistics_of_full_range_data(images, tmp_path):
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    transform = ImageTransform(32, image_mean=mean, image_std=std)
    dataset = PretrainDataset(images, transform, patch_size=8, num_channels=3)
    value_range = (-mean[1] / std[1], (1 - mean[1]) / std[1])
    found = grey_statistics(dataset, value_range, levels=32, channel=1, max_images=4)
    assert found["num_images"] == 4 and found["outside_fraction"] == 0 and found["occupied_levels"] > 25
    write(tmp_path / "binary" / "1.png", encode((grey(32, 32) > 127).astype(np.uint8) * 255))
    binary = PretrainDataset(load_corpus(str(tmp_path / "binary")), transform, patch_size=8, num_channels=3)
    for channel in range(3):  # pure black and white are inside, though float32 may round them past the ends
        value_range = (-mean[channel] / std[channel], (1 - mean[channel]) / std[channel])
        assert grey_statistics(binary, value_range, levels=32, channel=channel)["outside_fraction"] == 0
    stream = PretrainIterableDataset(images.to_iterable_dataset(), transform, patch_size=8, num_channels=3)
    assert grey_statistics(stream, value_range, 32, 1, max_images=3)["num_images"] == 3
