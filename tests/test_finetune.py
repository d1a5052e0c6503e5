"""From an encoder to a classifier: weights, rates, augmentation, leaks, resume, export, cross-validation."""

import functools
import json
import shutil
import socket
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from helpers import encode, write
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler
from transformers import (
    AutoModelForImageClassification,
    BeitForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    pipeline,
)

import finetune
import pretrain
from commandline import UsageError, parse_args
from corpora import CORPORA
from hub.export import write_export
from images.arguments import PrepareArguments
from images.augment import Augmentation, Mixing
from images.splits import load_prepared
from images.transform import ImageTransform, transform_of_processor
from judging import summary
from modeling_glcm_mae import GLCMMAEForPreTraining
from prepare_corpus import prepare
from training import finetuning
from training.arguments import FINETUNING, PRETRAINING
from training.feeding import ClassificationDataset
from training.frozen import fit_probe, nearest_neighbours
from training.models import StochasticDepth, build_model, load_classifier

RECIPES = Path(finetune.__file__).parent
CONFIGS = RECIPES / "configs"
TINY_PRETRAINING = """
preset: texture
image_size: 32
patch_size: 8
hidden_size: 32
num_hidden_layers: 1
num_attention_heads: 2
intermediate_size: 48
decoder_hidden_size: 32
decoder_num_hidden_layers: 1
decoder_num_attention_heads: 2
decoder_intermediate_size: 48
glcm_levels: 8
held_out: 0
num_train_epochs: 1
per_device_train_batch_size: 16
dataloader_num_workers: 0
use_cpu: true
"""
FAST = {
    "dataloader_num_workers": "0",
    "per_device_train_batch_size": "16",
    "num_train_epochs": "2",
    "learning_rate": "2e-3",
    "disable_tqdm": "true",
    "use_cpu": "true",
}


def texture(seed: int, label: int) -> np.ndarray:
    """Noise of one of two grains, 32 x 32 uint8: easy to tell apart."""
    random = np.random.default_rng(seed)
    side = (32, 8)[label]
    small = Image.fromarray(random.integers(0, 256, (side, side), dtype=np.uint8))
    return np.asarray(small.resize((32, 32), Image.Resampling.NEAREST))


@pytest.fixture(scope="module", autouse=True)
def few_resamples() -> Iterator[None]:
    """The intervals, which every run writes into its card, are tested elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("judging.summary.bootstrap", functools.partial(summary.bootstrap, num_resamples=10))
        yield


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """A prepared corpus of two classes, 96 images."""
    root = tmp_path_factory.mktemp("corpus")
    for index in range(96):
        label = index % 2
        write(root / "raw" / ("fine", "coarse")[label] / f"{index:02d}.png", encode(texture(index, label)))
    return prepare(PrepareArguments(data_dir=str(root / "raw"), output_dir=str(root / "data"), num_folds=3))


@pytest.fixture(scope="module")
def exported(tmp_path_factory, tiny_config) -> Path:
    """An export of pretrain.py, untrained."""
    model = GLCMMAEForPreTraining(tiny_config("texture"))
    transform = ImageTransform(32, resize="squash", image_mean=(0.4,) * 3, image_std=(0.3,) * 3)
    folder = tmp_path_factory.mktemp("export") / "export"
    write_export(folder, model, transform.processor(), {}, [], {"title": "t", "repo_id": "r"})
    return folder


def run(corpus: Path, output: Path, *options: str, **changed: str) -> Path:
    given = FAST | changed
    arguments = [text for name, value in given.items() for text in (f"--{name}", value)]
    finetune.main(["--corpus", str(corpus), "--output_dir", str(output), *arguments, *options])
    return output


def pretrained(corpus: Path, output: Path, **given: object) -> Path:
    """A run of pretrain.py of one step."""
    given = {**yaml.safe_load(TINY_PRETRAINING), "preset": "mse", "max_steps": 1, "disable_tqdm": True, **given}
    pretrain.main([f"--{name}={value}" for name, value in ({"corpus": corpus, "output_dir": output} | given).items()])
    return output


@pytest.fixture(scope="module")
def finished(corpus, exported, tmp_path_factory) -> Path:
    return run(corpus, tmp_path_factory.mktemp("run") / "out", "--model_name_or_path", str(exported))


# ------------------------------------------------------------------------------------------------------------ weights


# --------------------------------------------------------------------------------------------------------------- data


def test_seed_decides_the_order_of_the_images(corpus, exported, tmp_path):
    orders = []
    for seed in ("1", "1", "2"):
        given = FAST | {"corpus": str(corpus), "output_dir": str(tmp_path), "model_name_or_path": str(exported)}
        arguments = [f"--{name}={value}" for name, value in (given | {"seed": seed}).items()]
        orders.append(list(finetuning.FineTuning(*parse_args(FINETUNING, arguments)).trainer._get_train_sampler()))
    assert orders[0] == orders[1] != orders[2]


def test_augmentation_depends_on_seed_epoch_and_index_only(corpus, monkeypatch):
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("seeds the generators of the GPUs"))
    data = datasets.load_dataset(str(corpus))["train"].cast_column("image", datasets.Image(decode=False))
    transform = ImageTransform(32, random_resized_crop=True, image_mean=(0.5,) * 3, image_std=(0.5,) * 3)
    made = ClassificationDataset(data, transform, seed=1, augment=Augmentation(9, 1.0))
    first, state = made[5]["pixel_values"], torch.get_rng_state()
    made[7], made[5 + 96]
    assert torch.equal(torch.get_rng_state(), state)  # the training's own randomness is left alone
    assert torch.equal(made[5]["pixel_values"], first)
    assert not torch.equal(made[5 + 96]["pixel_values"], first)
    assert first.shape == (3, 32, 32) and torch.isfinite(first).all()


def mixed_by_class(**options: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of one value a class, mixed, so that their mean shows the share of each; and their targets."""
    labels = torch.arange(8) % 2
    images = labels.float()[:, None, None, None].expand(8, 3, 16, 16).clone()
    return Mixing(**options)(images, torch.nn.functional.one_hot(labels, 2).float(), torch.arange(8))


@pytest.mark.parametrize("options", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}])
def test_mixed_targets_tell_what_is_in_the_image(options, monkeypatch):
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("seeds the generators of the GPUs"))
    state, means, unblended = torch.get_rng_state(), [], set()
    for seed in range(10):
        mixed, soft = mixed_by_class(**options, seed=seed)
        torch.testing.assert_close(mixed.mean(dim=(1, 2, 3)), soft[:, 1])
        torch.testing.assert_close(soft.sum(dim=1), torch.ones(8))
        means.append(mixed.mean(dim=(1, 2, 3)))
        unblended.add(bool(((mixed == 0) | (mixed == 1)).all()))  # each pixel is of one image alone
    assert torch.equal(torch.get_rng_state(), state)  # the training's own randomness is left alone
    assert torch.equal(mixed_by_class(**options, seed=9)[0], mixed)
    assert len(torch.stack(means).unique()) > 10
    assert unblended == {name == "cutmix" for name in options}


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_the_proportion_of_a_mix_follows_its_beta_distribution(name):
    def proportions(alpha: float) -> torch.Tensor:
        """Of the smaller part of each batch; batches in which each image met its own class show none."""
        least = torch.stack([mixed_by_class(**{name: alpha}, seed=seed)[1].min(dim=1)[0].max() for seed in range(40)])
        return least[least > 0]

    assert proportions(1000).min() > 0.4 and proportions(0.1).median() < 0.2


@pytest.mark.parametrize(
    "transform",
    [
        ImageTransform(32, resize="shortest", resize_to=40),
        ImageTransform((32, 48), resize="squash"),
        ImageTransform((32, 48), resize="squash", resize_to=57),
        ImageTransform((224, 112), resize="squash", resize_to=251),
        ImageTransform((32, 48), resize="letterbox"),
        ImageTransform(32, resize="none"),
        ImageTransform(32, resize="squash", resample=3),
    ],
)
def test_a_transform_comes_back_from_its_processor(transform, tmp_path):
    from transformers import AutoImageProcessor

    transform.processor(4095).save_pretrained(tmp_path)
    back, white = transform_of_processor(AutoImageProcessor.from_pretrained(tmp_path), transform.image_size)
    assert (back, white) == (transform, 4095)


def checked(corpus: Path, output: Path, *options: str, **changed: str) -> finetuning.FineTuning:
    """A run as it is before its first step."""
    given = {name: value for name, value in (FAST | changed).items() if value}
    arguments = [text for name, value in given.items() for text in (f"--{name}", value)]
    return finetuning.FineTuning(
        *parse_args(FINETUNING, ["--corpus", str(corpus), "--output_dir", str(output), *arguments, *options])
    )


SQUASH = {"resize": "squash", "image_mean": (0.4,) * 3, "image_std": (0.3,) * 3, "resample": 3}
SHORTEST = SQUASH | {"resize": "shortest", "resize_to": 40}


@pytest.mark.parametrize(
    ("stored", "given", "changed"),
    [
        (SQUASH, "", {}),
        (SQUASH, "--image_mean .1 .2 .3", {"image_mean": (0.1, 0.2, 0.3)}),
        (SQUASH, "--image_std .1 .2 .3", {"image_std": (0.1, 0.2, 0.3)}),
        (SQUASH, "--resize letterbox", {"resize": "letterbox"}),
        (SQUASH, "--resize shortest --resize_to 36", {"resize": "shortest", "resize_to": 36}),
        (SHORTEST, "--resize_to 48", {"resize_to": 48}),
        (SQUASH, "--resize_to 40", {"resize_to": 40}),
        (SHORTEST, "--resize shortest --image_mean 0 0 0", {"image_mean": (0.0, 0.0, 0.0)}),
        (SHORTEST, "--resize squash", {"resize": "squash", "resize_to": None}),
        (SQUASH, "--resize none", {"resize": "none", "random_resized_crop": False}),
        (SQUASH, "--random_resized_crop false", {"random_resized_crop": False}),
    ],
)
def test_a_field_given_takes_the_place_of_itself_alone(corpus, exported, tmp_path, stored, given, changed):
    source = shutil.copytree(exported, tmp_path / "source")
    ImageTransform(32, **stored).processor().save_pretrained(source)
    made = checked(corpus, tmp_path / "out", "--model_name_or_path", str(source), *given.split())
    trained = {"random_resized_crop": True, "crop_scale": (0.5, 1.0), "horizontal_flip": True}
    assert made.transform == ImageTransform(32, **{**stored, **trained, **changed})
    assert ImageTransform(**made.resolved["derived"]["transform"]) == made.transform


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("--resize letterbox --resize_to 40", r"resize_to=40 needs resize 'shortest' or 'squash' \(is 'letterbox'\)"),
        ("--image_mean 0.5", r"image_mean must be three numbers, one per channel, got \[0.5\]"),
        ("--image_std 1 1 0", "image_std above 0"),
        ("--resize none --random_resized_crop true", "random_resized_crop .* cannot go with resize='none'"),
    ],
)
def test_a_field_that_cannot_be_is_an_error(corpus, exported, tmp_path, given, message):
    with pytest.raises(SystemExit, match=message):
        run(corpus, tmp_path / "out", "--model_name_or_path", str(exported), *given.split())
    assert not (tmp_path / "out").exists()


def test_what_no_processor_tells_must_be_given(corpus, exported, tmp_path):
    source = shutil.copytree(exported, tmp_path / "source")
    name = ("--model_name_or_path", str(source))
    ImageTransform(32, **SHORTEST).processor().save_pretrained(source)
    written = json.loads((source / "preprocessor_config.json").read_text())
    (source / "preprocessor_config.json").write_text(json.dumps(written | {"crop_size": {"height": 24, "width": 24}}))
    with pytest.raises(UsageError, match="crop .*24.*; the model takes 32 x 32; give resize"):
        checked(corpus, tmp_path / "out", *name)
    made = checked(corpus, tmp_path / "out", *name, "--resize", "squash").transform
    assert (made.resize, made.image_mean, made.image_std) == ("squash", (0.4,) * 3, (0.3,) * 3)
    (source / "preprocessor_config.json").unlink()
    with pytest.raises(UsageError, match="has no image processor: give resize, image_std as in its pretraining"):
        checked(corpus, tmp_path / "out", *name, "--image_mean", "0", "0", "0")
    given = ("--image_mean", "0", "0", "0", "--image_std", "1", "1", "1", "--resize", "letterbox")
    made = checked(corpus, tmp_path / "out", *name, *given).transform
    assert (made.resize, made.image_mean, made.image_std) == ("letterbox", (0.0,) * 3, (1.0,) * 3)


# ------------------------------------------------------------------------------------------- what a training is made of


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> Path:
    """A prepared corpus of dark and bright noise, three dark ones to a bright one in training.

    In the validation part of its fold 0 the labels are swapped: what is learned helps on the test part and harms there.
    """
    root = tmp_path_factory.mktemp("planted")
    random = np.random.default_rng(0)
    for part, count, share in (("train", 64, 4), ("validation", 16, 2), ("test", 16, 2)):
        for index in range(count):
            bright = index % share == 0
            values = random.integers(0, 128, (32, 32)) + 127 * (bright != (part == "validation"))
            name = f"{('dark', 'bright')[bright]}/{part}{index:02d}.png"
            write(root / "raw" / name, encode(values.astype(np.uint8)))
    given = {"data_dir": str(root / "raw"), "output_dir": str(root / "data"), "num_folds": 2}
    folder = prepare(PrepareArguments(**given, keep_file_names=True))
    splits = json.loads((folder / "splits.json").read_text())
    for part in ("train", "validation", "test"):
        splits["folds"][0][part] = sorted(name for name in splits["images"] if f"/{part}" in name)
    (folder / "splits.json").write_text(json.dumps(splits))
    return folder


STILL = ("--randaugment", "0", "--random_erasing", "0", "--random_resized_crop", "false", "--drop_path", "0")
STILL += ("--horizontal_flip", "false", "--logging_steps", "1", "--save_total_limit", "9", "--warmup_steps", "0")


def test_the_epoch_is_chosen_on_the_validation_part_and_exported(planted, exported, tmp_path):
    given = {"num_train_epochs": "3", "metric_for_best_model": "eval_loss", "learning_rate": "5e-3"}
    given |= {"pooling": "cls", "class_weights": "none"}
    out = run(planted, tmp_path / "out", "--model_name_or_path", str(exported), *STILL, **given)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    judged = {row["step"]: row for row in rows if "eval_loss" in row}
    results = json.loads((out / "all_results.json").read_text())
    # on the validation part the first epoch is the best, on the test part the last
    first, *_, last = judged
    assert len(judged) == 3 and judged[first]["eval_loss"] < 0.9 * judged[last]["eval_loss"]
    assert results["best_checkpoint_step"] == first
    assert judged[first]["eval_auroc"] == pytest.approx(results["validation_auroc"])
    assert results["validation_auroc"] < 0.5 < results["test_auroc"]
    exports, checkpoint, later = (
        AutoModelForImageClassification.from_pretrained(out / name).state_dict()
        for name in ("export", f"checkpoint-{first}", f"checkpoint-{last}")
    )
    assert all(torch.equal(exports[name], value) for name, value in checkpoint.items())
    assert not torch.equal(exports["classifier.weight"], later["classifier.weight"])


def test_the_loss_is_weighted_smoothed_and_mixed_as_asked_for(planted, exported, tmp_path):
    # One step over all training images at a rate that changes nothing: what is exported is what the loss was taken of.
    def first_loss(name: str, *options: str) -> float:
        given = {"per_device_train_batch_size": "64", "max_steps": "1", "learning_rate": "1e-30"}
        out = run(planted, tmp_path / name, "--model_name_or_path", str(exported), *STILL, *options, **given)
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        return next(row["loss"] for row in rows if "loss" in row)

    plainly = ("--label_smoothing_factor", "0", "--class_weights", "none")
    weighted = first_loss("weighted", "--class_weights", "balanced", "--label_smoothing_factor", "0.3")
    mixed = first_loss("mixed", "--mixup", "0.8", *plainly)
    cut = first_loss("cut", "--cutmix", "1", *plainly)

    train = load_prepared(str(planted), None, "0")[0]["train"].cast_column("image", datasets.Image())
    answer = pipeline("image-classification", str(tmp_path / "weighted" / "export"), device="cpu", top_k=None)
    scores = [{row["label"]: row["score"] for row in answer(image)} for image in train["image"]]
    logs = np.log([[score["bright"], score["dark"]] for score in scores])
    labels = np.eye(2)[train["label"]]
    assert labels.sum(axis=0).tolist() == [16, 48]
    targets = 0.7 * labels + 0.3 / 2
    frequency = np.array([1 / 4, 3 / 4])
    assert weighted == pytest.approx(-(targets * logs / (2 * frequency)).sum(axis=1).mean(), abs=1e-5)
    plain = -(labels * logs).sum(axis=1).mean()
    assert mixed != pytest.approx(plain, abs=1e-5) and cut != pytest.approx(plain, abs=1e-5) and mixed != cut
    assert abs(mixed - plain) < 0.1 and abs(cut - plain) < 0.1


def test_rates_depth_and_augmentation_are_those_that_were_asked_for(planted, tmp_path):
    sizes = ("--image_size", "32", "--patch_size", "8", "--hidden_size", "32", "--num_hidden_layers", "3")
    sizes += ("--num_attention_heads", "2", "--intermediate_size", "48", "--drop_path", "0.2", "--resize", "squash")
    plain = ("--random_erasing", "0", "--random_resized_crop", "false", "--horizontal_flip", "false")
    batches = {"per_device_train_batch_size": "8", "gradient_accumulation_steps": "2", "learning_rate": ""}
    made = checked(planted, tmp_path / "out", *sizes, *plain, "--layer_decay", "0.5", **batches)
    rate = 1e-3 * 8 * 2 / 256  # MAE's base rate, linear in the images an update
    assert made.resolved["training"]["learning_rate"] == pytest.approx(rate)
    rates = {group["lr"] for group in made.trainer.create_optimizer().param_groups}
    assert sorted(rates) == pytest.approx([rate * 0.5**steps for steps in (4, 3, 2, 1, 0)])
    head = {id(parameter) for parameter in made.model.classifier.parameters()}
    for group in made.trainer.optimizer.param_groups:
        assert (group["lr"] == max(rates)) or not head & {id(parameter) for parameter in group["params"]}
    depths = [module.probability for module in made.model.modules() if isinstance(module, StochasticDepth)]
    assert depths == pytest.approx([0, 0.1, 0.2])

    def items(*options: str) -> torch.Tensor:
        data = checked(planted, tmp_path / "out", *sizes, *plain, *options).trainer.train_dataset
        return torch.stack([data[index]["pixel_values"] for index in range(16)])

    judged = made.datasets["train"]
    judged = torch.stack([judged[index]["pixel_values"] for index in range(16)])
    torch.testing.assert_close(items("--randaugment", "0"), judged)
    changed = (items("--randaugment", "9") - judged).flatten(1).abs().amax(dim=1) > 0.1
    assert changed.sum() > 8  # two operations of moderate strength an image, some of which change nothing


def _head(width: int) -> ViTForImageClassification:
    sizes = {"image_size": 16, "patch_size": 8, "hidden_size": width, "num_hidden_layers": 1}
    return load_classifier(None, ["a", "b"], sizes=sizes | {"num_attention_heads": 1, "intermediate_size": 4})


def test_near_neighbours_weigh_more_than_far_ones():
    angles = {"train": [0.3, 1.6, 1.7], "validation": [0.0, 1.65], "test": [0.0]}
    features = {part: np.stack([np.cos(values), np.sin(values)], axis=1) for part, values in angles.items()}
    labels = {"train": np.array([0, 1, 1])}
    votes = nearest_neighbours(features, labels, neighbours=20, num_classes=2)
    weights = {part: (1 + np.cos(np.subtract.outer(angles[part], angles["train"]))) / 2 for part in votes}
    for part, weight in weights.items():
        np.testing.assert_allclose(votes[part][:, 0], weight[:, 0] / weight.sum(axis=1), atol=1e-6)
    assert votes["test"][0, 0] > 0.5  # one near neighbour against two far ones


def test_the_probe_is_chosen_on_the_validation_part():
    random = np.random.default_rng(0)
    labels = {part: random.integers(0, 2, 200) for part in ("train", "validation", "test")}
    # the labels of the validation part are swapped: the strongest regularisation errs least there, and most on the test
    features = {
        part: random.normal(size=(200, 4)) + (values if part != "validation" else 1 - values)[:, None]
        for part, values in labels.items()
    }
    model = _head(4)
    features = {part: values.astype(np.float32) for part, values in features.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of scikit-learn, on probabilities that do not sum to 1
        fit_probe(model, features, labels, balanced=False)
    with torch.no_grad():
        answer = model.classifier(torch.from_numpy(features["test"]).float()).softmax(dim=1).numpy()
    scaler = StandardScaler().fit(features["train"])
    weak, strong = (
        LogisticRegression(C=strength, max_iter=5000)
        .fit(scaler.transform(features["train"]), labels["train"])
        .predict_proba(scaler.transform(features["test"]))
        for strength in (1.0, 1e-3)
    )
    np.testing.assert_allclose(answer, strong, atol=1e-4)
    assert np.abs(weak - strong).max() > 0.1 and log_loss(labels["test"], weak) < log_loss(labels["test"], strong)


# ---------------------------------------------------------------------------------------------------------- whole runs


def test_a_run_learns_and_leaves_what_it_promises(finished, corpus):
    results = json.loads((finished / "all_results.json").read_text())
    table = pd.read_parquet(finished / "predictions.parquet")
    splits = json.loads((corpus / "splits.json").read_text())
    assert sorted(table["file_name"]) == sorted(splits["folds"][0]["test"])
    np.testing.assert_allclose(table[["probability_coarse", "probability_fine"]].sum(axis=1), 1)
    assert results["test_accuracy"] == (table["label"] == table["prediction"]).mean()
    assert yaml.safe_load((finished / "config.yaml").read_text())["derived"]["num_test_images"] == len(table)
    losses = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert any("eval_auroc" in row for row in losses)


def test_the_card_says_where_images_of_a_test_patient_may_have_been_trained_on(finished):
    limits = (finished / "export" / "README.md").read_text().partition("## Limits")[2].partition("<!--")[0]
    assert "**No patients are known**" in limits


def test_a_classifier_cannot_be_tuned_further_on_a_fold_that_tests_its_images(finished, corpus, tmp_path, exported):
    seen = shutil.copytree(exported, tmp_path / "seen")
    (seen / "training_images.txt").write_text("")  # an encoder that says it saw none
    first = run(corpus, tmp_path / "first", "--model_name_or_path", str(seen), "--max_steps", "1")
    for checkpoint in ("export", "checkpoint-1"):
        with pytest.raises(SystemExit, match="images of the test part of fold 1"):
            run(corpus, tmp_path / "second", "--model_name_or_path", str(first / checkpoint), "--fold", "1")
    assert not (finished / "export" / "training_images.txt").exists()  # its encoder did not tell


def test_two_processes_train_as_one_does(corpus, exported, tmp_path):
    # Nothing random but what is keyed by the image; the epsilon, so that Adam does not blow up gradients near zero.
    options = ("--model_name_or_path", str(exported), "--drop_path", "0", "--logging_steps", "1")
    options += ("--adam_epsilon", "1e-3", "--num_train_epochs", "1")
    one = run(corpus, tmp_path / "one", *options)
    two = tmp_path / "two"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}"]
    given = FAST | {"corpus": str(corpus), "output_dir": str(two), "per_device_train_batch_size": "8"}
    command += [
        str(RECIPES / "finetune.py"),
        *(text for name in given for text in (f"--{name}", given[name])),
        *options,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]

    config = yaml.safe_load((two / "config.yaml").read_text())["derived"]
    assert (config["effective_batch_size"], config["num_train_images"]) == (16, 56)
    figures = [[json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()] for out in (one, two)]
    assert sum("loss" in row for row in figures[0]) == 3 and len(figures[0]) == len(figures[1])
    for row, other in zip(*figures, strict=True):
        timed = {name for name in row if "runtime" in name or "per_second" in name}
        assert {n: other[n] for n in row.keys() - timed} == pytest.approx({n: row[n] for n in row.keys() - timed}, 1e-3)
    weights = [AutoModelForImageClassification.from_pretrained(out / "export").state_dict() for out in (one, two)]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, atol=1e-5, rtol=1e-4, msg=name)
    tables = [pd.read_parquet(out / "predictions.parquet") for out in (one, two)]
    pd.testing.assert_frame_equal(*tables, atol=1e-4)


def test_pipeline_gives_the_probabilities_of_the_evaluation(finished, corpus):
    config = json.loads((finished / "export" / "config.json").read_text())
    assert config["architectures"] == ["BeitForImageClassification"] and config["model_type"] == "beit"
    assert "auto_map" not in config and not any(name.startswith(("glcm", "decoder")) for name in config)
    answer = pipeline("image-classification", str(finished / "export"), device="cpu")
    images = datasets.load_dataset(str(corpus))["train"]
    table = pd.read_parquet(finished / "predictions.parquet").set_index("file_name")
    rows = [row for row in images if row["file_name"] in table.index]
    assert len(rows) == len(table)
    for row in rows:
        scores = {entry["label"]: entry["score"] for entry in answer(row["image"])}
        for name in ("fine", "coarse"):
            assert scores[name] == pytest.approx(table.loc[row["file_name"], f"probability_{name}"], abs=1e-5)


def test_a_linear_probe_is_the_model_that_is_exported(corpus, exported, tmp_path):
    given = ("--model_name_or_path", str(exported), "--pooling", "cls")
    out = run(corpus, tmp_path / "probe", *given, "--mode", "linear_probe")
    assert json.loads((out / "export" / "config.json").read_text())["architectures"] == ["ViTForImageClassification"]
    model = AutoModelForImageClassification.from_pretrained(out / "export").eval()
    splits = json.loads((corpus / "splits.json").read_text())["folds"][0]
    rows = {row["file_name"]: row for row in datasets.load_dataset(str(corpus))["train"]}
    answer = pipeline("image-feature-extraction", str(exported), device="cpu", use_fast=False)
    features = {
        part: np.array([np.array(answer(rows[name]["image"]))[0, 0] for name in splits[part]])
        for part in ("train", "test")
    }
    labels = {part: np.array([rows[name]["label"] for name in splits[part]]) for part in ("train", "test")}
    mean, std = features["train"].mean(0), features["train"].std(0)
    table = pd.read_parquet(out / "predictions.parquet").set_index("file_name").loc[splits["test"]]
    candidates = []
    for strength in (1e-3, 1e-2, 1e-1, 1.0):
        probe = LogisticRegression(C=strength, max_iter=5000).fit((features["train"] - mean) / std, labels["train"])
        candidates.append(probe.predict_proba((features["test"] - mean) / std)[:, 1])
    errors = [np.abs(candidate - table["probability_fine"]).max() for candidate in candidates]
    assert min(errors) < 1e-3, errors
    assert model.config.id2label == {0: "coarse", 1: "fine"}
    knn = run(corpus, tmp_path / "knn", *given, "--mode", "knn")
    assert not (knn / "export").exists()
    assert json.loads((knn / "all_results.json").read_text())["test_accuracy"] > 0.6


def test_a_classifier_of_the_mean_token_is_a_stock_model_that_finds_its_best_epoch_and_is_resumed(
    corpus, exported, tmp_path
):
    """Trainer would look for the layers of a checkpoint under other names than `save_pretrained` gives them."""
    options = ("--model_name_or_path", str(exported), "--pooling", "mean")
    out = run(corpus, tmp_path / "mean", *options, num_train_epochs="2")
    classify = pipeline("image-classification", str(out / "export"), device="cpu")
    assert type(classify.model) is BeitForImageClassification
    rows = {row["file_name"]: row["image"] for row in datasets.load_dataset(str(corpus))["train"]}
    table = pd.read_parquet(out / "predictions.parquet")
    for row in table.head(6).to_dict("records"):
        answer = {one["label"]: one["score"] for one in classify(rows[row["file_name"]])}
        assert answer == pytest.approx({name: row[f"probability_{name}"] for name in ("coarse", "fine")}, abs=1e-4)
    whole = load_file(out / "export" / "model.safetensors")
    last = max(int(folder.name.split("-")[1]) for folder in out.glob("checkpoint-*"))
    first = min(int(folder.name.split("-")[1]) for folder in out.glob("checkpoint-*"))
    assert first < last
    shutil.rmtree(out / f"checkpoint-{last}")
    run(corpus, out, *options, "--resume_from_checkpoint", "last", num_train_epochs="2")
    again = load_file(out / "export" / "model.safetensors")
    assert whole.keys() == again.keys()
    assert all(torch.allclose(whole[name], again[name], atol=1e-6) for name in whole)


def _former_name_is_known(corpus: Path, output: Path, *options: str) -> None:
    """A run that was begun when the macro mean was named as the figure of two classes is resumed."""
    file = output / "config.yaml"
    text = file.read_text()
    file.write_text(text.replace("eval_macro_auroc", "eval_auroc"))
    _begun(corpus, output, *options, num_train_epochs="1")
    file.write_text(text.replace("eval_macro_auroc", "eval_accuracy"))
    with pytest.raises(UsageError, match="metric_for_best_model must stay eval_accuracy"):
        _begun(corpus, output, *options, num_train_epochs="1")
    file.write_text(text)


def test_a_metric_that_the_validation_part_cannot_give_is_named_and_means_are_called_macro(tmp_path, capsys):
    for index in range(60):
        values = encode(texture(index, index % 2))
        write(tmp_path / "raw" / ("fine", "coarse", "rare")[index % 3] / f"{index:02d}.png", values)
    folder = prepare(PrepareArguments(data_dir=str(tmp_path / "raw"), output_dir=str(tmp_path / "data"), num_folds=2))
    splits = json.loads((folder / "splits.json").read_text())
    part = splits["folds"][0]
    names = {row["file_name"]: row["label"] for row in datasets.load_dataset(str(folder))["train"]}
    rare = [name for name in part["validation"] if names[name] == 2]  # coarse, fine, rare
    part["validation"] = [name for name in part["validation"] if name not in rare]
    part["train"] += rare
    (folder / "splits.json").write_text(json.dumps(splits))
    sizes = ("--image_size", "32", "--patch_size", "8", "--hidden_size", "32", "--num_attention_heads", "2")
    with pytest.raises(SystemExit, match="'eval_auroc_rare' is undefined: the validation part of fold 0 lacks a class"):
        run(folder, tmp_path / "out", *sizes, metric_for_best_model="eval_auroc_rare")
    sizes += ("--num_hidden_layers", "1", "--intermediate_size", "32", "--fold", "1")
    run(folder, tmp_path / "out", *sizes, num_train_epochs="1")
    chosen = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())["training"]["metric_for_best_model"]
    results = json.loads((tmp_path / "out" / "all_results.json").read_text())
    assert chosen == "eval_macro_auroc" and "test_macro_auroc" in results and "test_auroc" not in results
    _former_name_is_known(folder, tmp_path / "out", *sizes)
    assert "macro_auroc" in capsys.readouterr().out
    card = (tmp_path / "out" / "export" / "README.md").read_text()
    published = {found.metric_name: found.metric_value for found in ModelCard(card).data.eval_results}
    assert published["macro_sensitivity"] == pytest.approx(results["test_macro_sensitivity"], abs=1e-4)
    assert "sensitivity" not in published and "`macro_` are means over the classes" in card


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--fold", "9"], "fold must be 0 to 2"),
        (["--mode", "best"], "mode must be one of"),
        (["--metric_for_best_model", "eval_binary_auroc"], "metric_for_best_model must be one of loss, accuracy"),
        (["--positive_classes", "mars"], "allowed are coarse, fine"),
        (["--model_name_or_path", "nowhere/at-all-x"], "cannot be opened"),
        (["--corpus", "speckle"], "prepare_corpus.py"),
        (["--model_name_or_path", "no/such/folder"], "'no/such/folder' is neither a folder here nor an id on the Hub"),
    ],
)
def test_mistakes_are_one_clear_line(corpus, tmp_path, options, message, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SystemExit) as stopped:
        run(corpus, tmp_path / "out", *options)
    assert str(stopped.value).startswith("error: ") and message in str(stopped.value)
    assert not (tmp_path / "out").exists()


def test_of_two_classes_a_macro_mean_means_the_figure_and_a_dry_run_writes_nothing(corpus, exported, tmp_path, capsys):
    given = ["--model_name_or_path", str(exported), "--metric_for_best_model", "eval_macro_auroc"]
    run(corpus, tmp_path / "out", *given, "--dry_run", "true")
    assert "nothing wrong found" in capsys.readouterr().out and not (tmp_path / "out").exists()
    arguments = [f"--{name}={value}" for name, value in FAST.items()]
    arguments += [*given, "--corpus", str(corpus), "--output_dir", str(tmp_path / "out")]
    assert finetuning.FineTuning(*parse_args(FINETUNING, arguments)).args.metric_for_best_model == "eval_auroc"


@pytest.mark.parametrize(
    "config",
    [*sorted(CONFIGS.glob("[!a]*/pretrain*.yaml")), CONFIGS / "quickstart.yaml"],
    ids=lambda path: f"{path.parent.name}-{path.stem}",
)
def test_every_shipped_config_of_a_pretraining_is_understood(config):
    model_args, data_args, training_args = parse_args(PRETRAINING, ["--config", str(config), "--corpus", "speckle"])
    assert training_args.output_dir == f"runs/{config.relative_to(CONFIGS).with_suffix('')}"
    small = ["--hidden_size=32", "--num_hidden_layers=1", "--num_attention_heads=2", "--decoder_num_hidden_layers=1"]
    model_args, data_args, _ = parse_args(PRETRAINING, ["--config", str(config), "--corpus", "speckle", *small])
    assert (model_args.model_name_or_path is not None) == (config.stem == "pretrain_paper")
    model_args.model_name_or_path = None  # which is on the Hub
    model = build_model(model_args, data_args)
    assert (model.config.glcm_weight == 0) == (model_args.preset == "mse")


@pytest.mark.parametrize(
    "config", sorted(CONFIGS.glob("*/finetune*.yaml")), ids=lambda path: f"{path.parent.name}-{path.stem}"
)
def test_every_shipped_config_is_understood(config):
    _, data_args, args = parse_args(FINETUNING, ["--config", str(config), "--use_cpu", "true", "--corpus", "any"])
    assert args.output_dir == f"runs/{config.parent.name}/{config.stem}"
    known = getattr(CORPORA.get(config.parent.name), "CLASS_NAMES", [])  # the laptop's is for any corpus
    assert set(data_args.positive_classes or []) <= set(known)


def test_stock_checkpoints_of_others_can_be_tuned(tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    ViTForImageClassification(ViTConfig(image_size=32, patch_size=8, num_labels=7, **sizes)).save_pretrained(tmp_path)
    model = load_classifier(str(tmp_path), ["a", "b", "c"])
    assert model.classifier.out_features == 3 and model.config.id2label == {0: "a", 1: "b", 2: "c"}


def test_accumulated_gradients_are_those_of_the_larger_batch(corpus, exported, tmp_path):
    still = ["--randaugment", "0", "--random_erasing", "0", "--random_resized_crop", "false", "--drop_path", "0"]
    still += ["--horizontal_flip", "false", "--logging_steps", "1", "--max_steps", "1"]
    norms = []
    for batch, accumulation in (("16", "1"), ("4", "4")):
        changed = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
        folder = tmp_path / batch
        run(corpus, folder, "--model_name_or_path", str(exported), *still, **changed)
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        norms.append(next(row["grad_norm"] for row in rows if "grad_norm" in row))
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def _begun(corpus: Path, output: Path, *options: str, **changed: str) -> finetuning.FineTuning:
    """A resume, up to its first step."""
    given = FAST | changed | {"resume_from_checkpoint": "last", "corpus": str(corpus), "output_dir": str(output)}
    arguments = [text for name, value in given.items() for text in (f"--{name}", value)]
    return finetuning.FineTuning(*parse_args(FINETUNING, [*arguments, *options]))
