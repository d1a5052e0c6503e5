"""The pretraining recipe as users start it: real launches, kill and resume, several processes, bad input."""

import hashlib
import json
import math
import os
import pickle
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch
import yaml
from helpers import encode, grey, write
from transformers import AutoImageProcessor, AutoModel, ViTMAEConfig, ViTMAEForPreTraining, ViTModel

from commandline import UsageError, parse_args
from corpora.facts import FACTS
from modeling_glcm_mae import GLCMMAEConfig
from training import pretraining
from training.arguments import PRETRAINING, DataArguments, ModelArguments
from training.models import build_model
from training.trainers import trivial_predictions

ROOT = Path(__file__).resolve().parent.parent
TINY = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "decoder_hidden_size": 32,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 64,
    "mask_ratio": 0.5,
    "held_out": 8,
    "num_train_epochs": 2,
    "per_device_train_batch_size": 16,
    "learning_rate": 1e-3,
    "logging_steps": 1,
    "dataloader_num_workers": 0,
    "num_pictures": 2,
    "use_cpu": True,
}
# Threads of two processes would fight for the cores; one also makes sums come out the same each time.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}


def save_image(path: Path, *, seed: int, size: tuple[int, int]) -> None:
    write(path, encode(grey(*size, seed=seed)))


def options(**values) -> list[str]:
    return [f"--{name}={value}" for name, value in values.items()]


def launch(
    arguments, launcher=(sys.executable,), check=True, script=ROOT / "recipes" / "pretrain.py"
) -> subprocess.CompletedProcess:
    done = subprocess.run(
        [*launcher, str(script), *arguments],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=280,
    )
    if check:
        assert done.returncode == 0, done.stderr[-3000:]
    return done


def losses(output_dir: Path) -> dict[int, dict[str, float]]:
    rows = [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]
    terms = ("loss", "mse", "glcm", "glcm_head", "glcm_cls")
    return {row["step"]: {name: row[name] for name in terms if name in row} for row in rows if "loss" in row}


def evaluations(output_dir: Path) -> list[dict]:
    rows = [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "eval_loss" in row]


def assert_same_losses(one, other, steps=None, tolerance=1e-5):
    steps = steps or one.keys()
    assert steps <= one.keys() and steps <= other.keys() and steps
    for step in steps:
        assert other[step] == pytest.approx(one[step], rel=tolerance), step


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """56 images of two classes, as people have them: a folder a class."""
    folder = tmp_path_factory.mktemp("images")
    for index in range(56):
        save_image(folder / ("a" if index % 2 else "b") / f"{index:02d}.png", seed=index, size=(40, 48))
    return folder


@pytest.fixture(scope="module")
def run(images, tmp_path_factory) -> Path:
    """An uninterrupted run of 6 steps, to be compared with."""
    output_dir = tmp_path_factory.mktemp("runs") / "whole"
    launch(options(**TINY, corpus=images, output_dir=output_dir, mse_epochs=1, picture_every_epochs=1))
    return output_dir


def test_run_leaves_everything_where_the_contract_says(run):
    assert {path.name for path in run.iterdir()} >= {
        "config.yaml",
        "metrics.jsonl",
        "all_results.json",
        "reconstructions",
        "export",
    }
    assert sorted(path.name for path in (run / "reconstructions").iterdir()) == ["last.png", "step-0000003.png"]
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["derived"]["num_train_images"] == 48 and config["derived"]["num_held_out_images"] == 8
    assert config["training"]["learning_rate"] == 1e-3
    assert {p.name for p in (run / "export").iterdir()} >= {"README.md", "config.yaml", "model.safetensors"}
    assert not list(run.rglob("export*.partial")) and not list((run / "export").rglob("*.bin"))


def whole(row: dict[str, float], begin: str = "") -> float:
    """The loss of the preset `texture`, of its terms."""
    glcm, mse, head, cls = (row[f"{begin}{term}"] for term in ("glcm", "mse", "glcm_head", "glcm_cls"))
    return 2560 * glcm + mse + 8 * head + 0.5 * cls


def test_schedule_switches_from_mse_to_texture(run):
    steps = losses(run)
    assert sorted(steps) == [1, 2, 3, 4, 5, 6]
    for step in (1, 2, 3):
        assert steps[step]["loss"] == pytest.approx(steps[step]["mse"]) and "glcm" not in steps[step]
    for step in (4, 5, 6):
        assert steps[step]["loss"] == pytest.approx(whole(steps[step]), rel=1e-5)


def test_evaluation_stands_beside_trivial_predictors(run):
    rows = evaluations(run)
    assert rows[0]["step"] == 0 and rows[-1]["step"] == 6
    for predictor in ("patch_mean", "dataset_mean"):
        values = {row[f"eval_loss_{predictor}"] for row in rows}
        assert len(values) == 1, "fixed images and masks: trivial predictors never change"
    assert rows[0]["eval_mse_patch_mean"] < rows[0]["eval_mse_dataset_mean"]
    assert rows[-1]["eval_loss"] < rows[0]["eval_loss"]
    assert rows[0]["eval_loss"] == pytest.approx(whole(rows[0], "eval_"), rel=1e-5)


def test_a_dry_run_checks_and_leaves_everything_as_it_was(images, run, tmp_path, capsys, monkeypatch):
    import pretrain

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    given = TINY | {"corpus": images, "dry_run": True, "cache_images": True}
    pretrain.main(options(**given, output_dir=run, overwrite_output_dir=True))
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    pretrain.main(options(**given, output_dir=tmp_path / "new"))
    assert capsys.readouterr().out.count("nothing wrong found") == 2 and not (tmp_path / "new").exists()
    assert not (tmp_path / "cache" / "glcm_mae_images").exists()
    with pytest.raises(SystemExit, match="48 training images are fewer than one batch of 64"):
        pretrain.main(options(**given | {"per_device_train_batch_size": 64}, output_dir=tmp_path / "new" / "deep"))
    assert not (tmp_path / "new").exists()


def test_another_data_set_is_held_against_its_own_trivial_predictors(images, tmp_path):
    trainer = prepared(images, tmp_path / "run", num_pictures=0).trainer
    first, second = trainer.evaluate(), trainer.evaluate(trainer.train_dataset)
    assert first["eval_mse_dataset_mean"] != second["eval_mse_dataset_mean"]
    assert trainer.evaluate()["eval_mse_dataset_mean"] == first["eval_mse_dataset_mean"]


def test_export_opens_in_plain_transformers(run):
    export = run / "export"
    encoder, report = AutoModel.from_pretrained(export, output_loading_info=True)
    assert type(encoder) is ViTModel
    assert not any(report.values()), report
    processor = AutoImageProcessor.from_pretrained(export)
    pixels = processor(images=torch.zeros(40, 48, 3, dtype=torch.uint8).numpy(), return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 32, 32)
    with torch.no_grad():
        first, second = encoder(pixels), encoder(pixels)
    assert first.last_hidden_state.shape == (1, 17, 32), "all 16 patches and CLS: nothing is masked"
    assert torch.equal(first.last_hidden_state, second.last_hidden_state)
    assert torch.equal(first.pooler_output, first.last_hidden_state[:, 0])
    # the same weights as the encoder of the autoencoder, which at mask ratio 0 sees all patches, in shuffled order
    whole = ViTMAEForPreTraining.from_pretrained(export / "pretraining", mask_ratio=0.0)
    noise = torch.arange(16.0)[None]
    with torch.no_grad():
        hidden = whole.vit(pixels, noise=noise).last_hidden_state
    torch.testing.assert_close(hidden, first.last_hidden_state, rtol=1e-5, atol=1e-5)


def test_card_has_no_gap_and_its_metadata_is_read(run):
    from huggingface_hub import ModelCard

    card = ModelCard.load(run / "export" / "README.md")
    assert card.data.library_name == "transformers" and card.data.pipeline_tag == "image-feature-extraction"
    assert "{{" not in card.text and "None" not in card.text
    assert "48 images, 8 more held out" in card.text
    first, *_, last = evaluations(run)
    assert "| | model | before training | patch mean | data-set mean |" in card.text
    assert (
        f"| mse | {last['eval_mse']:.4g} | {first['eval_mse']:.4g} | {last['eval_mse_patch_mean']:.4g} |" in card.text
    )
    assert "| Learning rate, at most | 0.00" in card.text


@pytest.mark.slow
def test_every_launcher_gives_the_same_losses(run, images, tmp_path):
    output_dir = tmp_path / "launched"
    launcher = (
        *(sys.executable, "-m", "accelerate.commands.launch", "--config_file"),
        str(ROOT / "recipes" / "configs" / "accelerate" / "cpu.yaml"),
    )
    launch(options(**TINY, corpus=images, output_dir=output_dir, mse_epochs=1), launcher)
    assert_same_losses(losses(run), losses(output_dir), tolerance=0)


def test_two_processes_equal_one_at_twice_the_batch(run, images, tmp_path):
    output_dir = tmp_path / "two"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = (sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}")
    arguments = TINY | {"per_device_train_batch_size": 8}
    script = tmp_path / "pretrain.py"
    script.write_text(
        "import atexit, os, pathlib, runpy, sys\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "left = folder / ('left' + os.environ['RANK'])\n"
        "atexit.register(lambda: left.write_text(str((folder / 'two' / 'all_results.json').exists())))\n"
        f"sys.path.insert(0, {str(ROOT / 'recipes')!r})\n"
        f"runpy.run_path({str(ROOT / 'recipes' / 'pretrain.py')!r}, run_name='__main__')\n"
    )
    done = launch(options(**arguments, corpus=images, output_dir=output_dir, mse_epochs=1), launcher, script=script)
    # With one that fails on its way out, the launcher would end the one that still writes the export.
    assert (tmp_path / "left1").read_text() == "True"
    assert "2 process(es) on cpu; 8 x 1 x 2 = 16 images per update" in done.stderr
    assert_same_losses(losses(run), losses(output_dir))
    assert evaluations(output_dir)[-1]["eval_loss"] == pytest.approx(evaluations(run)[-1]["eval_loss"], rel=1e-4)


def test_accumulation_equals_a_larger_batch(run, images, tmp_path):
    output_dir = tmp_path / "accumulated"
    arguments = TINY | {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2}
    launch(options(**arguments, corpus=images, output_dir=output_dir, mse_epochs=1))
    assert_same_losses(losses(run), losses(output_dir))


@pytest.mark.slow
def test_stream_from_parquet_with_max_steps(images, tmp_path):
    from datasets import load_dataset

    data = load_dataset("imagefolder", data_dir=str(images), split="train", cache_dir=str(tmp_path / "cache"))
    (tmp_path / "parquet").mkdir()
    data.to_parquet(tmp_path / "parquet" / "train-00000.parquet")
    arguments = options(**TINY, corpus=tmp_path / "parquet", streaming=True, output_dir=tmp_path / "run")
    refused = launch(arguments, check=False)
    assert refused.returncode != 0 and "give max_steps" in refused.stderr
    launch([*arguments, "--max_steps=4", "--mse_epochs=0.5", "--overwrite_output_dir=true"])
    assert sorted(losses(tmp_path / "run")) == [1, 2, 3, 4]
    assert (tmp_path / "run" / "export" / "model.safetensors").exists()


@pytest.mark.slow
def test_bad_images_are_named_then_skipped_and_counted(images, tmp_path):
    folder = tmp_path / "images"
    for index in range(24):
        save_image(folder / f"{index:02d}.png", seed=index, size=(32, 32))
    whole = (folder / "05.png").read_bytes()
    (folder / "05.png").write_bytes(whole[: len(whole) // 2])
    (folder / "06.png").write_bytes(b"")
    arguments = options(**TINY | {"held_out": 4, "num_train_epochs": 1}, corpus=folder, output_dir=tmp_path / "run")
    refused = launch(arguments, check=False)
    assert refused.returncode != 0
    assert "05.png" in refused.stderr and "--bad_images skip" in refused.stderr and "Traceback" not in refused.stderr
    done = launch([*arguments, "--bad_images=skip", "--overwrite_output_dir=true"])
    assert "Left out 2 of 24 images" in done.stderr
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["derived"]["skipped_images"] == ["05.png", "06.png"]
    assert config["derived"]["num_train_images"] == 18


def test_loss_that_is_not_finite_stops_with_the_files(images, tmp_path):
    # A rate that throws the weights out of float32's range within a few steps.
    arguments = TINY | {"learning_rate": 1e18, "max_grad_norm": 0, "warmup_steps": 0, "num_train_epochs": 20}
    stopped = launch(options(**arguments, corpus=images, output_dir=tmp_path / "run"), check=False)
    assert stopped.returncode != 0
    assert re.search(
        r"error: stopped at step \d+: the term .* is not finite. Files of the batch: [ab]/\d\d\.png, ", stopped.stderr
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mask_ratio": 1.5}, r"'mask_ratio'.* less than 1\.0, got 1\.5"),
        ({"glcm_offsets": "[[0, 8]]"}, r"glcm_offsets must be shorter than patch_size \(8.*\[\[0, 8\]\]"),
        ({"glcm_levels": 1}, r"'glcm_levels'.* at least 2, got 1"),
        ({"preset": "best"}, r"preset must be one of texture, paper, mse, got 'best'"),
        ({"glcm_channel": "red"}, r"glcm_channel must be mean or the index of a channel, got 'red'"),
        ({"glcm_kernel": "hard"}, r"glcm_kernel hard has no gradient.*allowed are linear and sigmoid"),
        ({"mse_epochs": 7}, r"mse_epochs must be .* at most num_train_epochs \(2.*got 7"),
        ({"corpus": "EMPTY"}, r"EMPTY.*no image"),
        ({"corpus": None}, r"corpus is needed: a folder of images"),
        ({"model_name_or_path": "no/such/folder"}, r"model_name_or_path 'no/such/folder' is neither a folder here nor"),
        ({"resize": "none"}, r"40 x 48 pixels .* only 32 x 32 is allowed"),
        ({"mask_ration": 0.5}, r"unknown option or value: --mask_ration=0.5"),
        ({"model_name_or_path": "BERT"}, r"model_type is 'bert', allowed is 'vit_mae'"),
        ({"per_device_train_batch_size": 64}, r"48 training images are fewer than one batch of 64"),
        ({"resume_from_checkpoint": "last"}, r"holds no whole checkpoint"),
        ({"mask_ratio": 0}, r"mask_ratio 0.0 leaves 16 of 16 patches visible"),
        ({"mask_ratio": 0.99}, r"mask_ratio 0.99 leaves 0 of 16 patches visible"),
        ({"per_device_train_batch_size": 0}, r"per_device_train_batch_size must be at least 1, got 0"),
        ({"gradient_accumulation_steps": 0}, r"gradient_accumulation_steps must be at least 1, got 0"),
        ({"num_attention_heads": 0}, r"num_attention_heads must be at least 1, got 0"),
        ({"image_size": "[32]"}, r"^error: image_size must be one or two positive multiples .* got \[32\]"),
        ({"num_train_epochs": 0}, r"num_train_epochs must be greater than 0, got 0"),
        ({"num_pictures": -1}, r"num_pictures must be at least 0, got -1"),
        ({"mse_epochs": 2}, r"mse_epochs 2 leaves no step of 6"),
        ({"sharpness_start": 5}, r"sharpness_start needs glcm_kernel sigmoid, got linear"),
        ({"sharpness_start": "inf"}, r"sharpness_start must be finite.*got inf"),
        ({"probe_labels": 1}, r"probe_labels must be from the number of classes \(2.*got 1"),
        ({"probe_labels": 48}, r"probe_labels .* training images \(48\), got 48"),
        ({"model_name_or_path": "RUN", "hidden_size": 64}, r"does not fit the model: .*given: .*hidden_size"),
        ({"cache_images": True, "streaming": True, "max_steps": 2}, r"cache_images must be false for a stream"),
    ],
)
def test_mistake_gives_one_clear_message(arguments, message, images, run, tmp_path):
    import pretrain

    if arguments.get("corpus") == "EMPTY":
        (tmp_path / "EMPTY").mkdir()
        arguments = {"corpus": tmp_path / "EMPTY"}
    if arguments.get("model_name_or_path") == "RUN":
        arguments = arguments | {"model_name_or_path": run / "export", "model_subfolder": "pretraining"}
    elif arguments.get("model_name_or_path") == "BERT":
        (tmp_path / "BERT").mkdir()
        (tmp_path / "BERT" / "config.json").write_text('{"model_type": "bert"}')
        arguments = {"model_name_or_path": tmp_path / "BERT"}
    given = TINY | {"corpus": images, "output_dir": tmp_path / "run"} | arguments
    with pytest.raises(SystemExit) as stopped:
        pretrain.main(options(**{name: value for name, value in given.items() if value is not None}))
    assert str(stopped.value.code).startswith("error: ") and "\n" not in str(stopped.value.code)
    assert re.search(message, str(stopped.value.code)), stopped.value.code


@pytest.mark.parametrize(
    ("corpus", "asked", "carried"),
    [("own", None, False), ("own", True, True), ("gbcu", None, False), ("busi", None, True), ("busi", False, False)],
)
def test_the_export_shows_images_of_open_corpora_or_if_asked_to(
    corpus, asked, carried, images, tmp_path, caplog, monkeypatch
):
    import pretrain

    caplog.set_level("INFO")
    monkeypatch.setattr("training.pretraining.facts_of", lambda name, data_dir: FACTS.get(corpus))
    given = TINY | {"corpus": images, "output_dir": tmp_path / "run", "num_train_epochs": 1}
    pretrain.main(options(**given | ({} if asked is None else {"export_picture": asked})))
    assert (tmp_path / "run" / "reconstructions" / "last.png").exists()
    export = tmp_path / "run" / "export"
    assert bool(list(export.rglob("*.png"))) == ("last.png" in (export / "README.md").read_text()) == carried
    assert ("no picture in the export" in caplog.text) == (not carried)


def test_a_picture_of_images_that_must_not_be_given_out_is_refused(images, tmp_path):
    import pretrain

    given = TINY | {"corpus": "gbcu", "data_dir": images, "output_dir": tmp_path / "run", "export_picture": True}
    with pytest.raises(SystemExit, match="error: export_picture must not be true: GBCU is given out"):
        pretrain.main(options(**given))
    assert not (tmp_path / "run").exists()


def test_run_without_pictures_or_held_out_images_ends_well(images, tmp_path, capsys, caplog):
    import pretrain

    for changed in ({"held_out": 0}, {"num_pictures": 0}):
        caplog.clear()
        pretrain.main(
            options(**TINY | {"num_train_epochs": 1} | changed, corpus=images, output_dir=tmp_path / "run")
            + ["--overwrite_output_dir=true"]
        )
        printed = capsys.readouterr().out
        assert "metrics  " in printed and "export   " in printed and "picture  " not in printed
        assert (tmp_path / "run" / "export" / "model.safetensors").exists()
        # A plain folder tells no patients: copies may be on both sides of the held-out images, where there are any.
        assert ("has no groups" in caplog.text) == ("held_out" not in changed)


def test_published_recipe_names_no_path_and_no_file(run, images):
    published = (run / "export" / "config.yaml").read_text()
    assert str(images.parent) not in published and str(run.parent) not in published
    assert yaml.safe_load(published)["data"]["corpus"] == images.name
    assert yaml.safe_load((run / "config.yaml").read_text())["data"]["corpus"] == str(images)


def test_a_relative_path_that_is_gone_in_the_end_is_not_published(images, tmp_path, monkeypatch):
    import pretrain

    monkeypatch.chdir(tmp_path)
    shutil.copytree(images, tmp_path / "of_somebody" / "scans")
    whole_model = pretraining.Pretraining._whole_model

    def moved_after_the_training(run):
        shutil.rmtree("of_somebody")
        return whole_model(run)

    monkeypatch.setattr(pretraining.Pretraining, "_whole_model", moved_after_the_training)
    given = TINY | {"held_out": 0, "max_steps": 1, "corpus": "of_somebody/scans", "output_dir": "my_runs/run"}
    pretrain.main(options(**given))
    published = (tmp_path / "my_runs" / "run" / "export" / "config.yaml").read_text()
    assert "of_somebody" not in published and "my_runs" not in published and "corpus: scans" in published


def test_exported_processor_knows_16_bit_images(tmp_path, monkeypatch):
    import pretrain

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))

    for index in range(24):
        write(tmp_path / "deep" / f"{index:02d}.png", encode(grey(40, 48, bits=16, seed=index)))
    given = TINY | {"num_train_epochs": 1, "held_out": 4, "corpus": tmp_path / "deep", "num_channels": 1}
    losses = []
    for cache in (False, True):
        pretrain.main(options(**given, output_dir=tmp_path / "run", cache_images=cache, overwrite_output_dir=True))
        losses.append(json.loads((tmp_path / "run" / "all_results.json").read_text())["train_loss"])
    assert losses[0] == losses[1], "the cache keeps all 16 bits"
    processor = AutoImageProcessor.from_pretrained(tmp_path / "run" / "export")
    assert processor.white_level == 65535 and processor.rescale_factor == pytest.approx(1 / 255)


@pytest.mark.slow
def test_a_stream_of_float_images_takes_the_white_level_of_its_rows_and_passes_over_what_is_bad(tmp_path):
    import pretrain

    values = [(grey(40, 48, seed=i) / 100).astype("float32") for i in range(19)]
    images = [{"bytes": encode(value, "TIFF"), "path": f"{i:02d}.tif"} for i, value in enumerate(values)]
    # First, where a stream is known again: a null, and half a file.
    images = [None, {"bytes": images[0]["bytes"][:100], "path": "half.tif"}, *images[1:]]
    rows = {"image": images, "white_level": [2.55] * len(images), "file_name": [f"{i:02d}.tif" for i in range(20)]}
    features = datasets.Features(
        image=datasets.Image(), white_level=datasets.Value("float64"), file_name=datasets.Value("string")
    )
    (tmp_path / "floats").mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "floats" / "train-00000.parquet")
    given = TINY | {"corpus": tmp_path / "floats", "streaming": True, "held_out": 0, "max_steps": 1}
    given |= {"per_device_train_batch_size": 8, "output_dir": tmp_path / "run"}
    with pytest.raises(SystemExit, match="^error: .*00.tif"):
        pretrain.main(options(**given))
    pretrain.main(options(**given, bad_images="skip"))
    derived = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["derived"]
    assert derived["white_level"] == 2.55 and derived["first_images_sha256"]


def test_a_run_without_its_export_is_not_finished(images, tmp_path, monkeypatch):
    import pretrain

    def full(*args, **kwargs):
        raise UsageError("the disk is full")

    monkeypatch.setattr("training.pretraining.write_export", full)
    given = TINY | {"held_out": 0, "max_steps": 1, "corpus": images, "output_dir": tmp_path / "run"}
    with pytest.raises(SystemExit, match="the disk is full"):
        pretrain.main(options(**given))
    assert not (tmp_path / "run" / "all_results.json").exists()


def test_held_out_images_of_a_stream_are_not_trained_on(tmp_path):
    from training.arguments import DataArguments
    from training.pretraining_data import load_data

    features = datasets.Features(image=datasets.Image())
    for shard in range(3):
        rows = [{"bytes": encode(grey(seed=10 * shard + i)), "path": f"{shard}{i}.png"} for i in range(4)]
        part = datasets.Dataset.from_dict({"image": rows}, features=features)
        part.to_parquet(tmp_path / "images" / f"train-{shard:05d}-of-00003.parquet")
    arguments = DataArguments(corpus=str(tmp_path / "images"), streaming=True, held_out=5, shuffle_buffer=0)
    config = GLCMMAEConfig.from_preset("texture", image_size=32, patch_size=8)
    for workers in (0, 2):
        data = load_data(arguments, config, seed=0)
        held_out = [data.held_out[i]["file_name"] for i in range(len(data.held_out))]
        # Pickled, as for workers that are spawned: the only kind on macOS and Windows.
        train, held_out_items = pickle.loads(pickle.dumps((data.train, data.held_out)))
        assert [item["file_name"] for item in map(held_out_items.__getitem__, range(5))] == held_out
        loader = torch.utils.data.DataLoader(train, batch_size=None, num_workers=workers)
        trained = [item["file_name"] for item in loader]
        assert len(held_out) == 5 and not set(held_out) & set(trained)
        assert len(trained) == 7 and len(set(trained)) == 7


@pytest.mark.slow
def test_a_stream_with_held_out_images_under_spawned_workers(images, tmp_path):
    data = datasets.load_dataset("imagefolder", data_dir=str(images), split="train", cache_dir=str(tmp_path / "cache"))
    (tmp_path / "parquet").mkdir()
    data.to_parquet(tmp_path / "parquet" / "train-00000.parquet")
    script = tmp_path / "spawned.py"
    script.write_text(
        "import multiprocessing, sys\nimport pretrain\n"
        "if __name__ == '__main__':\n    multiprocessing.set_start_method('spawn')\n    pretrain.main(sys.argv[1:])\n"
    )
    given = TINY | {"dataloader_num_workers": 1, "streaming": True, "max_steps": 2}
    path = os.pathsep.join([str(ROOT), str(ROOT / "recipes")])
    done = subprocess.run(
        [sys.executable, str(script), *options(**given, corpus=tmp_path / "parquet", output_dir=tmp_path / "run")],
        env=ENVIRONMENT | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(losses(tmp_path / "run")) == [1, 2]


def test_mse_epochs_are_epochs_whatever_the_length(images, tmp_path):
    from commandline import parse_args
    from training.pretraining import Pretraining

    # 48 images in batches of 16: 3 steps an epoch
    for length in ({"max_steps": 10}, {"num_train_epochs": 2.34}):
        argv = options(**TINY | {"mse_epochs": 1} | length, corpus=images, output_dir=tmp_path / "run")
        run = Pretraining(*parse_args(PRETRAINING, argv))
        run.trainer.state.max_steps = run.resolved["derived"]["max_steps"]
        assert [run.trainer.objective_at(step)[0] for step in range(5)] == [False] * 3 + [True] * 2


def prepared(images, tmp_path, **changes):
    """A run that is about to begin."""
    from training.pretraining import Pretraining

    argv = options(**TINY | changes, corpus=images, output_dir=tmp_path / "run")
    return Pretraining(*parse_args(PRETRAINING, argv))


def test_base_learning_rate_is_that_of_256_images_an_update(images, tmp_path, monkeypatch):
    monkeypatch.delitem(TINY, "learning_rate")
    run = prepared(images, tmp_path, base_learning_rate=3e-4, gradient_accumulation_steps=2)
    assert run.resolved["derived"]["effective_batch_size"] == 32
    assert run.resolved["training"]["learning_rate"] == pytest.approx(3e-4 * 32 / 256)
    optimizer = run.trainer.create_optimizer()
    assert {group["lr"] for group in optimizer.param_groups} == {run.resolved["training"]["learning_rate"]}


def test_mse_epochs_below_one_are_a_share_of_the_steps(images, tmp_path):
    run = prepared(images, tmp_path, mse_epochs=0.25, max_steps=8)
    run.trainer.state.max_steps = 8
    assert [run.trainer.objective_at(step)[0] for step in range(8)] == [False] * 2 + [True] * 6


def test_sharpness_grows_by_the_same_factor_at_every_step(images, tmp_path):
    changes = {"preset": "paper", "sharpness_start": 2, "mse_epochs": 0.2, "max_steps": 10}
    run = prepared(images, tmp_path, **changes)
    run.trainer.state.max_steps = 10
    sharpness = [run.trainer.objective_at(step)[1] for step in range(10)]
    assert sharpness[:2] == [None, None]
    # From 2 after the steps of plain squared error to the 30 of the preset at the last.
    assert sharpness[2:] == pytest.approx([2 * 15 ** (step / 7) for step in range(8)])

    # and each step is judged by its own
    model, batch = run.trainer.model, next(iter(run.trainer.get_train_dataloader()))
    model.eval()
    for step, objective in ((1, {"texture": False}), (3, {"glcm_sharpness": sharpness[3]})):
        run.trainer.state.global_step = step
        inputs = {"pixel_values": batch["pixel_values"], "noise": batch["noise"], "interpolate_pos_encoding": True}
        assert torch.equal(run.trainer.compute_loss(model, dict(batch)), model(**inputs, **objective).loss)


def test_seed_decides_the_order_and_the_masks(images, tmp_path):
    orders, masks = [], []
    for seed in (1, 1, 2):
        run = prepared(images, tmp_path, seed=seed)
        orders.append(list(run.trainer._get_train_sampler()))
        masks.append({item["file_name"]: item["noise"].tolist() for item in (run.data.train[i] for i in range(48))})
    assert orders[0] == orders[1] and masks[0] == masks[1]
    shared = masks[0].keys() & masks[2].keys()  # not the same images are held out
    assert orders[0] != orders[2] and shared and all(masks[0][file] != masks[2][file] for file in shared)


def test_gradient_that_is_not_finite_stops_with_the_files(images, tmp_path, monkeypatch):
    import pretrain

    def model_of_broken_gradient(*arguments):
        model = build_model(*arguments)
        model.decoder.mask_token.register_hook(lambda gradient: gradient * math.nan)
        return model

    monkeypatch.setattr("training.pretraining.build_model", model_of_broken_gradient)
    with pytest.raises(SystemExit) as stopped:
        pretrain.main(options(**TINY, preset="mse", corpus=images, output_dir=tmp_path / "run"))
    said = r"error: stopped at step 1: the gradient is not finite, though the loss is. Files of the batch: [ab]/\d\d"
    assert re.match(said, str(stopped.value.code)), stopped.value.code


def test_trivial_predictors_by_hand(images, tmp_path):
    model = prepared(images, tmp_path).model
    pixel_values = torch.arange(2 * 3 * 32 * 32.0).view(2, 3, 32, 32)
    mean = torch.tensor([1.0, 2.0, 3.0])
    found = trivial_predictions(model, pixel_values, mean)
    assert found.keys() == {"patch_mean", "dataset_mean"}
    painted = {name: model.unpatchify(logits, (32, 32)) for name, logits in found.items()}
    assert torch.equal(painted["dataset_mean"], mean.view(1, 3, 1, 1).expand(2, 3, 32, 32))
    patches = torch.nn.functional.avg_pool2d(pixel_values, 8)
    torch.testing.assert_close(painted["patch_mean"], patches.repeat_interleave(8, -1).repeat_interleave(8, -2))


def test_export_lists_every_image_that_was_seen(images, tmp_path):
    import pretrain

    given = TINY | {"preset": "mse", "num_train_epochs": 1, "num_pictures": 0}
    pretrain.main(options(**given, corpus=images, output_dir=tmp_path / "run"))
    listed = (tmp_path / "run" / "export" / "training_images.txt").read_text().split()
    seen = [hashlib.sha256(path.read_bytes()).hexdigest() for path in images.rglob("*.png")]
    assert listed == sorted(seen) and len(seen) == 56  # 48 trained on, 8 held out


def test_range_reversed_and_unknown_key_in_yaml(images, tmp_path):
    import pretrain

    config = tmp_path / "mine.yaml"
    config.write_text("glcm_value_range: [2.0, -2.0]\n")
    with pytest.raises(SystemExit, match="(?s)glcm_value_range.*lo < hi"):
        pretrain.main(["--config", str(config), *options(**TINY, corpus=images, output_dir=tmp_path / "run")])
    config.write_text("mask_ration: 0.5\n")
    with pytest.raises(SystemExit, match="mine.yaml: unknown key 'mask_ration'; did you mean mask_ratio"):
        pretrain.main(["--config", str(config)])


def test_options_win_over_the_file_and_lists_survive(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text(
        "mask_ratio: 0.4\npreset: paper\nglcm_offsets: [[0, 2], [2, 0]]\nimage_size: [32, 48]\nbf16: false\n"
    )
    model_args, _, _ = parse_args(
        PRETRAINING,
        ["--config", str(config), "--mask_ratio", "0.6", "--use_cpu", "true", "--corpus", "speckle"],
    )
    overrides = model_args.config_overrides()
    assert overrides == {"mask_ratio": 0.6, "glcm_offsets": [[0, 2], [2, 0]], "image_size": [32, 48]}
    config.write_text("mask_ratio: half\n")
    with pytest.raises(UsageError, match="c.yaml: mask_ratio: 'half' is not allowed"):
        parse_args(PRETRAINING, ["--config", str(config)])


def _tiny_checkpoint(folder: Path, **changes) -> ViTMAEForPreTraining:
    names = set(TINY) & set(ViTMAEConfig.__dataclass_fields__)
    torch.manual_seed(0)
    model = ViTMAEForPreTraining(ViTMAEConfig(**{name: TINY[name] for name in names} | changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.05)
    model.save_pretrained(folder)
    return model


def test_start_from_a_stock_checkpoint_keeps_every_weight(tmp_path):
    stock = _tiny_checkpoint(tmp_path)
    model = build_model(
        ModelArguments(model_name_or_path=str(tmp_path), preset="paper"), DataArguments(corpus="speckle")
    )
    assert model.config.glcm_levels == 256 and model.config.mask_ratio == 0.5
    for name, weight in stock.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight), name
    with pytest.raises(UsageError, match=r"image_size must be that of the checkpoint \(32\), got 64"):
        build_model(ModelArguments(model_name_or_path=str(tmp_path), image_size="64"), DataArguments(corpus="speckle"))


def test_grey_range_follows_the_normalisation(tmp_path):
    data_args = DataArguments(corpus="speckle", image_mean=[0.5] * 3, image_std=[0.25] * 3)
    model = build_model(ModelArguments(image_size="32", patch_size=8, hidden_size=32, num_attention_heads=2), data_args)
    assert model.config.glcm_value_range == [-2.0, 2.0]
    _tiny_checkpoint(tmp_path)
    arguments = ModelArguments(model_name_or_path=str(tmp_path), num_channels=1)
    model = build_model(arguments, DataArguments(corpus="speckle", image_mean=[0.5], image_std=[0.5]))
    assert model.config.num_channels == 1 and model.config.glcm_value_range == [-1.0, 1.0]


def test_weight_decay_spares_biases_and_norms(images, tmp_path):
    from training.pretraining import Pretraining

    given = TINY | {"corpus": images, "output_dir": tmp_path / "run", "weight_decay": 0.05}
    run = Pretraining(*parse_args(PRETRAINING, options(**given)))
    optimizer = run.trainer.create_optimizer()
    names = {id(parameter): name for name, parameter in run.model.named_parameters()}
    groups = {group["weight_decay"]: {names[id(p)] for p in group["params"]} for group in optimizer.param_groups}
    assert groups.keys() == {0.05, 0.0}
    spared = {name for name in names.values() if name.endswith("bias") or "norm" in name}
    assert groups[0.0] == spared
    assert "vit.embeddings.patch_embeddings.projection.weight" in groups[0.05]
    assert all(group["betas"] == (0.9, 0.95) for group in optimizer.param_groups)
