"""What a run of fine-tuning refuses, goes on with, and remembers."""

import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
import yaml
from helpers import encode, write
from safetensors.torch import load_file
from test_finetune import (  # noqa: F401 - fixtures
    STILL,
    _begun,
    corpus,
    exported,
    finished,
    planted,
    pretrained,
    run,
    texture,
)

from commandline import UsageError
from images.arguments import PrepareArguments
from prepare_corpus import prepare
from training.resume import best_checkpoint
from training.trainers import ClassifierTrainer


def test_resume_continues_the_same_training(corpus, exported, tmp_path):
    options = (
        "--model_name_or_path",
        str(exported),
        "--logging_steps",
        "1",
        "--mixup",
        "0.8",
        "--save_total_limit",
        "5",
    )
    whole = run(corpus, tmp_path / "whole", *options, num_train_epochs="3")
    half = tmp_path / "half"
    shutil.copytree(whole, half)
    steps = sorted(int(path.name.split("-")[1]) for path in half.glob("checkpoint-*"))
    shutil.rmtree(half / f"checkpoint-{steps[-1]}")
    (half / "all_results.json").unlink()
    run(corpus, half, *options, "--resume_from_checkpoint", "last", num_train_epochs="3")
    rows = [
        {
            row["step"]: row["loss"]
            for row in map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
            if "loss" in row
        }
        for out in (whole, half)
    ]
    assert rows[0] == rows[1]
    assert (whole / "curves.png").read_bytes() == (half / "curves.png").read_bytes()
    tables = [pd.read_parquet(out / "predictions.parquet") for out in (whole, half)]
    pd.testing.assert_frame_equal(*tables)
    with pytest.raises(SystemExit, match="layer_decay must stay 0.75"):
        run(corpus, half, *options, "--resume_from_checkpoint", "last", num_train_epochs="3", layer_decay="0.5")


def test_a_run_that_was_moved_exports_its_best_checkpoint_or_is_not_resumed(planted, exported, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ("--model_name_or_path", str(exported), *STILL, "--metric_for_best_model", "eval_loss")
    given = {"num_train_epochs": "3", "learning_rate": "5e-3"}
    before, after = run(planted, Path("before"), *options, **given), Path("after")
    first = json.loads((before / "all_results.json").read_text())["best_checkpoint_step"]
    table = pd.read_parquet(before / "predictions.parquet")
    before.rename(after)
    last = max(after.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    assert last.name != f"checkpoint-{first}"
    shutil.rmtree(after / "export")
    (after / "all_results.json").unlink()
    run(planted, after, *options, "--resume_from_checkpoint", "last", **given)
    weights = [load_file(after / name / "model.safetensors") for name in ("export", f"checkpoint-{first}", last.name)]
    key = next(name for name in weights[0] if name.endswith("query.weight"))
    assert weights[0][key].equal(weights[1][key]) and not weights[0][key].equal(weights[2][key])
    pd.testing.assert_frame_equal(pd.read_parquet(after / "predictions.parquet"), table)

    # Another run may lie where the moved one was.
    shutil.copytree(last, before / f"checkpoint-{first}")
    assert best_checkpoint(last) == after / f"checkpoint-{first}"
    shutil.rmtree(before)
    shutil.rmtree(after / f"checkpoint-{first}")
    for more in ((), ("--dry_run", "true")):
        with pytest.raises(SystemExit, match=f"neither after/checkpoint-{first} nor before/checkpoint-{first}: put it"):
            run(planted, after, *options, "--resume_from_checkpoint", "last", *more, **given)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"per_device_train_batch_size": "999"}, "training images are fewer than one batch of 999"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "min_lr"),
        ({"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": '{"speed": 1}'}, "cannot be made: .*speed"),
        ({"num_train_epochs": "0"}, "num_train_epochs must be greater than 0, got 0"),
        ({"optim": "sgd"}, "optim must be adamw_torch_fused or adamw_torch, without optim_args, got sgd"),
        ({"optim_args": "foreach=True"}, "optim must be .*, got adamw_torch_fused and optim_args foreach=True"),
        ({"early_stopping_patience": "-1"}, "early_stopping_patience must be at least 0, got -1"),
        (
            {"early_stopping_patience": "2", "eval_strategy": "no", "load_best_model_at_end": "false"},
            "early_stopping_patience needs evaluations",
        ),
        ({"model_name_or_path": "OUT/export"}, "holds .*export, which would be deleted"),
        ({"model_name_or_path": "OUT/checkpoint-3"}, "holds .*checkpoint-3, which would be deleted"),
    ],
)
def test_a_mistake_deletes_nothing(finished, corpus, exported, changed, message):
    def found() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in finished.rglob("*")}

    before = found()
    given = {"model_name_or_path": str(exported)} | changed
    given["model_name_or_path"] = given["model_name_or_path"].replace("OUT", str(finished))
    with pytest.raises(SystemExit, match=f"^error: .*{message}"):
        run(corpus, finished, "--overwrite_output_dir", "true", **given)
    assert {path: when for path, when in found().items() if path != finished} == {
        path: when for path, when in before.items() if path != finished
    }


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"optim": "adamw_torch"}, "optim must stay adamw_torch_fused .* got adamw_torch"),
        ({"bf16": "true"}, r"mixed_precision must stay no .* got bf16 \(--bf16 false, or the launcher\)"),
        ({"eval_strategy": "steps", "save_strategy": "steps"}, "eval_strategy must stay epoch .* got steps"),
        ({"lr_scheduler_kwargs": '{"num_cycles": 2}'}, "lr_scheduler_kwargs must stay None"),
        ({"randaugment": "3"}, "randaugment must stay 0 .* got 3"),
        ({"resize": "letterbox"}, "transform must stay .*squash.* got .*letterbox"),
        ({"seed": "5"}, "seed must stay 42 .* got 5"),
    ],
)
def test_a_resume_refuses_another_training(finished, corpus, exported, changed, named):
    with pytest.raises(UsageError, match=f"^resume_from_checkpoint: {named}"):
        _begun(corpus, finished, "--model_name_or_path", str(exported), **changed)


def test_a_resume_refuses_the_precision_of_another_launcher(finished, corpus, exported, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(UsageError, match="mixed_precision must stay no .* got bf16"):
        _begun(corpus, finished, "--model_name_or_path", str(exported))


def test_a_resume_takes_a_moved_corpus_and_refuses_other_labels_and_another_encoder(
    finished, corpus, exported, tmp_path
):
    moved = Path(shutil.copytree(corpus, tmp_path / "moved"))
    same = shutil.copytree(exported, tmp_path / "same")
    more = {"logging_steps": "1", "save_total_limit": "9", "per_device_train_batch_size": "8"}
    _begun(moved, finished, "--model_name_or_path", str(same), "--gradient_accumulation_steps", "2", **more)
    (same / "training_images.txt").write_text("")  # tells that it saw no image, where the first part did not know
    with pytest.raises(UsageError, match="pretraining_images_sha256 must stay None"):
        _begun(moved, finished, "--model_name_or_path", str(same))
    (file,) = (moved / "data").glob("*.parquet")
    data = datasets.Dataset.from_parquet(str(file), cache_dir=str(tmp_path / "cache"))
    name = json.loads((moved / "splits.json").read_text())["folds"][0]["train"][0]
    labels = [
        1 - label if file == name else label for file, label in zip(data["file_name"], data["label"], strict=True)
    ]
    data.remove_columns("label").add_column("label", labels, feature=data.features["label"]).to_parquet(file)
    with pytest.raises(UsageError, match="train_contents_sha256 must stay"):
        _begun(moved, finished, "--model_name_or_path", str(exported))


def test_a_run_of_an_earlier_version_is_resumed_where_its_settings_tell_enough(
    finished, corpus, exported, tmp_path, caplog
):
    old = Path(shutil.copytree(finished, tmp_path / "old"))
    config = yaml.safe_load((old / "config.yaml").read_text())
    del config["model_config"]
    for name in [name for name in config["derived"] if name.endswith("_contents_sha256")]:
        del config["derived"][name]
    for name in ("mixed_precision", "transform", "pretraining_images_sha256"):
        del config["derived"][name]
    (old / "config.yaml").write_text(yaml.safe_dump(config))
    _begun(corpus, old, "--model_name_or_path", str(exported))
    assert "does not tell or know pretraining_images_sha256, test_contents_sha256, train_contents_sha256" in caplog.text
    with pytest.raises(UsageError, match="mixed_precision must stay no .* got bf16"):
        _begun(corpus, old, "--model_name_or_path", str(exported), bf16="true")
    config["derived"]["train_images_sha256"] = "0"
    (old / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(UsageError, match="train_images_sha256 must stay 0"):
        _begun(corpus, old, "--model_name_or_path", str(exported))
    (old / "config.yaml").unlink()
    with pytest.raises(UsageError, match="config.yaml, which tells how the run began: No such file"):
        _begun(corpus, old, "--model_name_or_path", str(exported))


@pytest.mark.slow
def test_a_resume_goes_on_counting_towards_early_stopping(corpus, exported, tmp_path):
    # A rate at which nothing changes: the first epoch stays the best one, and the fourth is the third without a better.
    options = ("--model_name_or_path", str(exported), "--early_stopping_patience", "3", "--save_total_limit", "9")
    still = {"learning_rate": "1e-30", "num_train_epochs": "9"}
    whole = run(corpus, tmp_path / "whole", *options, **still)
    half = shutil.copytree(whole, tmp_path / "half")
    checkpoints = sorted(half.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    assert len(checkpoints) == 4
    for path in checkpoints[2:]:
        shutil.rmtree(path)
    run(corpus, half, *options, "--resume_from_checkpoint", "last", **still)
    assert {path.name for path in half.glob("checkpoint-*")} == {path.name for path in checkpoints}


def test_images_of_two_depths_are_refused_before_the_first_step(tmp_path):
    for index in range(48):
        values = texture(index, index % 2)
        deep = index == 7
        content = encode(values.astype(np.uint16) * 257 if deep else values)
        write(tmp_path / "raw" / ("fine", "coarse")[index % 2] / f"{index:02d}.png", content)
    folder = prepare(PrepareArguments(data_dir=str(tmp_path / "raw"), output_dir=str(tmp_path / "data"), num_folds=2))
    sizes = ("--image_size", "32", "--patch_size", "8", "--hidden_size", "32", "--num_attention_heads", "2")
    for fold in "01":
        with pytest.raises(SystemExit, match="8-bit and 16-bit images are mixed"):
            run(folder, tmp_path / "out", *sizes, fold=fold)


@pytest.mark.parametrize("part", ["test", "validation"])
def test_an_encoder_that_saw_images_it_is_judged_on_is_refused(corpus, exported, tmp_path, part):
    seen = shutil.copytree(exported, tmp_path / "seen")
    splits = json.loads((corpus / "splits.json").read_text())
    name = splits["folds"][0][part][0]
    (seen / "training_images.txt").write_text(splits["images"][name] + "\n")
    with pytest.raises(SystemExit, match=f"has seen 1 images of the {part} part of fold 0"):
        run(corpus, tmp_path / "out", "--model_name_or_path", str(seen))
    assert not (tmp_path / "out").exists()


def test_an_encoder_remembers_the_images_of_its_ancestors(corpus, tmp_path):
    splits = json.loads((corpus / "splits.json").read_text())
    every = set(splits["images"].values())
    fold, test = ({splits["images"][name] for name in splits["folds"][0][part]} for part in ("train", "test"))

    def listed(folder: Path) -> set[str]:
        return set((folder / "training_images.txt").read_text().split())

    first = pretrained(corpus, tmp_path / "first")
    ancestor = {"model_name_or_path": first / "export", "model_subfolder": "pretraining"}
    second = pretrained(corpus, tmp_path / "second", fold=0, **ancestor)
    third = pretrained(corpus, tmp_path / "third", fold=0, model_name_or_path=second / "checkpoint-1")
    assert fold < every and all(listed(run / "export") == listed(run) == every for run in (first, second, third))
    own = pretrained(corpus, tmp_path / "own", fold=0)
    assert listed(own) == listed(own / "export") == fold
    with pytest.raises(SystemExit, match="pretraining_images_sha256 must stay"):  # an ancestor with a shorter list
        ancestor["model_name_or_path"] = own / "export"
        pretrained(corpus, second, fold=0, resume_from_checkpoint="last", **ancestor)

    shutil.rmtree(third / "export")  # as a run that was killed before its end
    for name, subfolder in (
        *((second / "export", ""), (second / "export", "pretraining"), (second / "export" / "pretraining", "")),
        *((second, "export"), (third / "checkpoint-1", ""), (third, "checkpoint-1"), (tmp_path, "second/export")),
    ):
        with pytest.raises(SystemExit, match="has seen 32 images of the test part of fold 0"):
            run(corpus, tmp_path / "out", "--model_name_or_path", str(name), "--model_subfolder", subfolder)

    tuned = run(corpus, tmp_path / "tuned", "--model_name_or_path", str(own / "export"), "--max_steps", "1")
    assert listed(tuned) == listed(tuned / "export") == every - test


@pytest.mark.slow
def test_an_encoder_with_an_unknown_ancestor_says_so_and_lists_no_images(corpus, tmp_path, caplog):
    def warnings() -> list[str]:
        found = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        caplog.clear()
        return [text for text in found if "so the export will not tell" in text or "does not tell which" in text]

    def listed(folder: Path) -> bool:
        return any((place / "training_images.txt").exists() for place in (folder, folder / "export"))

    streamed = pretrained(corpus, tmp_path / "streamed", streaming=True)
    assert any(text.startswith("the images of a stream are not known") for text in warnings()) and not listed(streamed)
    for name in (streamed / "export" / "pretraining", streamed / "checkpoint-1"):
        child = pretrained(corpus, tmp_path / name.name, fold=0, model_name_or_path=name)
        assert any(text.startswith(f"{name} does not tell") for text in warnings()) and not listed(child)
    tuned = run(corpus, tmp_path / "tuned", "--model_name_or_path", str(child / "export"), "--max_steps", "1")
    assert any(text.startswith(f"{child / 'export'} does not tell") for text in warnings()) and not listed(tuned)


def test_of_equally_good_epochs_the_one_of_the_lowest_loss_is_exported(corpus, exported, tmp_path, monkeypatch):
    losses = iter((0.5, 0.3, 0.4))
    evaluate = ClassifierTrainer.evaluate

    def told(self, *args, **kwargs):
        figures = evaluate(self, *args, **kwargs) | {"eval_accuracy": 1.0, "eval_loss": next(losses)}
        self.state.log_history[-1] |= figures
        return figures

    monkeypatch.setattr(ClassifierTrainer, "evaluate", told)
    given = {"num_train_epochs": "3", "metric_for_best_model": "eval_accuracy"}
    out = run(corpus, tmp_path / "out", "--model_name_or_path", str(exported), *STILL, **given)
    steps = sorted(int(folder.name.partition("-")[2]) for folder in out.glob("checkpoint-*"))
    assert len(steps) == 3 and json.loads((out / "all_results.json").read_text())["best_checkpoint_step"] == steps[1]


def test_equally_good_epochs_without_checkpoints_do_no_harm(corpus, exported, tmp_path):
    given = {"num_train_epochs": "2", "save_strategy": "no", "load_best_model_at_end": "false"}
    run(corpus, tmp_path / "out", "--model_name_or_path", str(exported), *STILL, learning_rate="1e-12", **given)
