"""The benchmarks at tiny size: what they write, and that their numbers mean what they say."""

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
from helpers import encode, grey, write
from huggingface_hub import constants

from images.items import PrepareArguments
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
    with pytest.raises(SystemExit, match="error: held_out must be .* below 24.*got 24"):
        learn(*arguments, "--num_test_images", "24")


def test_texture_learning_trains_without_a_look_at_the_test_images(learning, tmp_path):
    options, extra = learning.parse_options(["--corpus", str(tmp_path), "--num_test_images", "8"])
    _, data_args, args = learning.arguments_of("mse", 0, options, extra, "unused")
    assert data_args.held_out == 8 and args.eval_strategy == "no" and not args.load_best_model_at_end


@pytest.mark.slow
def test_texture_learning_of_a_corpus(learn, tmp_path):
    for index in range(40):
        contrast = 1 if index < 20 else 8
        image = 112 + grey(40, 40, seed=index) // contrast - 112 // contrast
        write(tmp_path / "raw" / f"contrast_{contrast}" / f"{index}.png", encode(image.astype(np.uint8)))
    prepared = prepare(PrepareArguments(data_dir=str(tmp_path / "raw"), output_dir=str(tmp_path / "prepared")))
    runs, table = learn("--presets", "mse", "--corpus", str(prepared), "--num_test_images", "10", "--epochs", "8")
    assert [run["settings"]["pretraining"] for run in runs] == ["none", "mse"]
    for run in runs:
        assert run["settings"]["num_test_images"] == 10 and run["settings"]["classes"] is None
        assert run["results"]["probe"]["10"]["mean"] > 0.9, "classes that a glance tells apart"
    untrained, trained = (run["results"]["gradient_energy_ratio"] for run in runs)
    assert untrained > trained > 0, "the noise of an untrained decoder goes first"
    assert len(table) == 4


@pytest.mark.slow
def test_texture_learning(learning, learn, monkeypatch):
    runs, table = learn("--presets", "mse", "texture")
    assert [run["settings"]["pretraining"] for run in runs] == ["none", "mse", "texture"]
    for run in runs:
        results = run["results"]
        assert 0 <= results["probe"]["10"]["mean"] <= 1 and results["probe"]["10"]["std"] >= 0
        assert 0 < results["glcm_l1"] <= 2 and results["mse"] > 0 and results["gradient_energy_ratio"] > 0
        # A patch painted with its mean has the smallest squared error that one value can have, and one grey level.
        assert results["mse_patch_mean"] < min(results["mse"], results["mse_dataset_mean"])
        assert results["glcm_l1_patch_mean"] > 1
        assert run["machine"]["threads"] > 0
    none, mse, texture = (run["results"] for run in runs)
    assert none["mse_dataset_mean"] == mse["mse_dataset_mean"] == texture["mse_dataset_mean"], "tested on other images"
    assert mse["mse"] < none["mse"], "nothing was trained"
    assert mse["glcm_l1"] != texture["glcm_l1"]
    assert [line.split(" | ")[0] for line in table[2:]] == ["| none", "| mse", "| texture"]

    # What is in the file is not repeated; another setting is another run.
    trained = []
    measure = learning.measure
    monkeypatch.setattr(learning, "measure", lambda preset, *rest: trained.append(preset) or measure(preset, *rest))
    assert learn("--presets", "mse", "texture") == (runs, table)
    assert not trained
    more, table = learn("--presets", "texture", "--glcm_weight", "100")
    assert trained == ["none", "texture"] and len(more) == 5
    assert more[-1]["settings"]["model"]["glcm_weight"] == 100
    assert len(table) == 4, "the table mixes settings"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--presets", "sharp"], "sharp"),
        (["--epoch", "3"], "unknown option or value: --epoch 3"),
        (["--mask_ratio", "1.5"], "mask_ratio"),
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
    with pytest.raises(SystemExit, match="error: .*mask_ratio"):
        load("throughput").main([*data, "--mask_ratio=1.5"])


@pytest.mark.parametrize("script", ["loss", "pixel_optimization", "texture_learning", "throughput"])
@pytest.mark.slow
def test_scripts_start_from_any_folder(script, tmp_path):
    command = [sys.executable, str(BENCHMARKS / f"{script}.py"), "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--json" in done.stdout
