"""The benchmarks at tiny size: what they write, and that their numbers mean what they say."""

import importlib.util
import json
import math
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from helpers import encode, grey, write
from huggingface_hub import constants
from test_finetune import few_resamples  # noqa: F401 - fixtures
from transformers import ViTConfig, ViTModel

from images.arguments import PrepareArguments
from modeling_glcm_mae import GLCMMAEConfig, GLCMMAEForPreTraining, cooccurrence_matrix
from prepare_corpus import prepare

BENCHMARKS = Path(__file__).parents[1] / "recipes" / "benchmarks"
TINY_RUN = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "decoder_hidden_size": 24,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 48,
    "per_device_train_batch_size": 16,
    "epochs": 1,
    "num_images": 48,
    "num_test_images": 20,
}
SMALL = {name: size for name, size in TINY_RUN.items() if "hidden" in name or "heads" in name or "intermediate" in name}


def load(name: str):
    """A script as a module, without running it."""
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """No test writes to the user's cache."""
    base = tmp_path_factory.getbasetemp()
    monkeypatch.setattr(constants, "HF_HOME", str(base))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(base / "datasets"))
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])  # a script finds what lies beside it


@pytest.fixture
def learning():
    return load("texture_learning")


@pytest.fixture
def learn(learning, tmp_path, capsys):
    """Run the script at tiny size; returns the runs in its JSON and the lines of its table."""

    def run(*arguments: str) -> tuple[list[dict], list[str]]:
        file = tmp_path / "learning.json"
        sizes = [f"--{name}={value}" for name, value in TINY_RUN.items()]
        learning.main([*sizes, "--labels", "10", "--json", str(file), *arguments])
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
        return json.loads(file.read_text())["runs"], lines

    return run


def optimize(tmp_path: Path, *arguments: str) -> dict:
    file = tmp_path / "pixels.json"
    load("pixel_optimization").main(["--num_patches=6", "--image_size=48", "--json", str(file), *arguments])
    return json.loads(file.read_text())


@pytest.mark.slow
def test_moving_pixels_restores_texture(tmp_path, capsys):
    report = optimize(tmp_path, "--steps=100", "--learning_rate=0.0885")  # 0.02 of the span of grey
    before, rows = report["before"], report["rows"]
    assert list(rows) == ["paper", "texture", "texture (whole objective)", "sigmoid30x64", "linear16", "linear32"]
    assert before["gradient_energy_ratio"] < 0.7, "the start is not blurred"
    for row in rows.values():
        assert 0 <= row["glcm_l1"] <= 2 and 0 <= row["useful_gradient"] <= 1
    for name in ("texture", "texture (whole objective)", "linear16", "linear32"):
        assert rows[name]["loss_ratio"] < 0.3, "the loss did not fall"
        assert rows[name]["glcm_l1"] < min(0.6 * before["glcm_l1"], rows["paper"]["glcm_l1"])
        assert rows[name]["useful_gradient"] > 0.9 > 0.7 > rows["paper"]["useful_gradient"]
        assert abs(rows[name]["gradient_energy_ratio"] - 1) < 0.25
    assert report["settings"]["steps"] == 100 and report["machine"]["torch"]
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(printed) == 2 + len(rows)
    assert f"| {rows['paper']['glcm_l1']:.2f} |" in printed[2]


@pytest.mark.slow
def test_no_step_leaves_the_blurred_patches(tmp_path):
    report = optimize(tmp_path, "--steps=1", "--learning_rate=0", "--rows", "linear16")
    row = report["rows"]["linear16"]
    assert {name: row[name] for name in report["before"]} == report["before"]
    assert row["loss_ratio"] == pytest.approx(1)


def test_flat_images_are_refused(tmp_path):
    with pytest.raises(SystemExit, match="only 0 of 6 images.*min_std=0.9"):
        optimize(tmp_path, "--min_std=0.9")


def test_texture_learning_of_a_corpus_that_cannot_be_probed(learn, tmp_path):
    for index in range(24):
        image = encode(grey(40, 40, seed=index))
        write(tmp_path / "images" / f"{index}.png", image)
        write(tmp_path / "raw" / ("a", "b")[index % 2] / f"{index}.png", image)
    arguments = ["--presets", "mse", "--corpus", str(tmp_path / "images")]
    with pytest.raises(SystemExit, match="error: corpus .*images' needs labels"):
        learn(*arguments, "--num_test_images", "8")
    with pytest.raises(SystemExit, match="error: corpus .*raw' has no groups.*prepare_corpus.py"):
        learn("--presets", "mse", "--corpus", str(tmp_path / "raw"), "--num_test_images", "8")
    with pytest.raises(SystemExit, match="error: speckle cannot be pretrained on together with other corpora"):
        learn("--presets", "mse", "--corpus", "speckle", str(tmp_path / "raw"))


def contrasts(folder: Path, seed: int, count: int = 40) -> str:
    """A prepared corpus of two classes that differ in contrast."""
    for index in range(count):
        contrast = 1 if index < count // 2 else 8
        image = 112 + grey(40, 40, seed=seed + index) // contrast - 112 // contrast
        write(folder / "raw" / f"contrast_{contrast}" / f"{index}.png", encode(image.astype(np.uint8)))
    output = folder / f"prepared_{seed}"
    return str(prepare(PrepareArguments(data_dir=str(folder / "raw"), output_dir=str(output))))


def test_texture_learning_holds_out_whole_groups_and_trains_on_the_rest(learning, tmp_path):
    corpora = [contrasts(tmp_path / "a", 0), contrasts(tmp_path / "b", 100, count=24)]
    options, extra = learning.parse_options(["--corpus", *corpora, "--num_test_images", "0.25"])
    parts = learning.divide(options, seed=1)
    assert list(parts) == ["prepared_0", "prepared_100"]
    trained_on = datasets.Dataset.from_parquet(str(Path(learning.write_union(parts, tmp_path)) / "train.parquet"))
    expected = [f"{name}/{file}" for name, (train, _) in parts.items() for file in train["file_name"]]
    assert trained_on["file_name"] == expected and "label" not in trained_on.column_names
    for (train, test), total in zip(parts.values(), (40, 24), strict=True):
        assert len(train) + len(test) == total and len(test) == total // 4
        assert not set(train["group"]) & set(test["group"])
    assert parts["prepared_0"][1]["file_name"] != learning.divide(options, seed=2)["prepared_0"][1]["file_name"]
    _, data_args, args = learning.arguments_of("mse", 0, options, extra, "union", "unused")
    assert data_args.corpus == "union" and data_args.held_out == 0
    assert args.eval_strategy == "no" and not args.load_best_model_at_end
    with pytest.raises(ValueError, match="held_out must be .* below 40.*got 40"):
        learning.divide(learning.parse_options(["--corpus", corpora[0], "--num_test_images", "40"])[0], seed=0)
    with pytest.raises(ValueError, match="two corpora are called prepared_0"):
        twice = ["--corpus", corpora[0], corpora[0], "--num_test_images", "0.25"]
        learning.divide(learning.parse_options(twice)[0], seed=0)


def results_of(right: str, groups: list[str]) -> dict:
    return {"corpora": {"ct": {"right": {"mean": right}, "groups": " ".join(groups)}}}


def test_differences_are_points_with_the_spread_of_seeds_and_groups():
    differences = load("learning_tables").differences
    groups = [str(i) for i in range(40)]
    ours = [results_of("1" * 30 + "0" * 10, groups), results_of("1" * 20 + "0" * 20, groups)]
    theirs = [results_of("1" * 20 + "0" * 20, groups)] * 2
    point, low, high = differences(ours, theirs, "mean")["ct"]
    assert point == pytest.approx(12.5)  # 25 points and none
    assert low == 0 and high > 25, "a seed without and one with a gain"
    assert differences(ours, ours, "mean")["mean"] == (0, 0, 0)
    # Of images that stand and fall together, less is known.
    few = [results_of(result["corpora"]["ct"]["right"]["mean"], [str(i // 10) for i in range(40)]) for result in ours]
    _, low_few, high_few = differences(few[:1], theirs[:1], "mean")["ct"]
    _, low_one, high_one = differences(ours[:1], theirs[:1], "mean")["ct"]
    assert low_few < low_one < 25 < high_one < high_few


def test_the_lead_of_the_classical_features_stands_before_that_of_the_presets(capsys):
    tables = load("learning_tables")

    def record(row: str, **right: str) -> dict:
        found = {"right": right, "groups": " ".join(str(i) for i in range(40))}
        return {"settings": {"pretraining": row}, "results": {"corpora": {"ct": found, "x-ray": found}}}

    read, better = (
        dict.fromkeys(tables.READOUTS, "1" * 20 + "0" * 20),
        dict.fromkeys(tables.READOUTS, "1" * 30 + "0" * 10),
    )
    classical = record("classical", image="1" * 10 + "0" * 30, tiles="1" * 40)
    records = [
        record("none", **read),
        classical,
        record("mse", **(read | {"cls": "0" * 40})),
        record("texture", **better),
    ]
    _, _, *rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in tables.difference_table(records).splitlines()
    ]
    points = {(row, title): [cell.split(" ")[0] for cell in cells] for row, title, *cells in rows}
    assert list(points)[:3] == [
        ("classical, whole image", "above the mean token"),
        ("classical, 4x4 tiles", "above the mean token"),
        ("texture", "mean token"),
    ]
    assert list(points.values())[:4] == [["-25.0"] * 3, ["+50.0"] * 3, ["+25.0"] * 3, ["+75.0"] * 3]
    assert {row for row, _ in points} == {"classical, whole image", "classical, 4x4 tiles", "texture"}
    assert capsys.readouterr().err == ""
    del read["grid"]
    text = tables.difference_table([classical, record("mse", **read), record("texture", **better)])
    assert "| texture | attentive |" in text and "3x3 means" not in text
    assert "texture, 3x3 means: no difference" in capsys.readouterr().err


def test_classical_features_that_older_results_lack_are_left_out_and_told(capsys):
    tables = load("learning_tables")
    right = {"image": "1110", "tiles": "1111", "narrow tiles": "1100"}
    older = {name: answers for name, answers in right.items() if name != "narrow tiles"}

    def records(*found: dict[str, str]) -> list[dict]:
        of_corpora = [{"corpora": {"ct": {"right": answers, "probe": {}, "groups": "0 1 2 3"}}} for answers in found]
        return [{"settings": {"pretraining": "classical"}, "results": results} for results in of_corpora]

    (*_, last) = tables.readout_table(records(right, right), "ct").splitlines()
    assert last.startswith("| classical, 4x4 tiles, narrowed to the encoder's width | 0.500 ± 0.000 |")
    assert capsys.readouterr().err == ""
    text = tables.readout_table(records(right, older), "ct")
    assert "narrowed" not in text and "| classical, 4x4 tiles | 1.000 ± 0.000 |" in text
    assert "ct: 4x4 tiles, narrowed to the encoder's width: left out" in capsys.readouterr().err


def test_the_learned_query_reads_the_token_that_tells():
    readouts = load("readouts")
    random = np.random.default_rng(0)
    tokens, labels = random.normal(size=(600, 9, 6)).astype("f"), np.arange(600) % 2
    tokens[:, 4, 0] += 4  # where to look, by a mark that says nothing of the class
    tokens[:, 4, 1] += 2 * labels - 1
    (half, other), (classes, others) = np.split(tokens, 2), np.split(labels, 2)
    groups = [str(i) for i in range(300)]

    def accuracy(features: np.ndarray, of_others: np.ndarray) -> float:
        return float(readouts.probe_of_all(features, classes, groups, of_others, others).mean())

    by_query = accuracy(*readouts.attended(half, classes, other))
    assert by_query > accuracy(half.mean(1), other.mean(1)) + 0.1
    assert by_query == pytest.approx(accuracy(half[:, 4], other[:, 4]), abs=0.05)


@torch.no_grad()
def test_the_grid_keeps_where_the_tokens_lie():
    readouts = load("readouts")
    sizes = {"hidden_size": 4, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8}
    encoder = ViTModel(ViTConfig(image_size=48, patch_size=8, **sizes)).eval()
    images = [{"pixel_values": torch.randn(3, 48, 48)} for _ in range(3)]
    found = readouts.features_of_encoder(encoder, images)
    tokens = found["tokens"].reshape(3, 6, 6, 4)
    parts = [tokens[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean((1, 2)) for i in range(3) for j in range(3)]
    np.testing.assert_allclose(found["grid"].reshape(3, 9, 4), np.stack(parts, 1), atol=1e-5)


def test_classical_features_are_those_of_the_matrices(learning, tmp_path):
    readouts = load("readouts")
    model = GLCMMAEForPreTraining(GLCMMAEConfig.from_preset("mse", image_size=32, patch_size=8, **SMALL))
    images = [{"pixel_values": torch.randn(3, 32, 32)} for _ in range(3)]
    found = readouts.classical_features(model, images)
    grey_images = torch.stack([image["pixel_values"] for image in images]).mean(1)
    assert found["image"].shape == (3, 4 * 36) and found["tiles"].shape == (3, 16 * 4 * 36)
    for pixels, features in ((grey_images, found["image"]), (grey_images[:, 8:16, 24:], found["tiles"][:, 7 * 144 :])):
        matrices = cooccurrence_matrix(
            pixels,
            levels=8,
            value_range=model.config.glcm_value_range,
            offsets=[[0, 2], [2, 0], [2, 2], [2, -2]],
            kernel="linear",
            symmetric=True,
            normalize=True,
        ).mean(1)  # of distance 2, over directions
        np.testing.assert_allclose(features[:, 36], matrices[:, 0, 0], atol=1e-5)
        np.testing.assert_allclose(features[:, 37], 2 * matrices[:, 0, 1], atol=1e-5)


def test_narrowed_features_are_the_components_of_the_first_images():
    readouts = load("readouts")
    random = np.random.default_rng(0)
    # Three numbers are behind twenty features, whose scales say nothing.
    hidden, mixing, scales = random.normal(size=(40, 3)), random.normal(size=(3, 20)), 10.0 ** np.arange(-10, 10)
    features = hidden @ mixing * scales + 5 * scales
    first, others = readouts.narrowed(features[:30], features[30:], 3)
    assert first.shape == (30, 3) and others.shape == (10, 3)
    np.testing.assert_allclose(first.mean(0), 0, atol=1e-9)
    np.testing.assert_allclose(np.cov(first.T) - np.diag(first.var(0, ddof=1)), 0, atol=1e-9)
    # Nothing is lost, of images that were not there either.
    found, *_ = np.linalg.lstsq(np.c_[first, np.ones(30)], hidden[:30], rcond=None)
    np.testing.assert_allclose(np.c_[others, np.ones(10)] @ found, hidden[30:], atol=1e-6)
    assert readouts.narrowed(features[:30], features[30:], 128)[1].shape == (10, 20), "there are no more"


@pytest.mark.slow
def test_texture_learning_of_corpora(learn, tmp_path):
    corpora = [contrasts(tmp_path / "a", 0), contrasts(tmp_path / "b", 100)]
    row = "texture --mse_weight 0.5"
    given = ["--presets", "mse", row, "--corpus", *corpora, "--labels", "10", "all", "--num_test_images", "10"]
    runs, table = learn(*given, "--epochs", "8")
    assert [run["settings"]["pretraining"] for run in runs] == ["none", "classical", "mse", row]
    assert runs[-1]["settings"]["model"]["mse_weight"] == 0.5
    for run in runs:
        assert run["settings"]["num_test_images"] == 10 and run["settings"]["classes"] is None
        for found in run["results"]["corpora"].values():
            for probe in found["probe"]["10"].values():
                assert probe["accuracy"] > 0.9, "classes that a glance tells apart"
            assert {len(right) for right in found["right"].values()} == {len(found["groups"].split())} == {10}
    untrained, trained = (runs[i]["results"]["corpora"]["prepared_0"]["gradient_energy_ratio"] for i in (0, 2))
    assert untrained > trained > 0, "the noise of an untrained decoder goes first"
    trivial = [runs[2]["results"]["corpora"][name]["mse_dataset_mean"] for name in ("prepared_0", "prepared_100")]
    assert trivial[0] != trivial[1], "of the images of the first corpus"
    # Of each corpus a table of five rows and one of six, then the differences, a row for each of six ways to read.
    assert len(table) == 2 * (2 + 5 + 2 + 6) + 2 + 6


@pytest.mark.slow
def test_texture_learning(learning, learn, monkeypatch):
    runs, table = learn("--presets", "mse", "texture")
    assert [run["settings"]["pretraining"] for run in runs] == ["none", "classical", "mse", "texture"]
    classical = runs[1]["results"]["corpora"]["speckle"]["probe"]["10"]
    assert set(classical) == {"image", "tiles"} and 0 <= classical["image"]["accuracy"] <= 1
    for run in (runs[0], *runs[2:]):
        results = run["results"]["corpora"]["speckle"]
        assert 0 <= results["probe"]["10"]["mean"]["accuracy"] <= 1 and results["probe"]["10"]["mean"]["std"] >= 0
        assert 0 < results["glcm_l1"] <= 2 and results["mse"] > 0 and results["gradient_energy_ratio"] > 0
        # A patch painted with its mean has the smallest squared error that one value can have, and one grey level.
        assert results["mse_patch_mean"] < min(results["mse"], results["mse_dataset_mean"])
        assert results["glcm_l1_patch_mean"] > 1
        assert run["machine"]["threads"] > 0
    none, mse, texture = (runs[i]["results"]["corpora"]["speckle"] for i in (0, 2, 3))
    assert none["mse_dataset_mean"] == mse["mse_dataset_mean"] == texture["mse_dataset_mean"], "tested on other images"
    assert mse["mse"] < none["mse"], "nothing was trained"
    assert mse["glcm_l1"] != texture["glcm_l1"]
    named = ["| none", "| classical, whole image", "| classical, 4x4 tiles", "| mse", "| texture"]
    assert [line.split(" | ")[0] for line in table[2:]] == named

    # What is in the file is not repeated; another setting is another run.
    trained = []
    measure = learning.measure
    monkeypatch.setattr(learning, "measure", lambda preset, *rest: trained.append(preset) or measure(preset, *rest))
    assert learn("--presets", "mse", "texture") == (runs, table)
    assert not trained
    more, table = learn("--presets", "texture", "--glcm_weight", "100")
    assert trained == ["none", "classical", "texture"] and len(more) == 7
    assert more[-1]["settings"]["model"]["glcm_weight"] == 100
    assert len(table) == 6, "the table mixes settings"


@pytest.mark.slow
def test_texture_learning_reads_what_was_trained_elsewhere(learning, learn, tmp_path, monkeypatch):
    plainly = ["--presets", "mse", "--use_cpu=true"]
    kept = [*plainly, "--models", str(tmp_path / "models")]
    with monkeypatch.context() as patched:  # on a machine that computes in bfloat16
        patched.setattr("training.arguments._bf16", lambda args: True)
        learning.main([*(f"--{name}={value}" for name, value in TINY_RUN.items()), *kept, "--train_only"])
    (file,) = (tmp_path / "models").iterdir()
    assert torch.load(file)["minutes"] > 0
    trainings = []
    with monkeypatch.context() as patched:
        patched.setattr("transformers.Trainer.train", lambda *given, **named: trainings.append(given))
        runs, _ = learn(*kept, "--labels", "10", "20")  # by other labels
        assert not trainings
        learn(*kept, "--max_steps", "1")
        assert len(trainings) == 1, "taken for a training of other options"
    for name, found in (("minutes", "minutes"), ("machine", "trained_on")):
        assert runs[-1]["results"][found] == torch.load(file)[name]
    with monkeypatch.context() as patched:
        patched.setattr("training.arguments._bf16", lambda args: True)
        (tmp_path / "learning.json").unlink()
        plain, _ = learn(*plainly, "--labels", "10", "20")
    encoder = [run["results"]["corpora"]["speckle"]["probe"] for run in (plain[-1], runs[-1])]
    assert encoder[0] == encoder[1]


def test_train_only_needs_a_place_for_what_it_trains(learn):
    with pytest.raises(SystemExit, match="error: train_only needs --models FOLDER"):
        learn("--train_only")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--presets", "sharp"], "sharp"),
        (["--epoch", "3"], "unknown option or value: --epoch 3"),
        (["--mask_ratio", "1.5"], "mask_ratio"),
        (["--num_test_images", "0.25"], "num_test_images must be a number of images for speckle, got 0.25"),
    ],
)
def test_mistakes_are_named(learn, arguments, message):
    with pytest.raises(SystemExit, match=f"error: .*{message}"):
        learn(*arguments)


@pytest.mark.slow
def test_loss(tmp_path, capsys):
    file = tmp_path / "loss.json"
    load("loss").main(["--tiny", "--image_size=64", "--batch_size=2", "--repeats=2", "--device=cpu", f"--json={file}"])
    table = capsys.readouterr().out.splitlines()
    report = json.loads(file.read_text())
    assert list(report) == [
        "dense_over_fast",
        "step_over_mse",
        "extra_mb_per_image",
        "levels_256_over_16",
        "offsets_8_over_2",
        "ms_per_image",
    ]
    assert len(table) == 2 + sum(len(found["settings"]) for found in report.values())
    for found in report.values():
        assert found["value"] == next(iter(found["settings"].values()))["value"]
        assert found["sizes"]["image_size"] == 64 and found["machine"]["device"] == "cpu"
        for setting in found["settings"].values():
            assert setting.get("lowest", 0) <= setting["value"] <= setting.get("highest", math.inf)
    # The definition builds 256 x 256 matrices, the fast backend does not.
    memory = report["extra_mb_per_image"]["settings"]
    assert memory["paper, dense"]["value"] > memory["paper"]["value"]


def test_throughput(tmp_path, capsys):
    file = tmp_path / "throughput.json"
    sizes = [f"--{name}={value}" for name, value in TINY_RUN.items() if not name.startswith(("epochs", "num_"))]
    data = ["--corpus=speckle", "--speckle_images=48", "--num_channels=1", "--held_out=0", "--use_cpu=true"]
    own = ["--rounds=2", "--workers", "0", "1", "--presets", "mse", "texture", "--profile", f"--json={file}"]
    load("throughput").main([*data, f"--output_dir={tmp_path}", *sizes, *own])
    profiles, table = capsys.readouterr().out.split("| what |")
    of_mse, of_texture = profiles.removeprefix("A step, mse").split("A step, texture")
    assert "Self CPU %" in of_mse and "::loss_and_gradient" not in of_mse
    assert "::loss_and_gradient" in of_texture
    report = json.loads(file.read_text())
    assert [(row["workers"], row["cached"]) for row in report["loader"]] == [
        (0, False),
        (1, False),
        (0, True),
        (1, True),
    ]
    assert list(report["step"]) == ["mse", "texture"]
    for row in (*report["loader"], *report["step"].values()):
        assert len(row["images_per_second"]) == 2 and min(row["images_per_second"]) > 0
    assert len(table.splitlines()) == 2 + 4 + 2
    own = ["--rounds=1", "--steps=1", "--workers", "0", "--presets", "mse", "--bf16=true", f"--json={file}"]
    for more, rows in ([], ["mse"]), (["--beside_plain"], ["mse", "mse, bf16"]):
        load("throughput").main([*data, f"--output_dir={tmp_path}", *sizes, *own, *more])
        report = json.loads(file.read_text())
        assert list(report["step"]) == rows and report["settings"]["bf16"] is True
    with pytest.raises(SystemExit, match="error: .*mask_ratio"):
        load("throughput").main([*data, "--mask_ratio=1.5"])


@pytest.mark.parametrize("script", ["gpu", "loss", "pixel_optimization", "texture_learning", "throughput"])
@pytest.mark.slow
def test_scripts_start_from_any_folder(script, tmp_path):
    command = [sys.executable, str(BENCHMARKS / f"{script}.py"), "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--json" in done.stdout


def test_runs_in_the_repository_are_known_again_though_options_were_added_since():
    learning = load("texture_learning")
    stored = json.loads((BENCHMARKS / "results" / "texture_corpora.json").read_text())["runs"]
    readme = (BENCHMARKS / "README.md").read_text().replace("\n", " ")
    (command,) = re.findall(
        r"`python recipes/benchmarks/texture_learning.py (--corpus data/busi data/pneumonia [^`]+)`", readme
    )
    options, extra = learning.parse_options(shlex.split(command))
    for row in options.presets:
        wanted = learning.settings_of(row, options, *learning.arguments_of(row, 0, options, extra, "union", "unused"))
        assert [learning._given(run["settings"]) for run in stored].count(learning._given(wanted)) == 1
        changed = wanted | {"training": wanted["training"] | {"unlabelled_corpus": ["more"]}}
        assert learning._given(changed) not in [learning._given(run["settings"]) for run in stored]


def tables_of(text: str) -> list[tuple[list[str], list[list[str]]]]:
    """Heading and rows of every Markdown table in a text, by cells, without the marks of code and stress."""
    blocks = [block.splitlines() for block in re.findall(r"(?:^[|].*[|]$\n?)+", text, re.MULTILINE)]
    tables = [[re.sub("`|[*]+", "", line[1:-1]).split("|") for line in (head, *rows)] for head, _, *rows in blocks]
    stripped = [[[cell.strip() for cell in line] for line in table] for table in tables]
    return [(head, rows) for head, *rows in stripped]


def in_full(row: str) -> str:
    """What a row that the documents have a name for was called when it ran."""
    light = "texture --glcm_head_weight 2 --glcm_cls_weight"
    return {"light": f"{light} 0", "cls": f"{light} 4"}.get(row, row)


def corpus_in(text: str) -> str | None:
    names = {"BUSI": "busi", "X-ray": "pneumonia", "CT": "covid_ct", "mean": "mean"}
    return next((name for title, name in names.items() if re.search(rf"\b{title}$|\b{title}[:,]", text)), None)


@pytest.mark.slow
def test_the_tables_of_frozen_encoders_are_those_of_their_results():
    tables = load("learning_tables")
    alike: dict[tuple, dict[str, list[dict]]] = {}  # by what the runs of one table share, those of each row, by seed
    for name in ("corpora", "corpora_16", "corpora_16_more", "corpora_112", "busi", "pneumonia", "covid_ct"):
        stored = json.loads((BENCHMARKS / "results" / f"texture_{name}.json").read_text())["runs"]
        for run in sorted(stored, key=lambda run: run["settings"]["training"]["seed"]):
            training, size = run["settings"]["training"], run["settings"]["model"]["image_size"]
            shared = (name, training["num_train_epochs"], training["per_device_train_batch_size"], size)
            for seeds in ("all", "seed 0")[: 2 if training["seed"] == 0 else 1]:
                rows = alike.setdefault((*shared, seeds), {})
                rows.setdefault(run["settings"]["pretraining"], []).append(run)
    figures: set[tuple] = set()  # (table, corpus, row, title, figure)
    points: set[tuple] = set()  # (table, row, what is read, corpus, difference)
    for shared, rows in alike.items():
        for runs in rows.values():
            for corpus, results in runs[0]["results"]["corpora"].items():
                few = ["50"] if "50" in results["probe"] else ["all"]
                for text in (tables.readout_table(runs, corpus), tables.table(runs, corpus, few)):
                    ((head, lines),) = tables_of(text)
                    titles = [title.removeprefix("probe, ") for title in head[1:]]
                    told = [(line[0], *cell) for line in lines for cell in zip(titles, line[1:], strict=True)]
                    figures |= {(shared, corpus, *cell) for cell in told}
        for row in set(rows) - {"none", "classical", "mse"}:
            seeds = [run["settings"]["training"]["seed"] for run in rows[row]]
            same = [run for name in ("classical", "mse", row) for run in rows[name]]
            same = [run for run in same if run["settings"]["training"]["seed"] in seeds]
            ((head, lines),) = tables_of(tables.difference_table(same))
            told = [(*line[:2], *cell) for line in lines for cell in zip(head[2:], line[2:], strict=True)]
            points |= {(shared, *cell) for cell in told}

    document = (BENCHMARKS / "README.md").read_text()
    (part,) = re.findall(r"^## And on real images[?]$(.*?)^## ", document, re.MULTILINE | re.DOTALL)
    checked = 0

    def of_one_table(expected: list[tuple[str, ...]], found: set[tuple]) -> bool:
        return any({(shared, *cell) for cell in expected} <= found for shared in alike)

    for head, lines in tables_of(part):
        corpus = corpus_in(head[0])
        for label, *cells in lines:
            within, colon, row = label.partition(": ")
            corpus = corpus_in(label) or corpus if colon else corpus
            row = row if colon else label
            told = {title: cell for title, cell in zip(head[1:], cells, strict=True) if cell}
            if "points above" in head[0]:
                of_row, read = (row, told.pop("read")) if "read" in told else (head[0].partition(",")[0], row)
                told.pop("seeds", None)
                expected = [(in_full(of_row), read, corpus_in(title), cell) for title, cell in told.items()]
                # Without a mean, each corpus was pretrained on alone, so its column is of a table of its own.
                for cells_of_one in [expected] if "mean" in told else [[cell] for cell in expected]:
                    assert of_one_table(cells_of_one, points), (head[0], label)
            elif "points above" in row:
                of_row = in_full(row.partition(",")[0])
                expected = [(of_row, title, corpus, cell) for title, cell in told.items()]
                assert of_one_table(expected, points), (head[0], label)
            else:
                expected = [(corpus, in_full(row), *cell) for cell in told.items()]
                assert of_one_table(expected, figures), (head[0], label)
            checked += len(told)
    assert checked > 300


def test_the_table_of_hard_speckle_is_that_of_its_results():
    tables = load("learning_tables")
    rows: dict[str, list[dict]] = {}
    for run in json.loads((BENCHMARKS / "results" / "texture_speckle_hard.json").read_text())["runs"]:
        rows.setdefault(run["settings"]["pretraining"], []).append(run)
    ((head, lines),) = tables_of(tables.table([run for runs in rows.values() for run in runs], "speckle", [50, 500]))
    found = {line[0]: dict(zip(head, line, strict=True)) for line in lines}
    (part,) = re.findall(r"closer to each other(.*?)^## ", (BENCHMARKS / "README.md").read_text(), re.M | re.S)
    ((head, lines),) = tables_of(part)
    told = {in_full(line[0]): dict(zip(head[1:], line[1:], strict=True)) for line in lines}
    # Three rows ran before results were kept.
    no_heads = "texture --mse_weight 0.1 --glcm_head_weight 0 --glcm_cls_weight 0"
    assert told.keys() - found.keys() == {"mse", "paper", no_heads}
    assert {"none", in_full("light"), "texture", "texture --glcm_cls_weight 0"} <= told.keys()
    for row in told.keys() & found.keys():
        assert told[row] == {title: found[row][title] for title in told[row]}, row


@pytest.mark.slow
def test_differences_between_read_outs_are_those_of_their_results():
    tables = load("learning_tables")
    rows: dict[str, list[dict]] = {}
    for run in json.loads((BENCHMARKS / "results" / "texture_corpora_16.json").read_text())["runs"]:
        rows.setdefault(run["settings"]["pretraining"], []).append(run["results"])
    document = " ".join((BENCHMARKS / "README.md").read_text().split())
    light, alone = in_full("light"), "texture --glcm_cls_weight 0"
    for row, read, other, read_of_other, told in (
        ("texture", "cls", "mse", "cls", "in the mean by {} points ({} to {}), on BUSI by"),
        ("texture", "cls", light, "cls", "`texture` is above `light` by {} points in the mean ({} to {})"),
        (alone, "cls", "mse", "cls", "(`texture --glcm_cls_weight 0`) is above `mse` by {} ({} to {})"),
        ("texture", "cls", alone, "cls", "the head of the CLS token adds {} ({} to {})"),
        ("texture", "cls", "mse", "mean", "the CLS of `texture` is by {} points ({} to {}), on CT"),
        ("texture", "cls", light, "mean", "above the mean token of `light` by {} ({} to {})"),
        ("classical", "narrow tiles", "texture", "cls", "read {} points more than it in the mean ({} to {})"),
        ("classical", "tiles", "texture", "cls", "all their numbers read {} more ({} to {})"),
    ):
        found = tables.differences(rows[row], rows[other], read, read_of_other)["mean"]
        assert told.format(*(f"{abs(x) if round(x, 1) == 0 else x:.1f}" for x in found)) in document
    heavier = "texture --glcm_head_weight 32 --glcm_cls_weight 2"
    more: dict[str, list[dict]] = {"mse": [], "texture": [], heavier: []}
    for run in json.loads((BENCHMARKS / "results" / "texture_corpora_16_more.json").read_text())["runs"]:
        if (row := run["settings"]["pretraining"]) in more and run["settings"]["training"]["seed"] in (3, 4, 5):
            more[row].append(run["results"])
    for read, told in (
        ("cls", "that is by {} points of CLS ({} to {})"),
        ("mean", "by {} of the mean token ({} to {}). It rebuilds less"),
    ):
        found = tables.differences(more[heavier], more["texture"], read)["mean"]
        assert told.format(*(f"{x:.1f}" for x in found)) in document
    for row in ("mse", "texture"):
        rows[row] += more[row]
    for read, read_of_other, told in (
        ("cls", "cls", "Of all six seeds it is {} ({} to {})"),
        ("mean", "mean", "By the mean token it is {} ({} to {})"),
        ("cls", "mean", "the CLS of `texture` is by {} ({} to {}). What"),
    ):
        found = tables.differences(rows["texture"], rows["mse"], read, read_of_other)["mean"]
        assert told.format(*(f"{x:.1f}" for x in found)) in document


# ----------------------------------------------------------------------------------------------------------------- GPU


def ends(pid: int) -> bool:
    """Whether a process goes, or waits to be reaped: a killed one is seen as running until it next has a core."""
    for _ in range(200):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state in "ZX":
            return True
        time.sleep(0.1)
    return False


def test_a_part_that_fails_or_hangs_is_reported_and_its_children_end(tmp_path, monkeypatch):
    gpu = load("gpu")
    script = tmp_path / "gpu.py"
    child = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])"
    write_pid = "from pathlib import Path; Path(sys.argv[-1], 'pid').write_text(str(child.pid))"
    script.write_text(f"{child.replace('subprocess.Popen', 'child = subprocess.Popen')}\n{write_pid}\ntime.sleep(60)\n")
    monkeypatch.setattr(gpu, "__file__", str(script))
    assert gpu.run_part("eager", [], tmp_path, 5) == {"error": "not ready after 5 s"}
    assert ends(int((tmp_path / "pid").read_text()))
    script.write_text("raise SystemExit(3)\n")
    assert gpu.run_part("eager", [], tmp_path, 60)["error"].startswith("exit code 3 after")


def test_every_part_has_its_line_and_a_failed_one_its_reason(tmp_path):
    gpu = load("gpu")
    report = json.loads((BENCHMARKS / "results" / "gpu.json").read_text())
    report["parts"]["compiled"] = {"error": "not ready after 120 s"}
    table = gpu.table_of(report).splitlines()
    assert any("| compiled | failed | not ready after 120 s |" in line for line in table)
    (tests,) = (line for line in table if line.startswith("| tests"))
    counted = report["parts"]["tests"]
    assert f"{counted['tests']} tests, {counted['failures']} failures" in tests
    (paper,) = (line for line in table if line.startswith("| eager | paper"))
    assert "images/s" in paper and "step_over_mse 1." in paper and "MiB" in paper


@pytest.mark.slow
def test_gpu_without_a_gpu(tmp_path, capfd, monkeypatch):
    gpu = load("gpu")
    file = tmp_path / "gpu.json"
    names = ["tests", "loss", "eager", "precision", "profile"]
    gpu.main(["--device=cpu", "--parts", *names, f"--json={file}"])
    printed = capfd.readouterr().out
    assert printed.startswith("No CUDA device")
    parts = json.loads(file.read_text())["parts"]
    assert list(parts) == names and not any("error" in part for part in parts.values())
    assert parts["tests"] == {"skipped": "no CUDA device"}
    for preset in ("mse", "texture", "paper"):
        assert len(parts["eager"]["presets"][preset]["images_per_second"]) == 2
        assert 0 < parts["eager"]["presets"][preset]["share_of_limit"] < 1
    over = parts["precision"]["float32_over_bfloat16"]
    assert 0 < over["lowest"] <= over["value"] <= over["highest"]
    assert f"| float32 over bfloat16, mse | {over['value']:.2f} (" in printed
    shares = {preset: found["shares"]["::loss_and_gradient"] for preset, found in parts["profile"].items()}
    assert shares["mse"] == 0 < shares["texture"] < 1
    assert parts["profile"]["texture"]["shares"]["::pair_distribution"] > 0
    # A part that fails does not take the others with it, and the exit code says so.
    monkeypatch.setitem(gpu.SECONDS, "eager", 0.1)
    with pytest.raises(SystemExit):
        gpu.main(["--device=cpu", "--parts", "eager", "tests", f"--json={file}"])
    assert list(json.loads(file.read_text())["parts"]) == ["eager", "tests"]
