"""A run of pretraining that goes on, or refuses to."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from test_pretrain import ENVIRONMENT, ROOT, TINY, assert_same_losses, images, launch, losses, options, run, save_image  # noqa: F401 - fixtures

from commandline import UsageError, parse_args
from training.arguments import PRETRAINING, PretrainingArguments


@pytest.mark.slow
def test_killed_run_resumes_as_if_nothing_happened(run, images, tmp_path):
    output_dir = tmp_path / "killed"
    arguments = options(
        **TINY | {"dataloader_num_workers": 2},
        corpus=images,
        output_dir=output_dir,
        mse_epochs=1,
        save_strategy="steps",
        save_steps=0.1,  # of fewer than ten updates: after each
    )
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "recipes" / "pretrain.py"), *arguments],
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 200
    while not (output_dir / "checkpoint-2" / "trainer_state.json").exists():
        assert process.poll() is None and time.monotonic() < deadline, "ended before it could be killed"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = (output_dir / "metrics.jsonl").read_text()
    # Killed while saving: a folder without its last file must not be resumed from.
    (output_dir / "checkpoint-99").mkdir()
    resumed = launch([*arguments, "--resume_from_checkpoint=last"])
    assert "do not match" not in resumed.stderr, "the same settings are no cause for a warning"
    after = (output_dir / "metrics.jsonl").read_text()
    assert before.splitlines()[0] == after.splitlines()[0], "what was logged before the kill is kept"
    assert_same_losses(losses(run), losses(output_dir), tolerance=0)

    changed = [*arguments, "--resume_from_checkpoint=last", "--per_device_train_batch_size=8"]
    refused = launch(changed, check=False)
    assert refused.returncode != 0
    assert re.search(r"error: .*effective_batch_size must stay 16 .*got 8", refused.stderr)
    assert (output_dir / "export" / "model.safetensors").exists()


def test_ctrl_c_is_one_line_that_says_how_to_go_on(images, tmp_path):
    given = TINY | {"max_steps": 10_000, "save_strategy": "steps", "save_steps": 1}
    arguments = options(**given, corpus=images, output_dir=tmp_path / "run")
    command = [sys.executable, str(ROOT / "recipes" / "pretrain.py"), *arguments]
    with (
        (tmp_path / "said.txt").open("w") as output,
        subprocess.Popen(command, env=ENVIRONMENT, stdout=output, stderr=output) as process,
    ):
        try:
            while not (tmp_path / "run" / "checkpoint-2" / "trainer_state.json").exists():
                assert process.poll() is None
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 128 + signal.SIGINT
        finally:
            process.kill()
    text = (tmp_path / "said.txt").read_text()
    assert "Traceback" not in text
    said = "interrupted: what was saved is kept; --resume_from_checkpoint last goes on from the last checkpoint, if "
    assert f"{said}there is one" in text.splitlines()


def test_a_resume_logs_and_saves_as_often_as_it_is_told(images, tmp_path):
    import pretrain

    given = TINY | {"max_steps": 6, "corpus": images, "output_dir": tmp_path, "save_strategy": "steps"}
    pretrain.main(options(**given | {"save_steps": 3}))
    shutil.rmtree(tmp_path / "checkpoint-6")
    often = {"save_steps": 1, "save_total_limit": 9, "logging_steps": 2}
    pretrain.main(options(**given | often, resume_from_checkpoint="last"))
    assert sorted(path.name[-1] for path in tmp_path.glob("checkpoint-*")) == ["3", "4", "5", "6"]
    assert sorted(losses(tmp_path)) == [1, 2, 3, 4, 6]


def test_output_of_an_earlier_run_is_not_overwritten(run, images):
    refused = launch(options(**TINY, corpus=images, output_dir=run), check=False)
    assert refused.returncode != 0 and "holds an earlier run" in refused.stderr
    assert (run / "export" / "model.safetensors").exists()


def test_a_mistake_deletes_nothing(run, images, tmp_path):
    import pretrain

    before = sorted(path.relative_to(run) for path in run.rglob("*"))
    arguments = options(**TINY, output_dir=run) + ["--overwrite_output_dir=true"]
    (run / "checkpoint-notes.txt").write_text("mine")
    before = sorted([*before, Path("checkpoint-notes.txt")])
    for changed, message in (
        ({"corpus": tmp_path / "nowhere"}, "There is no corpus"),
        ({"mse_epochs": 2}, "leaves no step"),
        ({"per_device_train_batch_size": 64, "max_steps": 2}, "48 training images are fewer than one batch of 64"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "min_lr"),
        ({"lr_scheduler_kwargs": '{"speed": 1}'}, "cannot be made: .*speed"),
        ({"model_name_or_path": run / "export", "model_subfolder": "pretraining"}, "export, which would be deleted"),
        ({"corpus": run}, "holds .*, which would be deleted"),
    ):
        with pytest.raises(SystemExit, match=f"^error: .*{message}"):
            pretrain.main([*arguments, *options(**{"corpus": images} | changed)])
    assert sorted(path.relative_to(run) for path in run.rglob("*")) == before


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"preset": "mse"}, "glcm_weight must stay 2560.0 .* got 0.0"),
        ({"mask_ratio": 0.75}, "mask_ratio must stay 0.5 .* got 0.75"),
        ({"learning_rate": 1e-2}, "learning_rate must stay 0.001 .* got 0.01"),
        ({"horizontal_flip": True}, "horizontal_flip must stay False .* got True"),
        ({"mse_epochs": 0}, "mse_epochs must stay 1.0 .* got 0.0"),
        ({"seed": 7}, "seed must stay 42 .* got 7"),
        ({"optim": "sgd"}, "optim must stay adamw_torch_fused .* got sgd"),
        ({"bf16": True}, "mixed_precision must stay no .* got bf16"),
        ({"optim_args": "foreach=True"}, "optim_args must stay None .* got foreach=True"),
        ({"ignore_data_skip": True}, "ignore_data_skip must stay False .* got True"),
        ({"max_steps": 9}, "max_steps must stay 6 .* got 9"),
        ({"corpus": "OTHER"}, "train_contents_sha256 must stay"),
        ({"model_name_or_path": "RUN/export", "model_subfolder": "pretraining"}, "model_name_or_path must stay None"),
    ],
)
def test_resume_refuses_another_training(changed, named, run, images, tmp_path):
    import pretrain

    given = TINY | {"mse_epochs": 1, "corpus": images, "output_dir": run} | changed
    if given["corpus"] == "OTHER":  # the same names
        given["corpus"] = shutil.copytree(images, tmp_path / "other")
        save_image(tmp_path / "other" / "a" / "55.png", seed=99, size=(40, 48))
    if "model_name_or_path" in given:
        given["model_name_or_path"] = run / "export"
    with pytest.raises(SystemExit, match=f"error: resume_from_checkpoint: {named}"):
        pretrain.main(options(**given) + ["--resume_from_checkpoint=last"])


def resumed(**given):
    """A resume, up to its first step."""
    from training.pretraining import Pretraining

    arguments = options(**TINY | {"mse_epochs": 1, "resume_from_checkpoint": "last"} | given)
    return Pretraining(*parse_args(PRETRAINING, arguments))


@pytest.mark.parametrize("damage", ["cut", "missing", "other"])
def test_weights_that_cannot_be_used_end_a_resume_in_one_line(damage, run, images, tmp_path):
    import pretrain

    broken = shutil.copytree(run, tmp_path / "run")
    checkpoint = max(broken.glob("checkpoint-[0-9]*"), key=lambda folder: int(folder.name.split("-")[1]))
    file = checkpoint / "model.safetensors"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    elif damage == "missing":
        save_file({name: x for name, x in load_file(file).items() if "layer.0" not in name}, file, {"format": "pt"})
    else:
        config = json.loads((checkpoint / "config.json").read_text())
        (checkpoint / "config.json").write_text(json.dumps(config | {"model_type": "vit"}))
    given = options(**TINY | {"mse_epochs": 1}, corpus=images, output_dir=broken)
    before = (broken / "export" / "model.safetensors").read_bytes()
    with pytest.raises(
        SystemExit, match=rf"^error: resume_from_checkpoint: the weights in {checkpoint} cannot be used"
    ):
        pretrain.main([*given, "--resume_from_checkpoint=last"])
    assert (broken / "export" / "model.safetensors").read_bytes() == before


def test_a_resume_may_move_the_images_and_change_what_is_shown(run, images, tmp_path, caplog):
    moved = shutil.copytree(images, tmp_path / "moved")
    changed = {"logging_steps": 5, "save_total_limit": 7, "dataloader_num_workers": 1, "eval_strategy": "no"}
    split = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2}
    resumed(corpus=moved, output_dir=run, num_pictures=0, **changed, **split)
    assert "another version" not in caplog.text


def test_a_run_of_before_there_was_a_head_of_the_cls_token_goes_on(run, images, tmp_path, caplog):
    before = shutil.copytree(run, tmp_path / "run")
    stored = yaml.safe_load((before / "config.yaml").read_text())
    for name in ("glcm_cls_weight", "glcm_cls_tiles"):
        del stored["model"][name], stored["model_config"][name]
    stored["model_config"]["glcm_head_weight"] = 2.0  # as the preset had it
    (before / "config.yaml").write_text(yaml.safe_dump(stored))
    with pytest.raises(UsageError, match=r"glcm_head_weight must stay 2\.0 .* got 8\.0"):
        resumed(corpus=images, output_dir=before)
    with pytest.raises(UsageError, match=r"glcm_cls_weight must stay 0\.0 .* got 0\.5"):
        resumed(corpus=images, output_dir=before, glcm_head_weight=2.0)
    assert "another version" not in caplog.text
    resumed(corpus=images, output_dir=before, glcm_head_weight=2.0, glcm_cls_weight=0.0)
    assert "another version" not in caplog.text


def test_resume_refuses_the_precision_of_another_launcher(run, images, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(UsageError, match="mixed_precision must stay no .* got bf16"):
        resumed(corpus=images, output_dir=run)


def test_a_run_of_an_earlier_version_is_resumed_where_its_settings_tell_enough(run, images, tmp_path, caplog):
    old = Path(shutil.copytree(run, tmp_path / "old"))
    config = yaml.safe_load((old / "config.yaml").read_text())
    del config["derived"]["train_contents_sha256"], config["training"]["optim_args"]
    config["derived"]["train_images_sha256"] = config["derived"].pop("train_file_names_sha256")
    (old / "config.yaml").write_text(yaml.safe_dump(config))
    resumed(corpus=images, output_dir=old)
    assert "does not tell or know train_contents_sha256, optim_args: these are not compared" in caplog.text
    renamed = shutil.copytree(images, tmp_path / "renamed")
    (renamed / "a" / "55.png").rename(renamed / "a" / "56.png")
    with pytest.raises(UsageError, match="train_file_names_sha256 must stay"):
        resumed(corpus=renamed, output_dir=old)
    config["training"]["save_only_model"] = True
    (old / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(UsageError, match="saved with save_only_model, without the optimiser"):
        resumed(corpus=images, output_dir=old)


def test_a_resume_does_not_go_on_in_the_folder_of_another_run(run, images, tmp_path):
    (checkpoint, *_) = sorted(run.glob("checkpoint-*"))
    other = Path(shutil.copytree(run, tmp_path / "other"))
    with pytest.raises(UsageError, match="other holds an earlier run, and not that of .*checkpoint-"):
        resumed(corpus=images, output_dir=other, resume_from_checkpoint=checkpoint)
    resumed(corpus=images, output_dir=tmp_path / "new", resume_from_checkpoint=checkpoint)


@pytest.mark.slow
def test_a_stream_is_resumed_where_it_was_after_more_than_one_pass(images, tmp_path, monkeypatch):
    import pretrain

    # datasets waits for the threads of pyarrow after every pass, five seconds where a tenth is enough
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.1)
    data = datasets.load_dataset("imagefolder", data_dir=str(images), split="train", cache_dir=str(tmp_path / "cache"))
    (tmp_path / "parquet").mkdir()
    data.select(range(32)).to_parquet(tmp_path / "parquet" / "train-00000.parquet")
    # 32 images, 8 of them held out: three updates a pass
    given = TINY | {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 7}
    given |= {"streaming": True, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 99}
    given |= {"eval_strategy": "no", "num_pictures": 0, "corpus": tmp_path / "parquet"}
    pretrain.main(options(**given, output_dir=tmp_path / "whole"))
    for last in (3, 5):  # the end of the first pass, and amid the second
        half = Path(shutil.copytree(tmp_path / "whole", tmp_path / f"until_{last}"))
        for step in range(last + 1, 8):
            shutil.rmtree(half / f"checkpoint-{step}")
        pretrain.main(options(**given, output_dir=half, resume_from_checkpoint="last"))
        assert sorted(losses(half)) == list(range(1, 8))
        assert_same_losses(losses(tmp_path / "whole"), losses(half), tolerance=0)
    elsewhere = Path(shutil.copytree(tmp_path / "parquet", tmp_path / "elsewhere"))
    for name, value in {"dataloader_num_workers": 1, "corpus": elsewhere}.items():
        with pytest.raises(SystemExit, match=f"{name} must stay"):
            pretrain.main(options(**given | {name: value}, output_dir=half, resume_from_checkpoint="last"))
    data.select(range(1, 33)).to_parquet(tmp_path / "parquet" / "train-00000.parquet")
    with pytest.raises(SystemExit, match="first_images_sha256 must stay"):
        pretrain.main(options(**given, output_dir=half, resume_from_checkpoint="last"))


# ------------------------------------------------------------------------------------------------------- two stages

STAGES = TINY | {
    **{"per_device_train_batch_size": 8, "num_train_epochs": 4, "mse_epochs": 2, "num_pictures": 0},
    **{"eval_strategy": "no", "save_strategy": "steps", "save_steps": 1, "save_total_limit": 99, "disable_tqdm": True},
}


def trained(images, output_dir: Path, *more: str, **given) -> Path:  # noqa: F811
    import pretrain

    pretrain.main([*options(**STAGES | given, corpus=images, output_dir=output_dir), *more])
    return output_dir


def rates(output_dir: Path) -> dict[int, float]:
    rows = [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["learning_rate"] for row in rows if "learning_rate" in row}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_two_stages_are_one_training_with_other_numbers_of_images_per_update(images, tmp_path):  # noqa: F811
    staged = trained(images, tmp_path / "staged", mse_images_per_update=24)
    # The first is that of a training with 24 images per update and three times the rate.
    large = trained(images, tmp_path / "large", per_device_train_batch_size=24, learning_rate=3e-3)
    assert sorted(losses(staged)) == [1, 2, 3, 4, *range(13, 25)], "2 epochs of 2 updates, then 2 of 6"
    assert_same_losses(losses(large), losses(staged), steps={1, 2, 3, 4})
    # The second goes on with its weights and its optimiser, at the rate of 8 images at this place.
    small = trained(images, tmp_path / "small")
    for step in range(13, 25):
        assert rates(staged)[step] == pytest.approx(rates(small)[step], rel=1e-6)
        assert ("glcm" in losses(staged)[step]) == ("glcm" in losses(small)[step]) is True
    (before, after), (then, now) = (
        [read(staged / f"checkpoint-{step}") for step in (4, 12)]
        for read in (weights, lambda folder: torch.load(folder / "optimizer.pt", weights_only=True)["state"])
    )
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(torch.equal(then[index][name], now[index][name]) for index in then for name in then[index])
    assert now[0]["step"] == 4
    told = json.loads((staged / "all_results.json").read_text())
    assert told["train_runtime"] > 0 and "train_loss" not in told, "what is of one stage is not told of both"


@pytest.mark.slow
def test_a_training_in_two_stages_goes_on_in_either_as_if_it_had_not_been_stopped(images, tmp_path):  # noqa: F811
    staged = trained(images, tmp_path / "staged", mse_images_per_update=24)
    whole, logged = weights(staged / "export" / "pretraining"), losses(staged)
    for last in (2, 12, 15):
        for folder in staged.glob("checkpoint-*"):
            if int(folder.name.split("-")[1]) > last:
                shutil.rmtree(folder)
        trained(images, staged, "--resume_from_checkpoint=last", mse_images_per_update=24)
        again = weights(staged / "export" / "pretraining")
        assert all(torch.equal(whole[name], again[name]) for name in whole), last
        assert losses(staged) == logged
    with pytest.raises(SystemExit, match="mse_images_per_update must stay 24 .* got 16"):
        trained(images, staged, "--resume_from_checkpoint=last", mse_images_per_update=16)


@pytest.mark.slow
def test_checkpoints_between_stages_are_as_many_as_in_one_and_may_lie_elsewhere(images, tmp_path):  # noqa: F811
    given = {"mse_images_per_update": 24, "save_steps": 0.25}
    staged = trained(images, tmp_path / "staged", **given)

    def steps(folder: Path) -> list[int]:
        return sorted(int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*"))

    assert steps(staged) == [2, 4, 12, 18, 24]
    files = {path: path.stat().st_mtime_ns for path in staged.rglob("*")}
    other = trained(images, tmp_path / "b" / "other", f"--resume_from_checkpoint={staged / 'checkpoint-4'}", **given)
    assert steps(other) == [12, 18, 24] and {path: path.stat().st_mtime_ns for path in staged.rglob("*")} == files
    whole, again = (weights(folder / "export" / "pretraining") for folder in (staged, other))
    assert all(torch.equal(whole[name], again[name]) for name in whole)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mse_images_per_update": 16, "save_only_model": True}, "needs save_only_model left out, got True"),
        ({"mse_images_per_update": 16, "metric_for_best_model": "loss"}, "needs metric_for_best_model left out, got"),
        ({"mse_images_per_update": 20}, "must be a multiple of the 8 images per update, got 20"),
        ({"mse_images_per_update": 8}, "must be a multiple of the 8 images per update, got 8"),
        ({"mse_images_per_update": 56}, "must be at most the 48 training images, got 56"),
        ({"mse_images_per_update": 16, "mse_epochs": 0}, "whole epochs in both stages.*got mse_epochs 0, "),
        ({"mse_images_per_update": 16, "mse_epochs": 0.3}, "whole epochs in both stages.*got mse_epochs 0.3, "),
        ({"mse_images_per_update": 16, "max_steps": 9}, "whole epochs in both stages.* max_steps 9"),
        ({"mse_images_per_update": 16, "warmup_steps": 5}, "warmup_steps below 1 and .* got 5 and cosine"),
        ({"mse_images_per_update": 16, "lr_scheduler_type": "polynomial"}, "got 0.1 and polynomial"),
    ],
)
def test_stages_that_cannot_be_are_named_before_the_first_step(images, tmp_path, given, message):  # noqa: F811
    with pytest.raises(SystemExit, match=message):
        trained(images, tmp_path / "run", **given)
    assert not list(tmp_path.glob("run/checkpoint-*"))


def test_whole_epochs_are_whole_whatever_floats_say(tmp_path):
    given = {"mse_images_per_update": 512, "num_train_epochs": 100, "output_dir": tmp_path, "use_cpu": True}
    for share in (0.07, 0.29, 0.55):  # 100 of each are not whole in floats
        parse_args((PretrainingArguments,), options(**given, mse_epochs=share))


def test_a_dry_run_leaves_what_another_run_has_begun_beside_it(images, tmp_path, monkeypatch):  # noqa: F811
    import pretrain
    from training import pretraining

    given = TINY | {"corpus": images, "dry_run": True}
    begin = pretraining.Pretraining.__init__

    def beside_another_run(*arguments):
        begin(*arguments)
        (tmp_path / "new" / "other").mkdir()

    monkeypatch.setattr(pretraining.Pretraining, "__init__", beside_another_run)
    pretrain.main(options(**given, output_dir=tmp_path / "new" / "deep"))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["other"]
