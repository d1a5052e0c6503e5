"""The benchmarks at tiny size: what they write, and that their numbers mean what they say."""

import argparse
import importlib.util
import json
import math
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from helpers import encode, grey, write
from huggingface_hub import constants
from test_finetune import few_resamples  # noqa: F401 - fixtures
from transformers import ViTConfig, ViTModel

from images.arguments import PrepareArguments
from judging.summary import compare, summarise
from modeling_glcm_mae import GLCMMAEConfig, GLCMMAEForPreTraining, cooccurrence_matrix
from prepare_corpus import prepare
from training import cross_validation

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
    # Of each corpus two tables of five rows, then the differences, a row for each of six ways to read.
    assert len(table) == 2 * 2 * (2 + 5) + 2 + 6


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


# -------------------------------------------------------------------------------------------- fine-tuned classifiers


BUSI, XRAY = ("normal", "benign", "malignant"), ("NORMAL", "PNEUMONIA")


def predicted(seed: int, skill: float, names: tuple[str, ...] = BUSI) -> pd.DataFrame:
    """Answers to 120 images of 60 patients in five folds."""
    random = np.random.default_rng(seed)
    label = np.arange(120) % len(names)
    scores = random.normal(size=(120, len(names))) + skill * np.eye(len(names))[label]
    probabilities = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    table = pd.DataFrame({"file_name": [f"{i:03d}.png" for i in range(120)], "label": label})
    table["group"], table["fold"] = [f"p{i // 2}" for i in range(120)], [str(i // 2 % 5) for i in range(120)]
    for index, name in enumerate(names):
        table[f"probability_{name}"] = probabilities[:, index]
    table["prediction"] = probabilities.argmax(1)
    return table


def kept(finetuned, folder: Path, table: pd.DataFrame, *options: str) -> dict:
    """The record of a run with these predictions."""
    folder.mkdir(parents=True)
    table.sample(frac=1, random_state=0).to_parquet(folder / "predictions.parquet")
    (folder / "config.yaml").write_text("mode: finetune\ncorpus: data_of_somebody/busi\n")
    for step, seconds in (("pretrain", 90.0), ("finetune", 30.0)):
        write(folder / "fold_0" / step / "all_results.json", json.dumps({"train_runtime": seconds}).encode())
    words = ["recipes/cross_validate.py", "--corpus", "data/busi", *options]
    return json.loads(json.dumps(finetuned.record(words, folder)))


def test_what_is_kept_of_a_run_gives_its_figures(tmp_path, few_resamples):  # noqa: F811
    finetuned = load("finetuned")
    table = predicted(0, 1.0)
    run = kept(finetuned, tmp_path / "run", table)
    assert run["minutes"] == 2 and run["command"].startswith("python recipes/cross_validate.py --corpus data/busi")
    assert "somebody" not in json.dumps(run)
    expected, found = (summarise(one, ["malignant"])["figures"] for one in (table, finetuned.table_of([run])))
    for name in ("accuracy", "balanced_accuracy", "macro_auroc", "binary_auroc"):
        assert found[name]["pooled"]["value"] == pytest.approx(expected[name]["pooled"]["value"], abs=1e-3), name
    # Several trainings on the same images are no more images.
    one, three = (
        summarise(finetuned.table_of([run | {"folds": " ".join(["official"] * 120)}] * count))["figures"]["accuracy"]
        for count in (1, 3)
    )
    assert three["pooled"] == one["pooled"]


@pytest.mark.parametrize("row", ["classical", "texture"])
def test_a_row_that_is_repeated_alone_has_its_table(row, tmp_path, few_resamples, capsys):  # noqa: F811
    finetuned = load("finetuned")
    table = predicted(0, 1.0)
    found = {"busi": {row: {"0": kept(finetuned, tmp_path / row, table)}}}
    finetuned.main(["--tables", str(write(tmp_path / "one.json", json.dumps(found).encode()))])
    accuracy = f"{(table['prediction'] == table['label']).mean():.3f}"
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and lines[0].startswith("| BUSI |") and lines[2].startswith(f"| `{row}` | 1 | {accuracy} (")


def test_a_row_that_is_in_the_file_is_named_and_nothing_is_run_unasked(tmp_path, few_resamples, capsys):  # noqa: F811
    finetuned = load("finetuned")
    options = "--pretrain_options preset=mse num_train_epochs=60 seed=0 --finetune_options num_train_epochs=30 seed=0"
    run = kept(finetuned, tmp_path / "run", predicted(0, 1.0), *options.split())
    file = write(tmp_path / "one.json", json.dumps({"busi": {"mse": {"0": run}}}).encode())
    given = ["--corpora", "busi", "--rows", "mse", "--json", str(file)]
    finetuned.main(given)
    said = f"busi, mse, seed 0: is in {file} already, of commit {run['commit'][:12]}: not run"
    assert capsys.readouterr().out.splitlines()[0] == said
    finetuned.main([*given, "--pretrain_options", "image_size=160"])
    assert capsys.readouterr().out.startswith(f"{said}, though it ran with other options: {run['command']}\n")
    finetuned.main([*given, "--finetune_options", "num_train_epochs=60", "--pretrain_options", "num_train_epochs=30"])
    assert capsys.readouterr().out.startswith(f"{said}, though"), "what is given to which training counts"
    with pytest.raises(SystemExit):
        finetuned.main(["--corpora", "busi", "--json", str(file)])
    assert "error: give --corpora and --rows to run, or --tables FILE to show" in capsys.readouterr().err


def test_what_the_benchmark_started_ends_with_it(tmp_path):
    script = f"""
import sys
sys.path.insert(0, {str(BENCHMARKS)!r})
import finetuned
started = "import os, time; open('pid', 'w').write(f'{{os.getpid()}}.'); time.sleep(600)"
finetuned.command = lambda *_: ["-c", started]
finetuned.ROOT = {str(tmp_path)!r}
finetuned.main(["--corpora", "busi", "--rows", "mse", "--json", {str(tmp_path / "found.json")!r}])
"""
    with subprocess.Popen([sys.executable, "-c", script]) as running:
        try:
            while not ((tmp_path / "pid").exists() and (tmp_path / "pid").read_text().endswith(".")):
                assert running.poll() is None
                time.sleep(0.05)
            running.terminate()
            assert running.wait(60) == 128 + signal.SIGTERM
            assert ends(int((tmp_path / "pid").read_text()[:-1]))
        finally:
            running.kill()


def test_the_tables_hold_every_finished_row_and_its_difference(tmp_path, few_resamples, capsys):  # noqa: F811
    finetuned = load("finetuned")
    skills = {"classical": 1.5, "mse": 1.0, "texture": 1.2}
    answers = {row: predicted(index, skill) for index, (row, skill) in enumerate(skills.items())}
    busi = {row: {"0": kept(finetuned, tmp_path / row, table)} for row, table in answers.items()}
    run = kept(finetuned, tmp_path / "xray", predicted(7, 1.0, XRAY))
    # One of two seeds is not a finished row, unless nothing in it is random.
    xray = {"classical": {"0": run}, "mse": {"0": run, "1": run}, "texture": {"0": run}}
    text = finetuned.tables({"busi": busi, "pneumonia": xray})
    compared = compare(answers["texture"], answers["mse"], ["malignant"])["differences"]
    row = next(line for line in text.splitlines() if line.startswith("| `texture` |") and "+" in line)
    points = [100 * compared[name]["value"] for name in ("accuracy", "balanced_accuracy", "binary_auroc")]
    for point, cell in zip(points, row.split("|")[2:5], strict=True):
        assert float(cell.split()[0]) == pytest.approx(point, abs=0.11)
    of_busi, of_xray = text.split("| Chest X-ray |")[0], text.split("| Chest X-ray |")[1]
    assert "`none`" not in text and "`texture`" in of_busi and "`texture`" not in of_xray and "`classical`" in of_xray
    accuracy = f"{(answers['mse']['prediction'] == answers['mse']['label']).mean():.3f}"
    assert f"| `mse` | 1 | {accuracy} (" in of_busi and "| `mse` | 2 | " in of_xray
    assert "| `classical` | +0.0 (+0.0 to +0.0) |" in of_xray
    text = finetuned.tables({"busi": busi, "pneumonia": xray}, "classical")
    less = text.split("| BUSI: points above `classical` |")[1].split("\n\n")[0]
    point = 100 * (finetuned.table_of([busi["mse"]["0"]]).eval("prediction == label").mean())
    point -= 100 * (finetuned.table_of([busi["classical"]["0"]]).eval("prediction == label").mean())
    assert f"| `mse` | {point:+.1f} (" in less and "| `texture` |" in less and "| `classical` |" not in less
    assert "| `mse` | +0.0 (+0.0 to +0.0) |" in text.split("| Chest X-ray: points above `classical` |")[1]
    text = finetuned.tables({"busi": busi}, "classical", beside="classical")
    both = [f"probability_{name}" for name in BUSI]
    means = (answers["classical"][both].to_numpy() + answers["texture"][both].to_numpy()) / 2
    accuracy, alone = (
        (choice == answers["texture"]["label"]).mean()
        for choice in (means.argmax(1), answers["classical"]["prediction"])
    )
    assert (
        f"| `classical` and `texture` | 1 | {accuracy:.3f} (" in text and f"| `classical` | 1 | {alone:.3f} (" in text
    )
    assert f"| `classical` and `texture` | {100 * (accuracy - alone):+.1f} (" in text and "| `texture` |" not in text
    both_seeds = finetuned.tables({"pneumonia": xray, "busi": {"mse": busi["mse"]}}, "classical", beside="classical")
    assert "| `classical` and `mse` | 2 | " in both_seeds and "BUSI" not in both_seeds
    assert "busi is left out: it has no finished row classical\n" in capsys.readouterr().err
    busi["texture"]["0"]["file_names_sha256"] = "of another preparation"
    with pytest.raises(SystemExit, match="the rows of busi are not of the same images"):
        finetuned.tables({"busi": busi})


@pytest.mark.slow
def test_the_rows_are_run_kept_and_not_run_again(tmp_path):
    for index in range(72):
        name = ("normal", "benign", "malignant")[index % 3]
        values = encode(grey(40, 48, seed=index))
        write(tmp_path / "raw" / "Dataset_BUSI_with_GT" / name / f"{name} ({index + 1}).png", values)
    given = PrepareArguments("busi", str(tmp_path / "raw"), output_dir=str(tmp_path / "data" / "busi"), num_folds=2)
    prepare(given)
    sizes = {name: size for name, size in TINY_RUN.items() if name in ("image_size", "patch_size", *SMALL)}
    options = [f"--{name}={tmp_path / name.split('_')[0]}" for name in ("data_dir", "output_dir")]
    options += [f"--json={tmp_path / 'found.json'}", "--corpora", "busi", "--rows", "classical", "none", "mse"]
    options += ["--pretrain_options", "num_train_epochs=1", *(f"{name}={size}" for name, size in sizes.items())]
    options += ["--finetune_options", "num_train_epochs=1"]
    command = [sys.executable, str(BENCHMARKS / "finetuned.py"), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "found.json").read_text())["busi"]
    assert list(found) == ["classical", "none", "mse"]
    for row in found.values():
        assert row["0"]["labels"] == found["mse"]["0"]["labels"] and len(row["0"]["labels"].split()) == 72
    assert "preset=mse" in found["mse"]["0"]["command"] and "pretrain" not in found["none"]["0"]["command"]
    again = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert again.returncode == 0 and "cross_validate" not in again.stderr, "nothing is run again"
    named, shown = again.stdout.splitlines(keepends=True)[:3], again.stdout.splitlines(keepends=True)[3:]
    assert all(line.startswith("busi, ") and line.endswith(": not run\n") for line in named)
    tables = subprocess.run([*command[:2], "--tables", str(tmp_path / "found.json")], capture_output=True, text=True)
    assert tables.stdout == "".join(shown) and tables.stdout.count("| `none` |") == 2
    assert tables.stdout in done.stdout


def test_a_row_of_all_corpora_has_one_encoder_of_their_training_parts():
    finetuned = load("finetuned")
    options = argparse.Namespace(data_dir="data", output_dir="runs", pretrain_options=["image_size=64"], jobs=1)
    options.finetune_options = ["num_train_epochs=3"]
    words = finetuned.command("busi", "texture_all", 0, options)
    given = words[words.index("--pretrain_options") + 1 : words.index("--finetune_config")]
    others = ["unlabelled_corpus=data/covid_ct", "unlabelled_corpus=data/pneumonia"]
    others += ["unlabelled_folds=same", "unlabelled_folds=official"]
    assert given == ["preset=texture", *others, "num_train_epochs=24", "image_size=64", "seed=0"]
    of_finetuning = words[words.index("--finetune_options") + 1 : words.index("--jobs")]
    assert of_finetuning == ["num_train_epochs=3", "seed=0"]
    for corpus, seed, fold in (("covid_ct", 0, "{fold}"), ("pneumonia", 2, "2")):
        words = finetuned.command(corpus, "texture_all", seed, options)
        encoder = f"runs/busi/texture_all/seed_0/fold_{fold}/pretrain/export"
        assert words[words.index("--checkpoint") + 1] == encoder and "--pretrain_options" not in words
    alone = finetuned.command("covid_ct", "texture", 0, options)
    assert not any("unlabelled" in word for word in alone) and "num_train_epochs=30" in alone
    # As cross_validate.py hands them on.
    handed = ["--unlabelled_corpus", "data/covid_ct", "data/pneumonia", "--unlabelled_folds", "same", "official"]
    assert cross_validation._options(others) == handed
    assert cross_validation._options(["glcm_offsets=[[0, 1]]"]) == ["--glcm_offsets=[[0, 1]]"]
    assert cross_validation._options(["seed=1", "seed=2"]) == ["--seed=2"]


def test_a_learning_curve_has_the_encoders_and_the_updates_of_all_labels(tmp_path, few_resamples):  # noqa: F811
    finetuned = load("finetuned")
    folds = [{"train": list(range(size))} for size in (480, 500)]
    write(tmp_path / "busi" / "splits.json", json.dumps({"folds": folds}).encode())
    options = argparse.Namespace(data_dir=tmp_path, output_dir="runs", pretrain_options=[], finetune_options=[], jobs=1)
    words = finetuned.command("busi", "mse", 0, options, 25)
    assert words[words.index("--output_dir") + 1] == "runs/busi/mse@25/seed_0" and "--pretrain_config" not in words
    assert words[words.index("--checkpoint") + 1] == "runs/busi/mse/seed_0/fold_{fold}/pretrain/export"
    assert {"labelled_groups=25", "max_steps=919"} <= set(words), "30 epochs of 490 images by 16"
    assert finetuned.command("busi", "classical", 0, options, 25)[-2:] == ["--labelled_groups", "25"]
    answers = {"mse": predicted(0, 1.0), "mse@25": predicted(1, 0.5), "classical@50": predicted(2, 1.0)}
    rows = {row: {"0": kept(finetuned, tmp_path / row, table)} for row, table in answers.items()}
    text = finetuned.tables({"busi": rows | {"classical": rows["mse"]}})
    (curve,) = [table for table in text.split("\n\n") if "25 groups" in table]
    head, _, classical, mse = (line.strip("| ").split(" | ") for line in curve.splitlines())
    assert head[1:] == ["25 groups", "50 groups", "all"]
    assert classical[1] == "" and classical[2].count(" to ") == 2
    figures = summarise(answers["mse@25"], ["malignant"])["figures"]
    value = figures["balanced_accuracy"]["pooled"]["value"]
    assert mse[1].startswith(f"{value:.3f} (") and f"{figures['binary_auroc']['pooled']['value']:.3f}" in mse[1]


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
