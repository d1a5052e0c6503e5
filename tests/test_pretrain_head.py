"""Pretraining with a texture head: what is logged and evaluated, where a head starts and ends, several processes."""

import json
import shutil
import socket
import sys

import pytest
import torch
import yaml
from test_pretrain import TINY, images, launch, options, prepared  # noqa: F401 - fixtures
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from commandline import UsageError
from modeling_glcm_mae import GLCMMAEForPreTraining, cooccurrence_matrix
from training.arguments import DataArguments, ModelArguments
from training.models import build_model

HEAD = {"glcm_head_weight": 2.0, "glcm_head_levels": 4, "glcm_head_offsets": "[[0, 1], [2, -1]]"}


def logged(output_dir) -> list[dict]:
    return [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]


def matrices(item) -> torch.Tensor:
    """True matrices of every patch of an item, `(16, 2, 4, 4)`."""
    grey = item["pixel_values"].double().mean(0)
    patches = grey.unfold(0, 8, 8).unfold(1, 8, 8).flatten(0, 1)
    lo, hi = -1.986021, 2.439160  # black and white after ImageNet's normalisation, mean of the channels
    return cooccurrence_matrix(
        patches,
        levels=4,
        value_range=(lo, hi),
        offsets=[[0, 1], [2, -1]],
        kernel="linear",
        symmetric=True,
        normalize=True,
    )


def test_a_run_logs_the_head_and_evaluates_it_beside_the_mean_of_the_images(images, tmp_path, capsys):  # noqa: F811
    import pretrain

    given = TINY | HEAD | {"corpus": images, "output_dir": tmp_path / "run", "mse_epochs": 1, "num_pictures": 0}
    pretrain.main(options(**given))
    rows = logged(tmp_path / "run")
    steps = {row["step"]: row for row in rows if "loss" in row}
    assert sorted(steps) == [1, 2, 3, 4, 5, 6]
    for step, row in steps.items():
        if step <= 3:
            assert row["loss"] == pytest.approx(row["mse"]) and "glcm_head" not in row
        else:
            parts = 2560 * row["glcm"] + row["mse"] + 2 * row["glcm_head"]
            assert row["loss"] == pytest.approx(parts, rel=1e-5)
    evaluations = [row for row in rows if "eval_loss" in row]
    assert evaluations[-1]["eval_glcm_head"] < evaluations[0]["eval_glcm_head"]
    for suffix in ("", "_patch_mean", "_dataset_mean"):
        first = {name: evaluations[0][f"eval_{name}{suffix}"] for name in ("loss", "glcm", "mse", "glcm_head")}
        parts = 2560 * first["glcm"] + first["mse"] + 2 * first["glcm_head"]
        assert first["loss"] == pytest.approx(parts, rel=1e-4)

    card = (tmp_path / "run" / "export" / "README.md").read_text()
    assert "2560 x GLCM + 1 x MSE + 2 x KL of the texture head" in card and "| glcm_head | " in card
    assert "| Texture head | predicts GLCMs of 4 levels, offsets [[0, 1], [2, -1]], of all patches |" in card
    model = GLCMMAEForPreTraining.from_pretrained(tmp_path / "run" / "export" / "pretraining")
    assert model.decoder.glcm_head.out_features == 20

    # The trivial predictor, from the images: the mean matrices, a uniform patch among them.
    run = prepared(images, tmp_path / "again", **HEAD)
    true = torch.cat([matrices(run.data.train[i]) for i in range(48)])
    uniform = (torch.full((4, 4), 0.5, dtype=torch.float64).fill_diagonal_(1) / 10).expand(1, 2, 4, 4)
    mean = torch.cat([true, uniform]).mean(0)
    held_out = torch.cat([matrices(run.data.held_out[i]) for i in range(8)])
    divergence = (torch.xlogy(held_out, held_out) - held_out * mean.log()).sum((-2, -1)).mean()
    for row in evaluations:
        assert row["eval_glcm_head_dataset_mean"] == pytest.approx(divergence.item(), rel=1e-4)
        assert row["eval_glcm_head_patch_mean"] == row["eval_glcm_head_dataset_mean"]


def build(source, **given):
    return build_model(ModelArguments(model_name_or_path=str(source), **given), DataArguments(corpus="speckle"))


@pytest.fixture
def with_head(tiny_model, tmp_path):
    model = tiny_model(glcm_head_weight=3.0, glcm_head_levels=5, glcm_head_offsets=[[0, 1], [2, -1]])
    model.save_pretrained(tmp_path / "with_head")
    return model, tmp_path / "with_head"


def test_a_head_starts_new_beside_a_checkpoint_and_that_is_said_once(tiny_fields, tmp_path, caplog):
    ViTMAEForPreTraining(ViTMAEConfig(**tiny_fields)).save_pretrained(tmp_path)
    caplog.set_level("INFO")
    model = build(tmp_path, glcm_head_weight=1.0)
    assert model.decoder.glcm_head.weight.abs().sum() > 0
    assert caplog.text.count("has no texture head: it starts new") == 1 and "MISSING" not in caplog.text
    caplog.clear()
    assert build(tmp_path, preset="mse").decoder.glcm_head is None
    assert "texture head" not in caplog.text


def test_another_missing_weight_is_still_an_error(tiny_fields, tmp_path):
    stock = ViTMAEForPreTraining(ViTMAEConfig(**tiny_fields))
    state = {name: value for name, value in stock.state_dict().items() if name != "decoder.decoder_norm.bias"}
    stock.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(UsageError, match=r"\{'missing_keys': \['decoder.decoder_norm.bias'\]\}"):
        build(tmp_path, glcm_head_weight=1.0)


def test_the_head_of_a_checkpoint_is_trained_on(with_head, caplog):
    model, folder = with_head
    caplog.set_level("INFO")
    found = build(folder, glcm_head_weight=1.0, preset="mse")
    assert torch.equal(found.decoder.glcm_head.weight, model.decoder.glcm_head.weight)
    assert (found.config.glcm_head_weight, found.config.glcm_head_levels) == (1.0, 5)
    assert found.config.glcm_head_offsets == [[0, 1], [2, -1]]
    assert "texture head" not in caplog.text


def test_the_head_of_a_checkpoint_is_left_out_only_if_asked_for(with_head, caplog):
    _, folder = with_head
    with pytest.raises(UsageError, match=r"texture head \(glcm_head_weight 3\).*give glcm_head_weight, 3 .* or 0"):
        build(folder, preset="mse")
    assert build(folder).config.glcm_head_weight == 2, "as the preset has it"
    caplog.set_level("INFO")
    model = build(folder, glcm_head_weight=0.0)
    assert model.decoder.glcm_head is None and model.config.glcm_head_weight == 0
    assert caplog.text.count("is left out, as asked for by glcm_head_weight 0") == 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"glcm_head_levels": 8}, r"glcm_head_levels must be that of the texture head of .* \(5\), got 8"),
        ({"glcm_head_offsets": "[[0, 1], [1, 0]]"}, r"glcm_head_offsets must be .* \(\[\[0, 1\], \[2, -1\]\]\), got"),
    ],
)
def test_the_head_of_a_checkpoint_keeps_its_meaning(with_head, given, said):
    with pytest.raises(UsageError, match=said):
        build(with_head[1], glcm_head_weight=1.0, **given)


@pytest.mark.slow
def test_two_processes_and_a_resume_equal_one_that_was_never_stopped(images, tmp_path):  # noqa: F811
    given = TINY | HEAD | {"corpus": images, "mse_epochs": 1, "num_pictures": 0, "eval_strategy": "no"}
    launch(options(**given, output_dir=tmp_path / "one"))
    arguments = options(
        **given | {"per_device_train_batch_size": 8},
        output_dir=tmp_path / "two",
        save_strategy="steps",
        save_steps=1,
        save_total_limit=9,
    )

    def launch_two(*more: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        launcher = (sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}")
        launch([*arguments, *more], launcher)

    launch_two()
    assert yaml.safe_load((tmp_path / "two" / "config.yaml").read_text())["derived"]["world_size"] == 2
    # As if it had been stopped after the second step, in the stage of plain squared error.
    for step in (3, 4, 5, 6):
        shutil.rmtree(tmp_path / "two" / f"checkpoint-{step}")
    launch_two("--resume_from_checkpoint=last")
    one, two = ([row for row in logged(tmp_path / name) if "loss" in row] for name in ("one", "two"))
    assert [row["step"] for row in one] == [1, 2, 3, 4, 5, 6] and [row["step"] for row in two][-4:] == [3, 4, 5, 6]
    assert (tmp_path / "two" / "checkpoint-6").is_dir(), "the last steps were taken again"
    for row in two:
        expected = one[row["step"] - 1]
        for name in ("loss", "mse", "glcm", "glcm_head"):
            assert (name in row) == (name in expected)
            assert name not in row or row[name] == pytest.approx(expected[name], rel=1e-5), row["step"]


def test_a_resume_with_another_head_is_refused(images, tmp_path):  # noqa: F811
    import pretrain

    runs = {"with": {"glcm_head_weight": 2.0}, "without": {"glcm_head_weight": 0.0}}
    given = TINY | {"corpus": images, "num_pictures": 0, "max_steps": 1, "save_steps": 1, "save_strategy": "steps"}
    for name, other in (("with", "without"), ("without", "with")):
        pretrain.main(options(**given | runs[name], output_dir=tmp_path / name))
        again = given | runs[other] | {"resume_from_checkpoint": "last", "output_dir": tmp_path / name}
        with pytest.raises(SystemExit, match="glcm_head_weight must stay"):
            pretrain.main(options(**again))
