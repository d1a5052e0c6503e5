"""What a person sees of a run while it lasts: short lines, how long it will take, how far the folds are."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from test_cross_validate import corpus, pretended  # noqa: F401 - fixtures
from test_finetune import few_resamples  # noqa: F401 - fixtures
from transformers import TrainerState

import cross_validate
from training import callbacks, cross_validation

ROOT = Path(__file__).resolve().parent.parent

TINY = """
corpus: speckle
speckle_images: 40
image_size: 32
patch_size: 8
hidden_size: 16
num_hidden_layers: 1
num_attention_heads: 2
intermediate_size: 16
decoder_hidden_size: 16
decoder_num_hidden_layers: 1
decoder_num_attention_heads: 2
decoder_intermediate_size: 16
held_out: 8
num_pictures: 0
probe_labels: 0
num_train_epochs: 3
per_device_train_batch_size: 8
logging_steps: 1
dataloader_num_workers: 0
use_cpu: true
eval_strategy: epoch
"""


@pytest.mark.parametrize("bars", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_what_a_pretraining_prints_is_short_and_says_nothing_twice(tmp_path, bars):
    (tmp_path / "c.yaml").write_text(TINY)
    command = [sys.executable, str(ROOT / "recipes" / "pretrain.py"), "--config", "c.yaml", "--output_dir", "out"]
    command += ["--disable_tqdm", str(not bars).lower()]
    environment = {key: value for key, value in os.environ.items() if key != "TQDM_DISABLE"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("epoch ")]
    logged = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert sum("eval_mse_dataset_mean" in row for row in logged) >= 4
    assert sum("eval_mse_dataset_mean" in line for line in lines) == 1
    assert sum(" eval_loss " in line for line in lines) >= 3 and "{" not in done.stdout
    assert sum(re.match(r"epoch [\d.]+: loss [\d.]+, grad_norm ", line) is not None for line in lines) == 12
    assert ("images/s" in done.stderr) == bars
    # A file does not get every state of a bar.
    assert done.stderr.count("\r") < 20


def test_figures_of_two_classes_are_not_said_twice(capsys):
    callback, state = callbacks.ImagesProgressCallback(32, bars=False), TrainerState(is_world_process_zero=True)
    figures = {"epoch": 1.0, "eval_accuracy": 0.8, "eval_auroc": 0.7, "eval_binary_auroc": 0.7}
    callback.on_log(None, state, None, logs=dict(figures))
    assert capsys.readouterr().out == "epoch 1: eval_accuracy 0.8, eval_auroc 0.7\n"
    of_three = {"epoch": 2.0, "eval_macro_auroc": 0.75, "eval_binary_auroc": 0.72}
    callback.on_log(None, state, None, logs=of_three)
    assert capsys.readouterr().out == "epoch 2: eval_macro_auroc 0.75, eval_binary_auroc 0.72\n"


def test_how_long_it_takes_is_said_once_and_early(monkeypatch, caplog):
    caplog.set_level("INFO")
    now = [100.0]
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: now[0])
    callback = callbacks.ImagesProgressCallback(32, bars=False)
    state = TrainerState(max_steps=1000, is_world_process_zero=True)
    callback.on_train_begin(None, state, None)
    for seconds in [7, *[2] * 30]:  # the first step is slow
        now[0] += seconds
        state.global_step += 1
        callback.on_step_end(None, state, None)
    said = [record.getMessage() for record in caplog.records if "updates are left" in record.getMessage()]
    assert said == ["994 updates are left: about 0:33:08 at 16 images a second"]


@pytest.mark.parametrize(("settings", "share"), [({"max_steps": -1}, 0.25), ({"max_steps": 10}, 0.6)])
def test_how_far_a_training_is(tmp_path, settings, share):
    assert cross_validation.share_done(tmp_path) == 0
    for written in ("", "- a list", "training:"):  # it is being written, or of another version
        (tmp_path / "config.yaml").write_text(written)
        (tmp_path / "metrics.jsonl").write_text("")
        assert cross_validation.share_done(tmp_path) == 0
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"training": {"num_train_epochs": 20.0, **settings}}))
    rows = [{"step": 5, "epoch": 4.0}, {"step": 6, "epoch": 5.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 7, "epo')
    assert cross_validation.share_done(tmp_path) == share


def test_the_time_left_is_by_what_was_done_since_the_start(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    progress = cross_validation.Progress(num_folds=5, stages=1)
    progress.tell("fold 0", 1.0)  # finished by an earlier call
    progress.tell("fold 1", 0.0)
    for second in range(0, 500, 2):  # of a training that takes 1,000 s and logs every 30
        now[0] = second
        progress.tell("fold 1", second // 30 * 30 / 1000)
    left = progress.bar.format_dict
    seconds = (left["total"] - left["n"]) / ((left["n"] - left["initial"]) / left["elapsed"])
    assert seconds == pytest.approx(3500, rel=0.1)
    assert f"about {progress.bar.format_interval(seconds)} left" in str(progress.bar)


@pytest.mark.parametrize(("start_up", "seconds", "first"), [(30, 100, 80), (60, 30_000, 600)])
def test_no_time_is_estimated_from_the_start_of_the_first_training(monkeypatch, start_up, seconds, first):
    """Of a run of 22 minutes, and of one of 83 hours."""
    now = [0.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    progress = cross_validation.Progress(num_folds=5, stages=2)
    progress.tell("fold 0 pretraining", 0.0)
    shown = {}
    for second in range(0, first + 21):
        now[0] = second
        progress.tell("fold 0 pretraining", max(0, second - start_up) // 10 * 10 / seconds)
        shown[second] = str(progress.bar)
    without = [line for second, line in shown.items() if second < first]
    assert any("  1%" in line or "  0%" in line for line in without)
    assert not any("left" in line or "?" in line for line in without)
    parts = re.search("about ([0-9:]+) left", shown[first])[1].split(":")
    left = sum(int(part) * 60**place for place, part in enumerate(reversed(parts)))
    assert left == pytest.approx(10 * (start_up + seconds) - first, rel=0.3)


def test_folds_go_on_without_a_bar(monkeypatch):
    bar = cross_validation.tqdm
    monkeypatch.setattr(cross_validation, "tqdm", lambda **given: bar(**given, disable=True))  # as by TQDM_DISABLE
    progress = cross_validation.Progress(num_folds=2, stages=1)
    progress.tell("fold 0", 0.5)
    progress.tell("fold 0", 1.0)
    assert progress.shares == {"fold 0": 1.0}


def test_the_bar_of_the_folds_shows_the_step_within_one(corpus, tmp_path, pretended, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setattr(cross_validation, "SECONDS_BETWEEN_LOOKS", 0.02)
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    answer = cross_validation.subprocess.run

    def slowly(command, **given):
        if "--dry_run" not in command:
            out = Path(command[command.index("--output_dir") + 1])
            (out / "config.yaml").write_text(yaml.safe_dump({"training": {"num_train_epochs": 20.0, "max_steps": -1}}))
            (out / "metrics.jsonl").write_text(json.dumps({"step": 6, "epoch": 5.0}) + "\n")
            time.sleep(0.5)
        return answer(command, **given)

    monkeypatch.setattr(cross_validation.subprocess, "run", slowly)
    bar = cross_validation.tqdm
    monkeypatch.setattr(cross_validation, "tqdm", lambda **given: bar(**given, mininterval=0))
    cross_validate.main(["--corpus", str(corpus), "--output_dir", str(tmp_path / "cv"), "--folds", "0", "1"])
    shown = capsys.readouterr().err
    assert "2 fold(s):  12%" in shown and "fold 0 fine-tuning 25%" in shown
    assert "2 fold(s):  62%" in shown and "fold 1 fine-tuning 25%" in shown
    assert "2 fold(s): 100%" in shown
