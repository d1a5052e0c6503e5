"""recipes/embed.py: features of images to Parquet, and the nearest images by them."""

import math
import shutil

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from helpers import encode, grey, truncated_png, write_folder
from PIL import Image
from skimage.feature import graycomatrix, graycoprops
from transformers import AutoImageProcessor, AutoModel, ViTConfig, ViTModel

import embed
from hub.export import write_export
from images.transform import ImageTransform
from training.models import load_classifier


@pytest.fixture
def folder(tmp_path):
    """Two classes of images of different sizes; one of them is 16 bits deep."""
    for index, label in enumerate(["benign", "malignant", "malignant"]):
        path = tmp_path / "images" / label / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(grey(30 + index, 40, bits=16 if index == 2 else 8, seed=index)))
    return tmp_path / "images"


def run(folder, output, *options: str) -> datasets.Dataset:
    embed.main([f"--corpus={folder}", f"--output_dir={output}", *options])
    cache = str(output / "cache")
    return datasets.load_dataset("parquet", data_files=str(output / "features.parquet"), cache_dir=cache)["train"]


@pytest.mark.parametrize(("levels", "distances"), [(32, [1]), (8, [1, 3])])
def test_features_are_those_of_scikit_image(folder, tmp_path, levels, distances):
    table = run(
        folder, tmp_path / "out", "--features=texture", f"--levels={levels}", "--distances", *map(str, distances)
    )
    assert table["file_name"] == ["benign/0.png", "malignant/1.png", "malignant/2.png"]
    assert table.features["label"].names == ["benign", "malignant"] and table["label"] == [0, 1, 1]
    assert table["label_name"] == ["benign", "malignant", "malignant"]
    assert len(table.column_names) == 3 + 25
    for index, row in enumerate(table):
        bits = 16 if index == 2 else 8
        white = 2**bits - 1
        # float32, as images are decoded
        quantized = np.minimum((grey(30 + index, 40, bits=bits, seed=index) / np.float32(white)) * levels, levels - 1)
        angles = [0, math.pi / 4, math.pi / 2, 3 * math.pi / 4]
        matrices = graycomatrix(
            quantized.astype(np.uint8), distances, angles, levels=levels, symmetric=True, normed=True
        )
        for name, other in (
            ("contrast", "contrast"),
            ("energy", "ASM"),
            ("corr", "correlation"),
            ("dissimilarity",) * 2,
        ):
            assert row[name] == pytest.approx(graycoprops(matrices, other).mean(), rel=1e-6), name
    settings = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
    assert settings["levels"] == levels and settings["num_images"] == 3 and settings["skipped"] == []


def test_bad_images_are_named_or_skipped(folder, tmp_path, capsys):
    (folder / "benign" / "bad.png").write_bytes(truncated_png())
    with pytest.raises(SystemExit, match="error: .*benign/bad.png"):
        run(folder, tmp_path / "out")
    assert not (tmp_path / "out" / "features.parquet").exists()
    assert len(run(folder, tmp_path / "out", "--bad_images=skip")) == 3
    assert yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())["skipped"] == ["benign/bad.png"]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--features=shape", "features must be one of texture, cls, mean, grid, got 'shape'"),
        ("--levels=1", "levels must be at least 2, got 1"),
        ("--distances=0", r"distances .* at least 1, got \[0\]"),
        ("--distances=35", r"benign/0.png.*30 x 40 pixels"),
        ("--level=8", "--level"),
    ],
)
def test_mistakes_are_named(folder, tmp_path, option, message):
    with pytest.raises(SystemExit, match=f"error: .*{message}"):
        run(folder, tmp_path / "out", option)


@pytest.fixture
def encoder_folder(tmp_path, tiny_model):
    transform = ImageTransform(32, resize="squash", image_mean=(0.4,) * 3, image_std=(0.3,) * 3)
    write_export(tmp_path / "export", tiny_model(), transform.processor(), {}, [], {"title": "t", "repo_id": "r"})
    return tmp_path / "export"


@pytest.mark.parametrize("kind", ["cls", "mean", "grid"])
def test_encoder_features_are_those_of_plain_transformers_for_any_batch_size(tmp_path, encoder_folder, kind):
    names = [f"{label}/{index}.png" for label in ("a", "b") for index in range(4)]
    root = write_folder(tmp_path / "images", names)
    tables = []
    for size in (1, 3, 8):
        options = ["--features", kind, "--model_name_or_path", str(encoder_folder), "--batch_size", str(size)]
        out = tmp_path / f"out{size}"
        embed.main(["--corpus", str(root), "--output_dir", str(out), "--plot", "pca", *options])
        table = pd.read_parquet(out / "features.parquet")
        tables.append(table.drop(columns=["file_name", "label", "label_name"]).to_numpy())
        assert (out / "features.png").stat().st_size > 0
    np.testing.assert_allclose(tables[1], tables[0], atol=1e-5)
    np.testing.assert_allclose(tables[2], tables[0], atol=1e-5)
    processor, encoder = AutoImageProcessor.from_pretrained(encoder_folder), AutoModel.from_pretrained(encoder_folder)
    images = [Image.open(root / name).convert("RGB") for name in table["file_name"]]
    with torch.no_grad():
        tokens = encoder.eval()(**processor(images=images, return_tensors="pt")).last_hidden_state
    expected = {
        "cls": tokens[:, 0],
        "mean": tokens[:, 1:].mean(1),
        "grid": parts_of(tokens[:, 1:].unflatten(1, (4, 4))),
    }
    np.testing.assert_allclose(tables[0], expected[kind], atol=1e-5)


def parts_of(tokens: torch.Tensor) -> torch.Tensor:
    """Means in 3 x 3 parts `(B, 9 C)` of patch tokens `(B, rows, columns, C)`: of 4 rows the first two, and so on."""
    bounds = [[(side * i // 3, -(-side * (i + 1) // 3)) for i in range(3)] for side in tokens.shape[1:3]]
    parts = [tokens[:, top:bottom, left:right].mean((1, 2)) for top, bottom in bounds[0] for left, right in bounds[1]]
    return torch.cat(parts, 1)


def test_an_encoder_of_few_patches_has_no_grid_and_patches_need_not_be_square(tmp_path, encoder_folder):
    root = write_folder(tmp_path / "images", ["0.png"])
    options = [
        "--corpus",
        str(root),
        "--model_name_or_path",
        str(encoder_folder),
        "--output_dir",
        str(tmp_path / "out"),
    ]
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    ViTModel(ViTConfig(image_size=32, patch_size=[8, 16], **sizes)).save_pretrained(encoder_folder)
    embed.main([*options, "--features", "mean"])
    assert len(pd.read_parquet(tmp_path / "out" / "features.parquet").columns) == 1 + 8
    with pytest.raises(SystemExit, match="features grid needs 3 x 3 patches at least, and .* has 4 x 2: give features"):
        embed.main([*options, "--features", "grid"])


@torch.no_grad()
def test_the_parts_of_an_image_that_is_not_square(tmp_path, tiny_model):
    root = write_folder(tmp_path / "images", ["0.png", "1.png"])
    folder, transform = tmp_path / "wide", ImageTransform([32, 56], resize="squash")
    wide = tiny_model(image_size=[32, 56])
    write_export(folder, wide, transform.processor(), {}, [], {"title": "t", "repo_id": "r"})
    options = ["--features", "grid", "--model_name_or_path", str(folder), "--output_dir", str(tmp_path / "out")]
    embed.main(["--corpus", str(root), *options])
    table = pd.read_parquet(tmp_path / "out" / "features.parquet")
    images = [Image.open(root / name).convert("RGB") for name in table["file_name"]]
    pixels = AutoImageProcessor.from_pretrained(folder)(images=images, return_tensors="pt")
    tokens = AutoModel.from_pretrained(folder).eval()(**pixels).last_hidden_state[:, 1:]
    found = table.drop(columns="file_name").to_numpy()
    np.testing.assert_allclose(found, parts_of(tokens.unflatten(1, (4, 7))), atol=1e-5)


@torch.no_grad()
def test_features_of_a_classifier_are_what_its_head_reads(tmp_path, encoder_folder):
    root = write_folder(tmp_path / "images", ["a/0.png", "b/1.png"])
    folder = shutil.copytree(encoder_folder, tmp_path / "mean")
    model = load_classifier(str(encoder_folder), ["a", "b"], pooling="mean").eval()
    model.save_pretrained(folder)
    options = ["--corpus", str(root), "--output_dir", str(tmp_path / "out"), "--model_name_or_path", str(folder)]
    with pytest.raises(SystemExit, match="reads the mean of the patch tokens: give features mean or grid"):
        embed.main([*options, "--features", "cls"])
    embed.main([*options, "--features", "mean"])
    table = pd.read_parquet(tmp_path / "out" / "features.parquet")
    images = [Image.open(root / name).convert("RGB") for name in table["file_name"]]
    pixels = AutoImageProcessor.from_pretrained(encoder_folder)(images=images, return_tensors="pt")
    found = torch.tensor(table.drop(columns=["file_name", "label", "label_name"]).to_numpy())
    expected = model(**pixels).logits
    torch.testing.assert_close(model.classifier(found), expected, rtol=1e-4, atol=1e-5)
    embed.main([*options, "--features", "grid"])
    found = pd.read_parquet(tmp_path / "out" / "features.parquet").drop(columns=["file_name", "label", "label_name"])
    tokens = model.base_model(**pixels).last_hidden_state[:, 1:].unflatten(1, (4, 4))
    parts = model.base_model.pooler.layernorm(parts_of(tokens).unflatten(1, (9, -1)))  # each as the head reads its mean
    np.testing.assert_allclose(found.to_numpy(), parts.flatten(1), atol=1e-5)


def test_a_deep_image_does_not_go_through_an_8_bit_processor(tmp_path, encoder_folder):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.png").write_bytes(encode(grey(bits=16)))
    options = ["--features", "cls", "--model_name_or_path", str(encoder_folder), "--output_dir", str(tmp_path / "o")]
    with pytest.raises(SystemExit, match=r"a\.png.*white_level=255.*image processor of .*export': convert the images"):
        embed.main(["--corpus", str(tmp_path / "deep"), *options])
    embed.main(["--corpus", str(tmp_path / "deep"), *options, "--white_level", "65535"])


def test_images_of_two_depths_are_refused_by_an_encoder_and_measured_without(folder, tmp_path, encoder_folder):
    options = ["--features=cls", f"--model_name_or_path={encoder_folder}"]
    with pytest.raises(SystemExit, match=r"8-bit and 16-bit images are mixed \(white is 255, 65535\).*to one depth$"):
        run(folder, tmp_path / "out", *options)
    with pytest.raises(SystemExit, match="8 bits and cannot reach white_level=65535"):  # as was asked for
        run(folder, tmp_path / "out", *options, "--white_level=65535")
    assert len(run(folder, tmp_path / "out")) == 3


@pytest.mark.parametrize("resample", [0, 3])
def test_the_processor_decides_the_resampling(tmp_path, encoder_folder, resample):
    processor = AutoImageProcessor.from_pretrained(encoder_folder)
    processor.resample = resample
    processor.save_pretrained(encoder_folder)
    root = write_folder(tmp_path / "images", ["a.png"])
    options = ["--features", "cls", "--model_name_or_path", str(encoder_folder), "--output_dir", str(tmp_path / "o")]
    embed.main(["--corpus", str(root), *options])
    found = pd.read_parquet(tmp_path / "o" / "features.parquet").drop(columns=["file_name"]).to_numpy()
    encoder, image = AutoModel.from_pretrained(encoder_folder).eval(), Image.open(root / "a.png").convert("RGB")
    with torch.no_grad():
        expected = encoder(**processor(images=image, return_tensors="pt")).last_hidden_state[:, 0]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_features_need_the_encoder_that_they_are_of(tmp_path):
    root = write_folder(tmp_path / "images", ["a.png"])
    with pytest.raises(SystemExit, match="model_name_or_path is needed for the features cls, mean and grid"):
        embed.main(["--corpus", str(root), "--features", "cls"])


@pytest.fixture
def grouped(tmp_path):
    """Parquet of six images: two of the same bytes, three of one patient, one without a label."""
    images = [encode(grey(40, 40, seed=seed)) for seed in (0, 1, 2, 3, 4, 0)]
    columns = {
        "image": [{"bytes": data, "path": None} for data in images],
        "file_name": [f"{index}.png" for index in range(6)],
        "label": ["benign", "malignant", "benign", "malignant", "benign", "malignant"],
        "group": ["p", "p", "q", "r", "s", "p"],
    }
    features = datasets.Features({name: datasets.Value("string") for name in columns} | {"image": datasets.Image()})
    (tmp_path / "corpus").mkdir()
    datasets.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "corpus" / "train.parquet")
    return tmp_path / "corpus"


def test_neighbours_are_the_nearest_by_cosine_and_copies_and_patients_are_marked(tmp_path, grouped, encoder_folder):
    given = ["--features=mean", f"--model_name_or_path={encoder_folder}", f"--corpus={grouped}", "--neighbours"]
    embed.main([*given, "5", f"--output_dir={tmp_path / 'out'}"])
    features = pd.read_parquet(tmp_path / "out" / "features.parquet").set_index("file_name")
    values = features[[name for name in features if name.isdecimal()]].to_numpy(dtype=np.float64)
    values = values / np.linalg.norm(values, axis=1, keepdims=True)
    similarity = pd.DataFrame(values @ values.T, features.index, features.index)
    table = pd.read_parquet(tmp_path / "out" / "neighbours.parquet")
    names = [f"{index}.png" for index in range(6)]
    assert table["file_name"].tolist() == [name for name in names for _ in range(5)]
    for name, found in table.groupby("file_name"):
        assert found["rank"].tolist() == [1, 2, 3, 4, 5]
        assert sorted([*found["neighbour"], name]) == names  # all others, and never itself
        expected = similarity.loc[name].drop(name).sort_values(ascending=False)
        np.testing.assert_allclose(found["similarity"], expected, atol=1e-6)
        np.testing.assert_allclose(found["similarity"], similarity.loc[name, found["neighbour"]], atol=1e-6)
    pairs = table.set_index(["file_name", "neighbour"])
    assert set(pairs.index[pairs["identical"]]) == {("0.png", "5.png"), ("5.png", "0.png")}
    patient = {"0.png", "1.png", "5.png"}
    assert set(pairs.index[pairs["same_group"]]) == {(a, b) for a in patient for b in patient if a != b}
    assert pairs.loc[("0.png", "5.png"), ["rank", "label_name", "neighbour_label_name"]].tolist() == [
        *(1, "benign", "malignant"),
    ]
    with Image.open(tmp_path / "out" / "neighbours.png") as picture:
        assert picture.size[1] > picture.size[0]  # six rows of 1 + 5 images with a title each
    # fewer: the first ones, and a folder without neighbours keeps none of an earlier run
    embed.main([*given, "2", f"--output_dir={tmp_path / 'two'}"])
    first = table[table["rank"] <= 2].reset_index(drop=True)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "two" / "neighbours.parquet"), first)
    embed.main([*given, "0", f"--output_dir={tmp_path / 'out'}"])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"features.parquet", "config.yaml"}


def test_the_picture_of_neighbours_says_what_they_are(tmp_path, grouped, encoder_folder, drawn):
    given = ["--features=mean", f"--model_name_or_path={encoder_folder}", f"--corpus={grouped}", "--neighbours=5"]
    embed.main([*given, f"--output_dir={tmp_path / 'out'}"])
    rows = [drawn[0].axes[6 * index : 6 * index + 6] for index in range(6)]
    assert [row[0].get_title() for row in rows] == [
        *("0.png\nbenign", "1.png\nmalignant", "2.png\nbenign", "3.png\nmalignant", "4.png\nbenign"),
        "5.png\nmalignant",
    ]
    table = pd.read_parquet(tmp_path / "out" / "neighbours.parquet")
    titles = [axis.title for row in rows for axis in row[1:]]
    for title, near in zip(titles, table.to_dict("records"), strict=True):
        said = title.get_text()
        assert said.startswith(f"{near['similarity']:.3f}") and said.endswith(f"\n{near['neighbour_label_name']}")
        assert ("same bytes" in said) == near["identical"]
        assert ("same group" in said) == (near["same_group"] and not near["identical"])
        agrees = near["label_name"] == near["neighbour_label_name"]
        assert title.get_color() == ("#009e73" if agrees else "#d55e00")
    np.testing.assert_allclose(rows[2][0].images[0].get_array()[..., 0], grey(40, 40, seed=2) / 255, atol=1e-6)


def test_neighbours_without_labels_and_groups(tmp_path, encoder_folder):
    root = write_folder(tmp_path / "images", [f"{index}.png" for index in range(14)])
    given = ["--features=cls", f"--model_name_or_path={encoder_folder}", f"--corpus={root}", "--neighbours=1"]
    embed.main([*given, f"--output_dir={tmp_path / 'out'}"])
    table = pd.read_parquet(tmp_path / "out" / "neighbours.parquet")
    assert len(table) == 14 and table["same_group"].isna().all() and "label_name" not in table


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--features=mean", "--neighbours=3"], "neighbours must be at most 2, one less than the images, got 3"),
        (["--features=mean", "--neighbours=-1"], "neighbours must be at least 0, .*got -1"),
        (
            ["--features=texture", "--neighbours=1"],
            "neighbours must be .*0 for the features texture, got 1",
        ),
    ],
)
def test_neighbours_that_cannot_be_are_named(folder, tmp_path, encoder_folder, options, message):
    encoder = [] if "--features=texture" in options else [f"--model_name_or_path={encoder_folder}"]
    with pytest.raises(SystemExit, match=f"error: .*{message}"):
        run(folder, tmp_path / "out", *options, *encoder)
    assert not (tmp_path / "out").exists()


def test_neighbours_of_images_of_one_name_are_refused_at_once(tmp_path, encoder_folder):
    # As `push_to_hub` of datasets writes the images of folders.
    rows = [{"bytes": encode(grey(seed=seed)), "path": f"{seed % 2}.png"} for seed in range(4)]
    (tmp_path / "table").mkdir()
    table = datasets.Dataset.from_dict({"image": rows}, features=datasets.Features(image=datasets.Image()))
    table.to_parquet(tmp_path / "table" / "train.parquet")
    options = ["--features=mean", "--neighbours=1", f"--model_name_or_path={encoder_folder}"]
    with pytest.raises(SystemExit, match="neighbours needs images of different names, but '0.png' is there twice"):
        run(tmp_path / "table", tmp_path / "out", *options)
