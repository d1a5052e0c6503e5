"""Cross-validation: every fold trained, judged and summed up; two such runs compared."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
import yaml
from helpers import write
from huggingface_hub import ModelCard
from test_finetune import FAST, RECIPES, TINY_PRETRAINING, corpus, exported, finished, run  # noqa: F401 - fixtures

import cross_validate
import finetune
from images.arguments import PrepareArguments
from images.splits import load_prepared
from judging import summary, tables
from judging.summary import compare, predictions_table
from prepare_corpus import prepare
from training import cross_validation, finetuning


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_cross_validation_resumes_to_the_same_table(corpus, tmp_path):
    pretraining = write(tmp_path / "pretrain.yaml", TINY_PRETRAINING.encode())
    tuning = write(tmp_path / "finetune.yaml", yaml.safe_dump(FAST).encode())

    def validate(output: Path, **changed) -> Path:
        given = {
            **{"corpus": corpus, "output_dir": output, "pretrain_config": pretraining, "finetune_config": tuning},
            **changed,
        }
        cross_validate.main([text for name, value in given.items() for text in (f"--{name}", str(value))])
        return output

    whole = validate(tmp_path / "whole")
    table = pd.read_parquet(whole / "predictions.parquet")
    assert len(table) == 96 and not table["file_name"].duplicated().any()
    seen = (whole / "fold_1" / "pretrain" / "export" / "training_images.txt").read_text().split()
    splits = json.loads((corpus / "splits.json").read_text())
    assert sorted(seen) == sorted({splits["images"][name] for name in splits["folds"][1]["train"]})
    assert (whole / "curves.png").stat().st_size > 0

    # as a run that was killed in the fine-tuning of its third fold leaves it
    cut = tmp_path / "cut"
    shutil.copytree(whole, cut)
    for name in ("predictions.parquet", "summary.md", "summary.json", "curves.png"):
        (cut / name).unlink()
    for name in ("all_results.json", "predictions.parquet", "validation_predictions.parquet"):
        (cut / "fold_2" / "finetune" / name).unlink()
    shutil.rmtree(cut / "fold_2" / "finetune" / "export")
    validate(cut)
    assert (cut / "summary.md").read_text() == (whole / "summary.md").read_text()

    with pytest.raises(SystemExit, match="another positive_classes"):
        validate(cut, positive_classes="fine")
    cross_validate.main(["compare", str(whole), str(cut), "--output_dir", str(tmp_path / "compared")])
    compared = json.loads((tmp_path / "compared" / "comparison.json").read_text())
    assert compared["mcnemar"]["p_value"] == 1
    assert compared["differences"]["accuracy"]["value"] == 0


@pytest.mark.slow
def test_the_command_line_of_cross_validate(corpus, tmp_path):
    pretraining = write(tmp_path / "pretrain.yaml", TINY_PRETRAINING.encode())
    tuning = write(tmp_path / "finetune.yaml", yaml.safe_dump(FAST).encode())
    command = [sys.executable, str(RECIPES / "cross_validate.py"), "--corpus", str(corpus), "--folds", "0", "1"]
    command += ["--output_dir", str(tmp_path / "out"), "--jobs", "2", "--positive_classes", "fine"]
    command += ["--pretrain_config", str(pretraining), "--pretrain_options", "preset=mse", "max_steps=1"]
    command += ["--finetune_config", str(tuning), "--finetune_options", "num_train_epochs=1"]
    # Python imports this at each start; three bootstraps of a thousand draws would be most of the test.
    few = "from judging import statistics; statistics.bootstrap.__kwdefaults__['num_resamples'] = 10"
    write(tmp_path / "start" / "sitecustomize.py", few.encode())
    path = os.pathsep.join([str(tmp_path / "start"), str(RECIPES), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    table = pd.read_parquet(tmp_path / "out" / "predictions.parquet")
    splits = json.loads((corpus / "splits.json").read_text())
    assert (tmp_path / "out" / "summary.md").read_text() in done.stdout and (tmp_path / "out" / "curves.png").is_file()
    for fold in (0, 1):
        assert sorted(table["file_name"][table["fold"] == str(fold)]) == sorted(splits["folds"][fold]["test"])
        steps = tmp_path / "out" / f"fold_{fold}"
        seen = (steps / "pretrain" / "export" / "training_images.txt").read_text().split()
        assert set(seen) == {splits["images"][name] for name in splits["folds"][fold]["train"]}
        tuned = yaml.safe_load((steps / "finetune" / "config.yaml").read_text())
        assert tuned["model"]["model_name_or_path"] == str(steps / "pretrain" / "export")
        assert (tuned["training"]["num_train_epochs"], tuned["data"]["positive_classes"]) == (1, ["fine"])


@pytest.fixture
def pretended(monkeypatch) -> list[dict]:
    """Fine-tunings that are over at once, with answers by chance; what they were given."""
    started = []

    def answer(command, stdout=None, stderr=None, env=None, **_):
        if "--dry_run" in command:
            return subprocess.CompletedProcess(command, 0)
        given = {name: value for name, value in zip(command, command[1:], strict=False) if name.startswith("--")}
        started.append(given | {"gpu": env.get("CUDA_VISIBLE_DEVICES"), "command": command})
        parts, names = load_prepared(given["--corpus"], given.get("--splits_file"), given["--fold"])
        random = np.random.default_rng(int(given["--fold"]))
        probabilities = random.dirichlet([1] * len(names), len(parts["test"]))
        out = Path(given["--output_dir"])
        predictions_table(probabilities, parts["test"], names, given["--fold"]).to_parquet(out / "predictions.parquet")
        (out / "all_results.json").write_text("{}")
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(cross_validation.subprocess, "run", answer)
    return started


def test_cross_validation_writes_to_the_home_folder_alone_where_that_is_asked_for(
    corpus, tmp_path, pretended, monkeypatch
):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    cross_validate.main(["--corpus", str(corpus), "--output_dir", "~/cv", "--folds", "0"])
    assert (tmp_path / "home" / "cv" / "summary.json").is_file() and not list((tmp_path / "here").iterdir())
    assert [given["--output_dir"] for given in pretended] == [str(tmp_path / "home" / "cv" / "fold_0" / "finetune")]


def test_cross_validation_reads_from_the_home_folder(corpus, tmp_path, pretended, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(corpus, tmp_path / "data")
    (tmp_path / "data" / "splits.json").rename(tmp_path / "splits.json")
    tuning = write(tmp_path / "finetune.yaml", b"positive_classes: [fine]")
    given = ["--corpus=~/data", "--splits_file=~/splits.json", "--finetune_config=~/finetune.yaml"]
    cross_validate.main(
        [*given, "--output_dir", str(tmp_path / "out"), "--folds", "0", "--checkpoint=~/encoder_{fold}"]
    )
    (asked,) = pretended
    names = {"--corpus": "data", "--splits_file": "splits.json", "--model_name_or_path": "encoder_0"}
    assert asked | {name: str(tmp_path / file) for name, file in names.items()} == asked
    assert asked["--config"] == str(tuning) and (tmp_path / "out" / "summary.json").is_file()


@pytest.mark.slow
def test_the_collapsed_classes_are_those_of_the_fine_tuning(corpus, tmp_path, pretended):
    tuning = write(tmp_path / "finetune.yaml", b"positive_classes: [fine]")
    given = ["--corpus", str(corpus), "--finetune_config", str(tuning)]
    for name in "ab":
        cross_validate.main([*given, "--output_dir", str(tmp_path / name)])
    assert "the positive class, fine." in (tmp_path / "a" / "summary.md").read_text()
    cross_validate.main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--output_dir", str(tmp_path)])
    assert "the positive class, fine." in (tmp_path / "comparison.md").read_text()
    cross_validate.main([*given, "--output_dir", str(tmp_path / "c"), "--positive_classes", "coarse"])
    with pytest.raises(SystemExit, match=r"\['fine'\] and \['coarse'\]: give positive_classes"):
        cross_validate.main(["compare", str(tmp_path / "a"), str(tmp_path / "c"), "--output_dir", str(tmp_path)])


def test_the_summary_says_what_the_collapsed_figures_are_and_the_log_what_runs(corpus, tmp_path, pretended, caplog):
    caplog.set_level("INFO")
    given = ["--corpus", str(corpus), "--output_dir", str(tmp_path), "--positive_classes", "fine"]
    cross_validate.main(given)
    text = (tmp_path / "summary.md").read_text()
    assert "It is answered where its probability is above 0.5, the threshold of" in text
    assert "the positive class, fine." in text and "for every test image" not in text
    assert text.count("No patients are known") == 1
    log = tmp_path / "fold_1" / "finetune" / "log.txt"
    assert f"fold 1: fine-tuning, see {log}" in caplog.messages and log.is_file()


def test_a_classifier_with_one_answer_for_all_is_named(corpus, exported, tmp_path, caplog):
    def one_answer(model, dataset, *reading):
        return np.tile(np.log([0.6, 0.4]), (len(dataset), 1))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetuning, "predict", one_answer)
        folder = run(corpus, tmp_path / "run", "--model_name_or_path", str(exported), num_train_epochs="1")
    name = load_prepared(str(corpus), None, "0")[1][0]
    assert [r.levelname for r in caplog.records if f"answers {name} for every test image" in r.message] == ["WARNING"]
    card = (folder / "export" / "README.md").read_text()
    assert f"answers {name} for every test image" in card
    assert (
        f"# Classifier of data, by GLCM-MAE\n\n<!-- claim -->\n**{tables.NOTHING_SHOWN}**: it answers {name} for"
        in card
    )
    assert "of the positive class, fine (the second of the two; `positive_classes` names another)" in card
    rows = [line for line in card.splitlines() if line.startswith(("| accuracy |", "| auroc |"))]
    table = pd.read_parquet(folder / "predictions.parquet")
    assert len(rows) == 2 and set(rows) <= set(tables.summary_markdown(summary.summarise(table)).splitlines())
    published = {found.metric_name: found.metric_value for found in ModelCard(card).data.eval_results}
    assert published | {"sensitivity": 0, "specificity": 1, "balanced_accuracy": 0.5, "auroc": 0.5} == published
    both = pd.concat([table, table.assign(fold="1", prediction=np.arange(len(table)) % 2)])
    assert summary.collapsed_folds(both) == {"0": name}
    text = tables.summary_markdown(summary.summarise(both))
    assert f"Fold 0 answers {name} for every test image" in text and "Fold 1 answers" not in text


TAKEN = "the positive class is fine, the second of coarse and fine; --positive_classes names another"


@pytest.mark.parametrize("chosen", [[], ["--positive_classes", "fine"]])
def test_which_class_is_taken_as_positive_is_said_once_unless_it_was_chosen(
    corpus, tmp_path, pretended, caplog, chosen
):
    caplog.set_level("INFO")
    given = ["--corpus", str(corpus), *chosen]
    cross_validate.main([*given, "--output_dir", str(tmp_path / "cv"), "--folds", "0", "1"])
    assert caplog.messages.count(TAKEN) == (not chosen)
    said = "of the positive class, fine" + ("." if chosen else " (the second of the two; `positive_classes` names")
    assert said in (tmp_path / "cv" / "summary.md").read_text()
    caplog.clear()
    tiny = [f"--{name}={value}" for name, value in FAST.items()]
    tiny += [
        "--image_size=32",
        "--patch_size=8",
        "--hidden_size=16",
        "--num_hidden_layers=1",
        "--num_attention_heads=2",
    ]
    finetune.main([*given, *tiny, "--output_dir", str(tmp_path / "one"), "--fold", "0", "--dry_run", "true"])
    assert caplog.messages.count(TAKEN) == (not chosen)


def test_folds_are_checked_before_the_first_runs(corpus, tmp_path, pretended):
    with pytest.raises(SystemExit, match="folds must be different numbers from 0 to 2, or official alone, got 0 7"):
        cross_validate.main(["--corpus", str(corpus), "--output_dir", str(tmp_path), "--folds", "0", "7"])
    assert not pretended


def test_folds_of_a_corpus_that_was_prepared_anew_are_not_mixed(corpus, tmp_path, pretended):
    given = ["--corpus", str(tmp_path / "data"), "--output_dir", str(tmp_path / "out")]
    shutil.copytree(corpus, tmp_path / "data")
    cross_validate.main([*given, "--folds", "0"])
    raw = corpus.parent / "raw"
    prepare(
        PrepareArguments(
            data_dir=str(raw), output_dir=str(tmp_path / "data"), num_folds=3, seed=1, overwrite_output_dir=True
        )
    )
    with pytest.raises(SystemExit, match="another .*splits_sha256"):
        cross_validate.main(given)


@pytest.mark.parametrize(
    ("before", "added"), [("no", "--bf16=false"), ("bf16", "--bf16=true"), ("fp16", "--fp16=true"), (None, None)]
)
def test_folds_are_trained_in_the_precision_of_those_that_began_before(before, added, corpus, tmp_path, pretended):
    folder = tmp_path / "fold_2" / "finetune"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"derived": {"mixed_precision": before} if before else {}}))
    given = ["--corpus", str(corpus), "--output_dir", str(tmp_path), "--folds", "0"]
    cross_validate.main(given)
    said = [text for text in pretended[0]["command"] if text.startswith(("--bf16", "--fp16"))]
    assert said == ([added] if added else [])


def test_the_precision_that_an_option_says_is_that_of_the_folds(corpus, tmp_path, pretended):
    folder = tmp_path / "fold_2" / "finetune"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("derived: {mixed_precision: bf16}")
    given = ["--corpus", str(corpus), "--output_dir", str(tmp_path), "--folds", "0"]
    cross_validate.main([*given, "--finetune_options", "bf16=false"])
    assert [text for text in pretended[0]["command"] if "bf16" in text] == ["--bf16=false"]


def test_folds_that_were_not_trained_alike_are_told(corpus, tmp_path, pretended, caplog):
    run, encoders = tmp_path / "run", str(tmp_path / "encoders" / "{fold}")
    given = ["--corpus", str(corpus), "--output_dir", str(run), "--checkpoint", encoders]
    cross_validate.main(given)

    def tell(fold: int, **different) -> None:
        """Write the config.yaml of both trainings, with options by section."""
        tuned = {
            "model": {"pooling": "mean", "head_init": "linear_probe", "calibrate": True},
            "data": {"fold": str(fold), "labelled_groups": None},
            "model_config": {"image_size": 96},
            "training": {"seed": 0, "use_cpu": True, "metric_for_best_model": "eval_macro_auroc", "ema": None},
            "derived": {"mixed_precision": "no", "effective_batch_size": 16, "num_train_images": 500 + fold},
        }
        pretrained = {
            "model": {"preset": "texture"},
            "model_config": {"glcm_weight": 2560.0},
            "training": {"num_train_epochs": 60, "picture_every_epochs": fold},
            "derived": {"max_steps": 900 + fold},
        }
        for section, options in different.items():
            (pretrained if section.startswith("pretrained_") else tuned)[section.removeprefix("pretrained_")] |= options
        (run / f"fold_{fold}" / "finetune" / "config.yaml").write_text(yaml.safe_dump(tuned))
        write(Path(encoders.replace("{fold}", str(fold))) / "config.yaml", yaml.safe_dump(pretrained).encode())

    def said() -> list[str]:
        caplog.clear()
        cross_validate.main(given)
        lines = [line for line in caplog.messages if line.startswith(("finetune: ", "pretrain: "))]
        text = (run / "summary.md").read_text()
        assert ("**The folds were not trained alike" in text) == bool(lines)
        assert [line[2:] for line in text.splitlines() if line.startswith("- ")] == lines
        return lines

    for fold in range(3):
        tell(fold)
    tell(0, training={"metric_for_best_model": "eval_auroc", "use_cpu": False}, model_config={"image_size": "96"})
    tell(1, model={"prior_correction": False})
    assert said() == []  # the same figure by its former name, another device, a number as a text, what went unsaid
    tell(0, model={"pooling": "cls", "calibrate": False}, pretrained_model_config={"glcm_weight": 10240.0})
    tell(2, derived={"mixed_precision": "bf16"})
    file = run / "fold_1" / "finetune" / "config.yaml"
    file.write_text(file.read_text().replace("  head_init: linear_probe\n", "").replace("  ema: null\n", ""))
    assert said() == [
        "pretrain: glcm_weight: 10240.0 in fold 0; 2560.0 in folds 1, 2",
        "finetune: calibrate: False in fold 0; True in folds 1, 2",
        "finetune: head_init: linear_probe in folds 0, 2; not told in fold 1",
        "finetune: pooling: cls in fold 0; mean in folds 1, 2",
        "finetune: mixed_precision: no in folds 0, 1; bf16 in fold 2",
    ]
    cross_validate.main([*given[:2], "--output_dir", str(tmp_path / "other")])
    cross_validate.main(["compare", str(run), str(tmp_path / "other"), "--output_dir", str(tmp_path / "compared")])
    text = (tmp_path / "compared" / "comparison.md").read_text()
    assert text.count("not trained alike") == 1 and f"**{run}: the folds were not trained alike" in text


def test_folds_of_encoders_that_were_replaced_are_not_mixed(corpus, exported, tmp_path, pretended):
    def validate(output: str, encoder: str, *folds: str) -> None:
        given = [
            "--corpus",
            str(corpus),
            "--output_dir",
            str(tmp_path / output),
            "--checkpoint",
            str(tmp_path / encoder),
        ]
        cross_validate.main([*given, "--folds", *folds])

    def replace(encoder: str) -> None:
        with (tmp_path / encoder / "model.safetensors").open("ab") as file:
            file.write(b" ")

    for name in ("one", "of_0"):
        shutil.copytree(exported, tmp_path / name)
    validate("same", "one", "0")
    validate("same", "one", "1")
    replace("one")
    with pytest.raises(SystemExit, match=r"run with another checkpoint \(the weights in .*/one were replaced\): take"):
        validate("same", "one", "2")
    with pytest.raises(SystemExit, match="were replaced"):
        validate("same", "one", "0", "1")

    # One for each fold: that of a fold that has not run may come later, or change.
    validate("own", "of_{fold}", "0")
    shutil.copytree(exported, tmp_path / "of_1")
    settings = yaml.safe_load((tmp_path / "own" / "config.yaml").read_text())
    settings["checkpoint_sha256"][str(tmp_path / "of_1")] = {"model.safetensors": "of a fold that was stopped"}
    (tmp_path / "own" / "config.yaml").write_text(yaml.safe_dump(settings))
    validate("own", "of_{fold}", "0", "1")
    file = tmp_path / "of_1" / "model.safetensors"
    stored = yaml.safe_load((tmp_path / "own" / "config.yaml").read_text())["checkpoint_sha256"]
    assert stored[str(file.parent)] == {file.name: hashlib.sha256(file.read_bytes()).hexdigest()}
    replace("of_0")
    validate("own", "of_{fold}", "1")
    with pytest.raises(SystemExit, match=r"the weights in .*/of_0 were replaced\)"):
        validate("own", "of_{fold}", "0", "1")

    # What an earlier version ran does not tell its weights.
    del settings["checkpoint_sha256"]
    (tmp_path / "own" / "config.yaml").write_text(yaml.safe_dump(settings))
    validate("own", "of_{fold}", "0", "1")
    replace("of_0")
    with pytest.raises(SystemExit, match=r"the weights in .*/of_0 were replaced\)"):
        validate("own", "of_{fold}", "0", "1")


def test_a_mistake_in_the_fine_tuning_is_known_before_the_pretraining(corpus, tmp_path):
    pretraining = write(tmp_path / "pretrain.yaml", TINY_PRETRAINING.encode())
    given = ["--corpus", str(corpus), "--output_dir", str(tmp_path / "out"), "--pretrain_config", str(pretraining)]
    unknown = "pretrain_options: pretrain.py has no option mask_ration; did you mean mask_ratio?"
    with pytest.raises(SystemExit, match=f"^error: {re.escape(unknown)}$"):
        cross_validate.main([*given, "--pretrain_options", "num-train-epochs=1", "mask_ration=0.5"])
    with pytest.raises(SystemExit, match="finetune_options: finetune.py has no option mask_ratio"):
        cross_validate.main([*given, "--finetune_options", "mask_ratio=0.5"])
    wrong = [*given, "--finetune_options", "metric_for_best_model=eval_best", "use_cpu=true"]
    with pytest.raises(SystemExit, match="would fail after the pretraining: metric_for_best_model must be one of"):
        cross_validate.main(wrong)
    assert not (tmp_path / "out").exists()


def test_the_check_before_a_pretraining_sees_one_gpu_and_the_sizes_to_come(corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    asked = []

    def refuse(command, env, **_):
        asked.append((command, env["CUDA_VISIBLE_DEVICES"]))
        return subprocess.CompletedProcess(command, 1, stderr="error: no\nINFO later\n")

    monkeypatch.setattr(cross_validation.subprocess, "run", refuse)
    pretraining = write(tmp_path / "pretrain.yaml", TINY_PRETRAINING.encode())
    given = ["--corpus", str(corpus), "--output_dir", str(tmp_path / "out"), "--pretrain_config", str(pretraining)]
    with pytest.raises(SystemExit, match="would fail after the pretraining: no$"):
        cross_validate.main([*given, "--pretrain_options", "image-size=48"])
    ((command, gpu),) = asked
    assert gpu == "4" and command[command.index("--image_size") + 1] == "48"
    assert command[command.index("--patch_size") + 1] == "8"


def test_options_with_dashes_are_those_with_underscores(corpus, tmp_path, pretended):
    given = ["--corpus", str(corpus), "--output_dir", str(tmp_path), "--folds", "0", "--finetune_options"]
    cross_validate.main([*given, "image-mean=0.1", "image_mean=-0.2", "num_train_epochs=1", "num-train-epochs=2"])
    words = " ".join(pretended[0]["command"])
    assert "--image_mean 0.1 -0.2 --num_train_epochs=2" in words and "epochs=1" not in words


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("--finetune_options positive-classes=coarse", "finetune_options: positive_classes .*, by --positive_classes:"),
        ("--finetune_options seed=1 fold=1", "finetune_options: fold is set by .*, by --folds: leave it out"),
        ("--pretrain_config=PRETRAINING --pretrain_options corpus=b", "pretrain_options: corpus is .*, by --corpus:"),
        ("--pretrain_config=PRETRAINING --pretrain_options splits_file=b", "splits_file is .*, by --splits_file:"),
        ("--pretrain_config=PRETRAINING --finetune_options model_name_or_path=b", "model_.*, by --pretrain_config:"),
        ("--checkpoint=a --finetune_options model_name_or_path=b", "model_name_or_path .*, by --checkpoint:"),
        ("--finetune_options hub_model_id=a/b", "hub_model_id is .*, by --hub_model_id:"),
        ("--finetune_options dry_run=true", "dry_run is set by cross_validate.py for each fold: leave it out"),
    ],
)
def test_what_is_set_for_each_fold_is_not_taken_as_an_option(corpus, tmp_path, pretended, given, message):
    pretraining = write(tmp_path / "pretrain.yaml", TINY_PRETRAINING.encode())
    words = given.replace("PRETRAINING", str(pretraining)).split()
    with pytest.raises(SystemExit, match=f"^error: .*{message}"):
        cross_validate.main(["--corpus", str(corpus), "--output_dir", str(tmp_path / "out"), *words])
    assert not pretended and not (tmp_path / "out").exists()


def test_the_options_of_the_recipes_may_name_the_first_weights(corpus, tmp_path, pretended):
    given = ["--corpus", str(corpus), "--output_dir", str(tmp_path / "a"), "--folds", "0"]
    cross_validate.main([*given, "--finetune_options", "model_name_or_path=facebook/vit-mae-base"])
    assert "--model_name_or_path=facebook/vit-mae-base" in pretended[0]["command"]


def test_a_fold_that_failed_stops_the_others_and_its_settings_can_be_corrected(
    corpus, tmp_path, pretended, monkeypatch
):
    pretend, failed = cross_validation.subprocess.run, []

    def fail(command, stdout=None, **given):
        failed.append(command)
        stdout.write("error: no\n")
        return subprocess.CompletedProcess(command, 1)

    given = ["--corpus", str(corpus), "--output_dir", str(tmp_path / "out")]
    monkeypatch.setattr(cross_validation.subprocess, "run", fail)
    with pytest.raises(SystemExit, match="finetune.py failed in .*fold_0.*: no"):
        cross_validate.main([*given, "--finetune_options", "num_train_epochs=1"])
    assert len(failed) == 1
    monkeypatch.setattr(cross_validation.subprocess, "run", pretend)
    cross_validate.main([*given, "--finetune_options", "num_train_epochs=2"])
    assert len(pretended) == 3
    changed = r"with another finetune_options \(num_train_epochs 2 there, 3 here; seed not given there, 1 here\): take"
    with pytest.raises(SystemExit, match=changed):
        cross_validate.main([*given, "--finetune_options", "seed=1", "num_train_epochs=3"])


def test_settings_that_say_the_same_are_the_same(corpus, tmp_path, pretended):
    config = write(tmp_path / "finetune.yaml", b"learning_rate: 0.001\n")
    given = ["--corpus", str(corpus), "--output_dir", str(tmp_path / "out"), "--finetune_config", str(config)]
    options = ["num_train_epochs=2", "crop_scale=0.4", "crop_scale=1.0"]
    cross_validate.main([*given, "--finetune_options", *options, "seed=1"])
    run = len(pretended)
    cross_validate.main([*given, "--finetune_options", "seed=1", "num_train_epochs=3", *options])
    assert len(pretended) == run
    changed = r"with another finetune_options \(crop_scale 0.4 1.0 there, 0.6 1.0 here\): take another one"
    with pytest.raises(SystemExit, match=changed):
        cross_validate.main([*given, "--finetune_options", "seed=1", options[0], "crop_scale=0.6", "crop_scale=1.0"])
    config.write_text("learning_rate: 0.001\noptim_args:\n")
    cross_validate.main([*given, "--finetune_options", *options, "seed=1"])
    assert len(pretended) == run, "what is null is as if it were left out"
    config.write_text("learning_rate: 0.002\n")
    changed = r"with another finetune_config_content \(learning_rate 0.001 there, 0.002 here\): take another one"
    with pytest.raises(SystemExit, match=changed):
        cross_validate.main([*given, "--finetune_options", *options, "seed=1"])


def test_a_fold_that_still_runs_is_not_started_twice(corpus, tmp_path, pretended):
    folder = tmp_path / "fold_2" / "finetune"
    folder.mkdir(parents=True)
    # as a fine-tuning that outlived the cross-validation that started it
    script = f"import fcntl, time; file = open({str(folder / 'log.txt')!r}, 'a'); fcntl.flock(file, fcntl.LOCK_EX)"
    script += "; print('locked', flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as running:
        try:
            running.stdout.readline()
            said = rf"^error: finetune.py is still running in .*fold_2/finetune \(process {running.pid}\), started by"
            with pytest.raises(SystemExit, match=said):
                cross_validate.main(["--corpus", str(corpus), "--output_dir", str(tmp_path)])
            assert not pretended, "said before anything else is done"
        finally:
            running.kill()


@pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGINT])
def test_what_a_recipe_started_ends_with_it(tmp_path, told):
    pid, home = tmp_path / "pid", "import subprocess, sys; from commandline import ending_children\n"
    sleeper = f"import os, time; open({str(pid)!r}, 'w').write(f'{{os.getpid()}}.'); time.sleep(600)"
    # as release.py starts cross_validate.py, which starts fine-tunings in threads
    folds = f"from concurrent.futures import ThreadPoolExecutor\nchild = [sys.executable, '-c', {sleeper!r}]\n"
    folds += "with ending_children(), ThreadPoolExecutor(1) as pool:\n    pool.submit(subprocess.run, child).result()"
    whole = f"with ending_children():\n    subprocess.run([sys.executable, '-c', {home + folds!r}])"
    with subprocess.Popen([sys.executable, "-c", home + whole], env={**os.environ, "PYTHONPATH": RECIPES}) as running:
        try:
            while not (pid.exists() and pid.read_text().endswith(".")):
                assert running.poll() is None
                time.sleep(0.05)
            started = psutil.Process(int(pid.read_text()[:-1]))
            running.send_signal(told)
            assert running.wait(60) == 128 + told
            assert not started.is_running()
        finally:
            running.kill()


def test_nothing_is_started_any_more_once_it_is_told_to_end(corpus, tmp_path, pretended):
    # between two steps of a fold there is no child to be ended
    given = ["--corpus", str(corpus), "--output_dir", str(tmp_path)]
    cross_validation.TOLD_TO_END.set()
    with pytest.raises(SystemExit, match="told to end before finetune.py began in .*fold_0"):
        cross_validate.main(given)
    assert not pretended and not cross_validation.TOLD_TO_END.is_set()
    cross_validate.main(given)
    assert len(pretended) == 3


def test_a_checkpoint_that_was_cut_off_is_not_resumed_from(corpus, tmp_path, pretended):
    write(tmp_path / "fold_0" / "finetune" / "checkpoint-3" / "trainer_state.json", b'{"global_st')
    cross_validate.main(["--corpus", str(corpus), "--output_dir", str(tmp_path), "--folds", "0"])
    assert "--overwrite_output_dir" in pretended[0] and "--resume_from_checkpoint" not in pretended[0]


def test_folds_share_the_gpus_that_the_process_was_given(corpus, tmp_path, pretended, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    cross_validate.main(["--corpus", str(corpus), "--output_dir", str(tmp_path), "--jobs", "2"])
    assert {run["gpu"] for run in pretended} <= {"4", "6"}


def test_comparing_other_images_is_refused(finished):
    table = pd.read_parquet(finished / "predictions.parquet")
    other = table.copy()
    other.loc[0, "file_name"] = "somewhere/else.png"
    with pytest.raises(ValueError, match="else.png"):
        compare(table, other)
