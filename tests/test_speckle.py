"""The speckle corpus: repeatable, equal in brightness, different in texture, and true to the physics of speckle."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Image, Value
from skimage.feature import graycomatrix
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from corpora import speckle
from corpora.speckle import CLASS_SETS, SpeckleClass, envelope, load_speckle, speckle_image
from corpora.speckle_image import _scatterer_positions

TINY = {"num_images": 7, "image_size": 16}
RAYLEIGH_SNR = np.sqrt(np.pi / (4 - np.pi))


def intensity_correlation(speckle_class: SpeckleClass, lag: tuple[int, int], images: int = 4) -> float:
    """Correlation coefficient of the echo intensity at an offset in pixels (row, column)."""
    row, column = lag
    values = []
    for seed in range(images):
        intensity = envelope(speckle_class, 192, seed) ** 2
        height, width = intensity.shape
        first, second = intensity[: height - row, : width - column], intensity[row:, column:]
        values.append(np.corrcoef(first.ravel(), second.ravel())[0, 1])
    return float(np.mean(values))


# ---------------------------------------------------------------------------------------------------------------------
# Physics
# ---------------------------------------------------------------------------------------------------------------------


def test_envelope_of_many_scatterers_is_rayleigh():
    echo = np.stack([envelope(SpeckleClass("dense", 1.0, 1.3, 40.0), 192, seed) for seed in range(4)])
    assert echo.min() >= 0
    assert echo.mean() / echo.std() == pytest.approx(RAYLEIGH_SNR, rel=0.03)


def test_fewer_scatterers_lower_the_snr():
    snrs = []
    for density in (0.3, 1.0, 4.0, 40.0):
        echo = np.stack([envelope(SpeckleClass("x", 1.2, 1.2, density), 192, seed) for seed in range(3)])
        snrs.append(echo.mean() / echo.std())
    assert snrs == sorted(snrs)
    assert snrs[0] < 0.75 * RAYLEIGH_SNR


@pytest.mark.parametrize(("axial", "lateral"), [(0.8, 0.8), (1.6, 1.6), (0.8, 2.4)])
def test_speckle_size_follows_the_psf(axial, lateral):
    # Fully developed speckle: the intensity correlates as the squared autocorrelation of the PSF (Wagner et al. 1983).
    speckle_class = SpeckleClass("dense", axial, lateral, 30.0)
    for lag in (1, 2, 3):
        for offset, width in (((lag, 0), axial), ((0, lag), lateral)):
            expected = np.exp(-0.5 * (lag / width) ** 2)
            assert intensity_correlation(speckle_class, offset) == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize("regularity", [0.0, 0.5, 0.9, 1.0])
def test_regularity_keeps_the_density(regularity):
    speckle_class = SpeckleClass("x", 1.0, 1.5, 3.0, regularity)
    counts = [len(_scatterer_positions(speckle_class, 128, np.random.default_rng(i))) for i in range(8)]
    assert np.mean(counts) == pytest.approx(128**2 * 3.0 / speckle_class.cell_area, rel=0.02)


def test_regular_scatterers_repeat_at_the_lattice_step():
    step, width = 6, 1.5
    density = 2 * np.pi * (width / step) ** 2
    correlation = [
        intensity_correlation(SpeckleClass("x", width, width, density, regularity), (0, step))
        for regularity in (0.0, 0.9, 1.0)
    ]
    assert abs(correlation[0]) < 0.1
    assert correlation[0] + 0.1 < correlation[1] < correlation[2]


# ---------------------------------------------------------------------------------------------------------------------
# Images: what differs between the classes, and what does not
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [16, 50])
def test_image_shape_and_range(size):
    image = speckle_image(CLASS_SETS["easy"][0], size, 0)
    assert image.shape == (size, size)
    assert image.dtype == np.uint8
    assert image.max() > 230
    assert image.min() < 60


def test_same_seed_same_image():
    for speckle_class in CLASS_SETS["easy"]:
        assert np.array_equal(speckle_image(speckle_class, 32, [1, 2]), speckle_image(speckle_class, 32, [1, 2]))
        assert not np.array_equal(speckle_image(speckle_class, 32, [1, 2]), speckle_image(speckle_class, 32, [1, 3]))


def test_all_images_have_one_histogram():
    images = [speckle_image(c, 48, seed) for classes in CLASS_SETS.values() for c in classes for seed in range(3)]
    histograms = np.stack([np.bincount(image.ravel(), minlength=256) for image in images])
    assert (histograms == histograms[0]).all()
    # Enough grey levels are in use for texture to be told from them.
    assert (histograms[0] > 0).sum() > 150


def probe_accuracy(features: np.ndarray, labels: np.ndarray, regularization: float) -> float:
    """Accuracy of a logistic regression fitted to the first half and tested on the second."""
    half = len(labels) // 2
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=regularization, max_iter=1000))
    return classifier.fit(features[:half], labels[:half]).score(features[half:], labels[half:])


def neighbour_matrices(images: np.ndarray) -> np.ndarray:
    """Hard 16-level co-occurrence matrices of the neighbours right and below, flattened: `(images, 512)`."""
    matrices = [graycomatrix(image // 16, [1], [0, np.pi / 2], levels=16, normed=True) for image in images]
    return np.stack(matrices).reshape(len(images), -1)


@pytest.mark.parametrize("class_set", ["easy", "hard"])
def test_texture_separates_the_classes_and_brightness_does_not(class_set):
    classes = CLASS_SETS[class_set]
    chance = 1 / len(classes)
    labels = np.arange(800) % len(classes)
    images = np.stack([speckle_image(classes[label], 96, [11, index]) for index, label in enumerate(labels)])

    histograms = np.stack([np.bincount(image.ravel(), minlength=256) for image in images])
    assert probe_accuracy(histograms, labels, 1.0) == pytest.approx(chance, abs=0.05)
    # Nor can single pixels tell the classes apart.
    pixels = images[:, ::2, ::2].reshape(len(images), -1) / 255.0
    assert probe_accuracy(pixels, labels, 1e-3) == pytest.approx(chance, abs=0.08)

    assert probe_accuracy(neighbour_matrices(images), labels, 0.01) >= 0.95


def test_classes_of_the_hard_set_are_closer():
    def closest(class_set: str) -> float:
        images = [[speckle_image(c, 96, [12, index]) for index in range(40)] for c in CLASS_SETS[class_set]]
        means = [neighbour_matrices(np.stack(of_class)).mean(axis=0) for of_class in images]
        return min(np.abs(one - other).sum() for index, one in enumerate(means) for other in means[:index])

    assert closest("hard") < 0.7 * closest("easy")


# ---------------------------------------------------------------------------------------------------------------------
# Data set and cache
# ---------------------------------------------------------------------------------------------------------------------


def arrays(dataset) -> list[np.ndarray]:
    return [np.asarray(image) for image in dataset["image"]]


def test_round_trip(tmp_path):
    dataset = load_speckle(split="test", class_set="hard", cache_dir=tmp_path, **TINY)
    names = [speckle_class.name for speckle_class in CLASS_SETS["hard"]]
    assert dataset.features["image"] == Image()
    assert dataset.features["label"] == ClassLabel(names=names)
    assert dataset.features["group"] == dataset.features["file_name"] == Value("string")
    assert dataset["label"][:] == [0, 1, 2, 3, 4, 0, 1]
    assert dataset["file_name"][6] == "speckle-hard-test-000006.png"
    assert len(set(dataset["group"])) == len(dataset) == TINY["num_images"]
    image = dataset[3]["image"]
    assert (image.mode, image.size, image.format) == ("L", (16, 16), "PNG")


def test_an_image_does_not_depend_on_the_number_of_images(tmp_path):
    few = load_speckle(cache_dir=tmp_path, **TINY)
    many = load_speckle(cache_dir=tmp_path, num_images=12, image_size=16)
    for first, second in zip(arrays(few), arrays(many), strict=False):
        assert np.array_equal(first, second)
    assert few["file_name"][:] == many["file_name"][: len(few)]


def test_splits_seeds_and_class_sets_share_no_image(tmp_path):
    variants = [{}, {"split": "test"}, {"seed": 1}, {"class_set": "hard"}]
    datasets = [load_speckle(cache_dir=tmp_path, **TINY, **variant) for variant in variants]
    images = [image.tobytes() for dataset in datasets for image in arrays(dataset)]
    assert len(set(images)) == len(images)


def test_labels_are_balanced(tmp_path):
    dataset = load_speckle(cache_dir=tmp_path, num_images=25, image_size=16)
    assert np.bincount(dataset["label"]).tolist() == [5] * 5


def test_second_call_reads_the_cache(tmp_path, monkeypatch):
    first = load_speckle(cache_dir=tmp_path, **TINY)

    def fail(*args, **kwargs):
        raise AssertionError("made again")

    monkeypatch.setattr(speckle, "_generate", fail)
    second = load_speckle(cache_dir=tmp_path, **TINY)
    assert all(map(np.array_equal, arrays(first), arrays(second)))
    with pytest.raises(AssertionError, match="made again"):
        load_speckle(cache_dir=tmp_path, num_images=8, image_size=16)
    # Edited classes or a new format never read the old file.
    monkeypatch.setattr(speckle, "FORMAT_VERSION", speckle.FORMAT_VERSION + 1)
    with pytest.raises(AssertionError, match="made again"):
        load_speckle(cache_dir=tmp_path, **TINY)
    monkeypatch.undo()
    monkeypatch.setattr(speckle, "_generate", fail)
    monkeypatch.setitem(CLASS_SETS, "easy", CLASS_SETS["easy"][::-1])
    with pytest.raises(AssertionError, match="made again"):
        load_speckle(cache_dir=tmp_path, **TINY)


def test_interrupted_write_leaves_no_file(tmp_path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(speckle.os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        load_speckle(cache_dir=tmp_path, **TINY)
    assert list(tmp_path.iterdir()) == []


def test_leftover_and_truncated_files_do_not_matter(tmp_path):
    expected = arrays(load_speckle(cache_dir=tmp_path, **TINY))
    (path,) = tmp_path.glob("*.parquet")
    # What a killed process leaves behind: a part of the file under its temporary name.
    path.with_name(f".{path.stem}-0123.tmp").write_bytes(path.read_bytes()[:100])
    path.unlink()
    assert all(map(np.array_equal, expected, arrays(load_speckle(cache_dir=tmp_path, **TINY))))
    path.write_bytes(path.read_bytes()[:-50])
    assert all(map(np.array_equal, expected, arrays(load_speckle(cache_dir=tmp_path, **TINY))))


def test_processes_may_share_the_cache(tmp_path):
    code = (
        "import sys; from corpora.speckle import load_speckle;"
        "d = load_speckle(cache_dir=sys.argv[1], num_images=40, image_size=32); d[39]['image'].load(); print(len(d))"
    )
    recipes = Path(speckle.__file__).parents[1]
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=recipes, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [process.communicate(timeout=120)[0].strip() for process in processes] == ["40", "40"]
    assert len(list(tmp_path.glob("*.parquet"))) == 1
    assert not list(tmp_path.glob(".*.tmp"))


def test_default_cache_is_in_the_hugging_face_home(tmp_path, monkeypatch):
    monkeypatch.setattr(speckle.constants, "HF_HOME", str(tmp_path))
    load_speckle(**TINY)
    assert len(list((tmp_path / "glcm_mae" / "speckle").glob("*.parquet"))) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "validation"}, r"`split` must be one of \['train', 'test'\], got 'validation'"),
        ({"class_set": "medium"}, r"`class_set` must be one of \['easy', 'hard'\], got 'medium'"),
        ({"image_size": 15}, "`image_size` must be an integer of at least 16 pixels, got 15"),
        ({"image_size": 32.0}, r"`image_size` must be an integer of at least 16 pixels, got 32\.0"),
        ({"num_images": 0}, "`num_images` must be an integer of at least 1, got 0"),
        ({"seed": -1}, "`seed` must be an integer of at least 0, got -1"),
    ],
)
def test_bad_arguments(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        load_speckle(cache_dir=tmp_path, **arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [("axial_width", 0.0), ("lateral_width", -1.0), ("scatterers_per_cell", float("nan")), ("regularity", 1.1)],
)
def test_bad_class(field, value):
    arguments = {"name": "x", "axial_width": 1.0, "lateral_width": 1.0, "scatterers_per_cell": 1.0, field: value}
    with pytest.raises(ValueError, match=f"`{field}` must .*got {value}"):
        SpeckleClass(**arguments)


def test_bad_size():
    with pytest.raises(ValueError, match="`size` must be an integer of at least 16 pixels, got 8"):
        speckle_image(CLASS_SETS["easy"][0], 8, 0)
