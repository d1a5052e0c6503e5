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
from modeling_glcm_mae import GLCMMAEConfig, GLCMMAEForPreTraining, cooccurrence_matrix
from training.arguments import DataArguments, ModelArguments
from training.models import build_model

HEAD = {"glcm_head_weight": 2.0, "glcm_head_levels": 4, "glcm_head_offsets": "[[0, 1], [2, -1]]"}
CLS = {"glcm_cls_weight": 1.5, "glcm_cls_tiles": 2}
HEADS = ("glcm_head", "glcm_cls")


def logged(output_dir) -> list[dict]:
    return [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]


def matrices(item, side: int) -> torch.Tensor:
    """True matrices of every square of that many pixels of an item, `(n, 2, 4, 4)`."""
    grey = item["pixel_values"].double().mean(0)
    patches = grey.unfold(0, side, side).unfold(1, side, side).flatten(0, 1)
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


def test_a_run_logs_the_heads_and_evaluates_them_beside_the_mean_of_the_images(images, tmp_path, capsys):  # noqa: F811
    import pretrain

    given = TINY | HEAD | CLS | {"corpus": images, "output_dir": tmp_path / "run", "mse_epochs": 1, "num_pictures": 0}
    pretrain.main(options(**given))
    rows = logged(tmp_path / "run")
    steps = {row["step"]: row for row in rows if "loss" in row}
    assert sorted(steps) == [1, 2, 3, 4, 5, 6]
    for step, row in steps.items():
        if step <= 3:
            assert row["loss"] == pytest.approx(row["mse"]) and not set(HEADS) & row.keys()
        else:
            parts = 2560 * row["glcm"] + row["mse"] + 2 * row["glcm_head"] + 1.5 * row["glcm_cls"]
            assert row["loss"] == pytest.approx(parts, rel=1e-5)
    evaluations = [row for row in rows if "eval_loss" in row]
    for name in HEADS:
        assert evaluations[-1][f"eval_{name}"] < evaluations[0][f"eval_{name}"]
    for suffix in ("", "_patch_mean", "_dataset_mean"):
        first = {name: evaluations[0][f"eval_{name}{suffix}"] for name in ("loss", "glcm", "mse", *HEADS)}
        parts = 2560 * first["glcm"] + first["mse"] + 2 * first["glcm_head"] + 1.5 * first["glcm_cls"]
        assert first["loss"] == pytest.approx(parts, rel=1e-4)

    card = (tmp_path / "run" / "export" / "README.md").read_text()
    assert "2560 x GLCM + 1 x MSE + 2 x KL of the texture head + 1.5 x KL of the CLS token's head" in card
    assert "| glcm_head | " in card and "| glcm_cls | " in card
    assert "| Texture head | predicts GLCMs of 4 levels, offsets [[0, 1], [2, -1]], of all patches |" in card
    assert "| predicts GLCMs of 4 levels, offsets [[0, 1], [2, -1]], of 2 x 2 tiles of the image |" in card
    model = GLCMMAEForPreTraining.from_pretrained(tmp_path / "run" / "export" / "pretraining")
    assert (model.decoder.glcm_head.out_features, model.decoder.glcm_cls_head.out_features) == (20, 80)

    # The trivial predictor, from the images: the mean matrices, of all patches alike and of each tile, a uniform one
    # among them.
    run = prepared(images, tmp_path / "again", **HEAD)
    uniform = torch.full((4, 4), 0.5, dtype=torch.float64).fill_diagonal_(1) / 10
    for name, side, patches in (("glcm_head", 8, 1), ("glcm_cls", 16, 4)):
        true = torch.stack([matrices(run.data.train[i], side) for i in range(48)]).reshape(-1, patches, 2, 4, 4)
        mean = torch.cat([true, uniform.expand(1, patches, 2, 4, 4)]).mean(0)
        held_out = torch.stack([matrices(run.data.held_out[i], side) for i in range(8)]).reshape(-1, patches, 2, 4, 4)
        divergence = (torch.xlogy(held_out, held_out) - held_out * mean.log()).sum((-2, -1)).mean()
        for row in evaluations:
            assert row[f"eval_{name}_dataset_mean"] == pytest.approx(divergence.item(), rel=1e-4)
            assert row[f"eval_{name}_patch_mean"] == row[f"eval_{name}_dataset_mean"]


def build(source, **given):
    return build_model(ModelArguments(model_name_or_path=str(source), **given), DataArguments(corpus="speckle"))


@pytest.fixture
def with_head(tiny_model, tmp_path):
    model = tiny_model("mse", glcm_head_weight=3.0, glcm_head_levels=5, glcm_head_offsets=[[0, 1], [2, -1]])
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
    assert build(folder).config.glcm_head_weight == GLCMMAEConfig().glcm_head_weight, "as the preset has it"
    caplog.set_level("INFO")
    model = build(folder, glcm_head_weight=0.0)
    assert model.decoder.glcm_head is None and model.config.glcm_head_weight == 0
    assert caplog.text.count("is left out, as asked for by glcm_head_weight 0") == 1


def test_a_checkpoint_of_the_preset_of_before_gets_the_heads_of_now(tiny_model, tmp_path, caplog):
    before = tiny_model(glcm_head_weight=2.0, glcm_cls_weight=0.0)
    before.save_pretrained(tmp_path)
    assert GLCMMAEForPreTraining.from_pretrained(tmp_path).decoder.glcm_cls_head is None
    caplog.set_level("INFO")
    model = build(tmp_path)
    assert (model.config.glcm_head_weight, model.config.glcm_cls_weight) == (8, 0.5)
    assert torch.equal(model.decoder.glcm_head.weight, before.decoder.glcm_head.weight)
    assert caplog.text.count("has no head of the CLS token: it starts new") == 1 and "texture head" not in caplog.text
    as_before = build(tmp_path, glcm_head_weight=2.0, glcm_cls_weight=0.0)
    assert as_before.state_dict().keys() == before.state_dict().keys() and as_before.config.glcm_head_weight == 2


def test_heads_that_a_preset_does_without_are_named_in_one_error(tiny_model, tmp_path):
    tiny_model(glcm_head_weight=8.0, glcm_cls_weight=0.5).save_pretrained(tmp_path)
    named = r"a texture head \(glcm_head_weight 8\) and a head of the CLS token \(glcm_cls_weight 0.5\), which"
    with pytest.raises(UsageError, match=f"{named}.*: give glcm_head_weight, 8 .*; give glcm_cls_weight, 0.5 .* or 0"):
        build(tmp_path, preset="mse")
    with pytest.raises(UsageError, match=r"has a head of the CLS token \(glcm_cls_weight 0.5\), which"):
        build(tmp_path, preset="mse", glcm_head_weight=0.0)


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


def test_the_head_of_the_cls_token_is_kept_as_that_of_the_patches(tiny_model, tiny_fields, tmp_path, caplog):
    ViTMAEForPreTraining(ViTMAEConfig(**tiny_fields)).save_pretrained(tmp_path / "stock")
    caplog.set_level("INFO")
    assert build(tmp_path / "stock", glcm_cls_weight=1.0).decoder.glcm_cls_head.weight.any()
    assert caplog.text.count("has no head of the CLS token: it starts new") == 1
    assert caplog.text.count("has no texture head: it starts new") == 1 and "MISSING" not in caplog.text
    folder = tmp_path / "with"
    model = tiny_model("mse", glcm_cls_weight=3.0, glcm_cls_tiles=2, glcm_head_levels=5)
    model.save_pretrained(folder)
    found = build(folder, preset="mse", glcm_cls_weight=1.0)
    assert torch.equal(found.decoder.glcm_cls_head.weight, model.decoder.glcm_cls_head.weight)
    assert (found.config.glcm_cls_tiles, found.config.glcm_head_levels) == (2, 5)
    with pytest.raises(
        UsageError, match=r"head of the CLS token \(glcm_cls_weight 3\).*give glcm_cls_weight, 3 .* or 0"
    ):
        build(folder, preset="mse")
    with pytest.raises(
        UsageError, match=r"glcm_cls_tiles must be that of the head of the CLS token of .* \(2\), got 1"
    ):
        build(folder, preset="mse", glcm_cls_weight=1.0, glcm_cls_tiles=1)
    caplog.clear()
    assert build(folder, preset="mse", glcm_cls_weight=0.0).decoder.glcm_cls_head is None
    assert caplog.text.count("is left out, as asked for by glcm_cls_weight 0") == 1


@pytest.mark.slow
def test_two_processes_and_a_resume_equal_one_that_was_never_stopped(images, tmp_path):  # noqa: F811
    given = TINY | HEAD | CLS | {"corpus": images, "mse_epochs": 1, "num_pictures": 0, "eval_strategy": "no"}
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
        for name in ("loss", "mse", "glcm", *HEADS):
            assert (name in row) == (name in expected)
            assert name not in row or row[name] == pytest.approx(expected[name], rel=1e-5), row["step"]


@pytest.mark.parametrize("weight", ["glcm_head_weight", "glcm_cls_weight"])
def test_a_resume_with_another_head_is_refused(images, tmp_path, weight):  # noqa: F811
    import pretrain

    runs = {"with": {weight: 2.0}, "without": {weight: 0.0}}
    given = TINY | {"corpus": images, "num_pictures": 0, "max_steps": 1, "save_steps": 1, "save_strategy": "steps"}
    for name, other in (("with", "without"), ("without", "with")):
        pretrain.main(options(**given | runs[name], output_dir=tmp_path / name))
        again = given | runs[other] | {"resume_from_checkpoint": "last", "output_dir": tmp_path / name}
        with pytest.raises(SystemExit, match=f"{weight} must stay"):
            pretrain.main(options(**again))
