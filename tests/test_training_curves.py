"""The picture of a training's log, and what a tracker receives beside it."""

import json
import shutil
import sys
import types
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_pretrain import TINY, images, options  # noqa: F401 - fixture
from transformers.integrations import WandbCallback

import pretrain
from judging.training_curves import draw_training_curves
from modeling_glcm_mae import GLCMMAEForPreTraining
from training.callbacks import PictureCallback


def lines_of(figure: Figure) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """The points of each line, by the title of its panel and its label."""
    return {
        axis.get_title(): {line.get_label(): list(map(tuple, line.get_xydata())) for line in axis.lines}
        for axis in figure.axes
        if axis.lines
    }


def test_the_curves_are_the_numbers_of_the_log(tmp_path, drawn):
    rows = [
        {"step": 0, "eval_loss": 3.0, "eval_loss_dataset_mean": 2.5, "eval_accuracy": 0.25, "eval_runtime": 9},
        {"step": 20, "loss": 1.0, "learning_rate": 5e-4, "epoch": 2},  # not in the order of the steps
        {"step": 10, "loss": 2.0, "learning_rate": 1e-3, "epoch": 1},
        {"step": 20, "eval_loss": 1.5, "eval_loss_dataset_mean": 2.5, "eval_accuracy": 0.75},
        {"step": 20, "train_loss": 1.6, "train_runtime": 9.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    draw_training_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    lines = lines_of(drawn[0])
    assert set(lines) == {"loss", "validation", "learning rate"}
    assert lines["loss"] == {
        "training": [(10, 2.0), (20, 1.0)],
        "held out": [(0, 3.0), (20, 1.5)],
        "mean of the data set": [(0, 2.5), (20, 2.5)],
    }
    assert lines["validation"] == {"accuracy": [(0, 0.25), (20, 0.75)]}
    assert list(lines["learning rate"].values()) == [[(10, 1e-3), (20, 5e-4)]]
    assert {text.get_text() for text in drawn[0].legends[0].get_texts()} == set(lines["loss"])


def test_a_log_of_fewer_steps_than_are_logged_gives_no_picture(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 3, "train_loss": 1.6}\n')
    draw_training_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


def test_a_resumed_run_gives_one_curve_and_a_new_one_replaces_it(images, tmp_path, drawn, capsys):  # noqa: F811
    out = tmp_path / "run"
    given = options(**TINY | {"num_pictures": 0}, corpus=images, output_dir=out)
    pretrain.main(given)
    assert f"curves   {out / 'curves.png'}" in capsys.readouterr().out
    whole = (out / "curves.png").read_bytes()
    half = shutil.copytree(out, tmp_path / "half")
    shutil.rmtree(half / "checkpoint-6")
    with (half / "metrics.jsonl").open("a") as lines:
        lines.write('{"step": 5, "loss": 99')  # killed while it wrote
    half_given = options(**TINY | {"num_pictures": 0}, corpus=images, output_dir=half)
    pretrain.main([*half_given, "--resume_from_checkpoint=last"])
    found = lines_of(drawn[-1])["loss"]
    assert [step for step, _ in found["training"]] == [1, 2, 3, 4, 5, 6]
    assert found == lines_of(drawn[0])["loss"] and len(drawn) == 2
    assert (half / "curves.png").read_bytes() == whole
    pretrain.main([*given, "--overwrite_output_dir", "true", "--num_train_epochs=1", "--eval_strategy=no"])
    assert [step for step, _ in lines_of(drawn[-1])["loss"]["training"]] == [1, 2, 3]


def test_tensorboard_shows_figures_and_pictures(images, tmp_path):  # noqa: F811
    out = tmp_path / "run"
    given = TINY | {"corpus": images, "output_dir": out, "picture_every_epochs": 1, "report_to": "tensorboard"}
    pretrain.main(options(**given))
    (folder,) = (out / "runs").iterdir()
    told = EventAccumulator(str(folder)).Reload()
    assert {event.step for event in told.Scalars("train/loss")} == {1, 2, 3, 4, 5, 6}
    events = told.Images("reconstructions")
    assert [event.step for event in events] == [3, 6]
    with Image.open(out / "reconstructions" / "last.png") as image:
        assert (events[-1].width, events[-1].height) == image.size
        stored = tmp_path / "stored.png"
        stored.write_bytes(events[-1].encoded_image_string)
        np.testing.assert_array_equal(np.asarray(Image.open(stored)), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("tracker", ["wandb", "trackio"])
def test_other_trackers_get_the_pictures_too(tracker, images, tmp_path, monkeypatch):  # noqa: F811
    # Before it is imported, which is when it looks where to write.
    for name, value in {"WANDB_MODE": "offline", "WANDB_DIR": tmp_path, "TRACKIO_DIR": tmp_path / "trackio"}.items():
        monkeypatch.setenv(name, str(value))
    pytest.importorskip(tracker, reason=f"needs the package {tracker}")
    out = tmp_path / "run"
    given = TINY | {"corpus": images, "output_dir": out, "picture_every_epochs": 1, "report_to": tracker}
    pretrain.main(options(**given, export_picture=True))
    pictures = [*(tmp_path / tracker).rglob("*.png")]
    drawn = {file.read_bytes() for file in (out / "reconstructions").glob("*.png")}
    assert len(drawn) == 2 and {file.read_bytes() for file in pictures} == drawn


@pytest.mark.parametrize("give_out", [True, False])
def test_a_tracker_on_other_machines_gets_pictures_only_if_they_may_be_given_out(
    give_out, tiny_config, tmp_path, monkeypatch
):
    sent, wandb = [], types.ModuleType("wandb")
    wandb.Image, wandb.log = str, sent.append
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    trainer = SimpleNamespace(
        model=GLCMMAEForPreTraining(tiny_config("texture")),
        args=SimpleNamespace(device="cpu"),
        is_world_process_zero=lambda: True,
        callback_handler=SimpleNamespace(callbacks=[WandbCallback.__new__(WandbCallback)]),
    )
    batch = {"pixel_values": torch.rand(2, 3, 32, 32), "noise": torch.rand(2, 16)}
    callback = PictureCallback(trainer, batch, (0.5,) * 3, (0.5,) * 3, tmp_path, 0, give_out)
    callback.on_train_end(None, SimpleNamespace(global_step=3), None)
    picture = tmp_path / "last.png"
    expected = {"reconstructions": str(picture), "train/global_step": 3}
    assert picture.exists() and sent == ([expected] if give_out else [])


def test_pictures_of_ones_own_images_are_not_given_out_unasked(images, tmp_path, monkeypatch):  # noqa: F811
    asked = []
    made = PictureCallback.__init__
    monkeypatch.setattr(
        PictureCallback, "__init__", lambda self, *given: (asked.append(given[-1]), made(self, *given))[1]
    )
    given = TINY | {"corpus": images, "output_dir": tmp_path / "run", "dry_run": True}
    for export_picture in ({}, {"export_picture": True}):
        pretrain.main(options(**given, **export_picture))
    assert asked == [False, True]


def test_a_tracker_that_is_not_installed_is_named(images, tmp_path):  # noqa: F811
    with pytest.raises(
        SystemExit, match=r"report_to must be none or .*installed here \(.*tensorboard.*\), got no_such"
    ):
        pretrain.main(options(**TINY, corpus=images, output_dir=tmp_path / "run", report_to="no_such"))
    assert not (tmp_path / "run" / "config.yaml").exists()
