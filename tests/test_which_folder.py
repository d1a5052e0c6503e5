"""A folder around a model, given as one: which of the models in it is meant."""

import importlib
import json
from pathlib import Path

import pytest
from helpers import write, write_folder

import embed
import explain
import finetune
import pretrain
import publish

NEEDS_A_MODEL = {
    "finetune": (finetune, ["--corpus", "nowhere"]),
    "pretrain": (pretrain, ["--corpus", "nowhere"]),
    "embed": (embed, ["--features", "mean"]),
    "explain": (explain, []),
}


@pytest.fixture
def runs(tmp_path, monkeypatch) -> Path:
    """Models, as far as they are looked for, where the recipes leave them; and the folder to start from."""
    exports = ["run/export", "texture/pretrain/export", "unfinished/fold_0/pretrain/export"]
    exports += [f"cv/fold_{fold}/{step}/export" for fold in (10, 2) for step in ("pretrain", "finetune")]
    for export in exports:
        write(tmp_path / export / "config.json", json.dumps({"model_type": "none"}).encode())
    monkeypatch.chdir(tmp_path)
    return tmp_path


AROUND = {
    "run": "is the output of a run: give its model, run/export",
    "cv": "is the output of cross_validate.py: give, of one fold, the classifier cv/fold_2/finetune/export or "
    "the encoder cv/fold_2/pretrain/export",
    "cv/fold_2": "holds runs: give the classifier cv/fold_2/finetune/export or the encoder cv/fold_2/pretrain/export",
    "texture": "holds runs: give the encoder texture/pretrain/export",
    "unfinished": "is the output of cross_validate.py: give, of one fold, the encoder "
    "unfinished/fold_0/pretrain/export",
}


@pytest.mark.parametrize("script", NEEDS_A_MODEL)
@pytest.mark.parametrize("folder", AROUND)
def test_a_folder_around_models_is_named_with_the_model_inside(runs, script, folder):
    recipe, options = NEEDS_A_MODEL[script]
    with pytest.raises(SystemExit) as stopped:
        recipe.main([*options, "--output_dir", "out", "--model_name_or_path", folder])
    assert str(stopped.value) == f"error: model_name_or_path {folder!r} {AROUND[folder]}"


@pytest.mark.parametrize("script", ["finetune", "pretrain"])
def test_a_subfolder_may_choose_the_model(runs, script):
    recipe, options = NEEDS_A_MODEL[script]
    chosen = ["--model_name_or_path", "run", "--model_subfolder", "export"]
    with pytest.raises(SystemExit) as stopped:
        recipe.main([*options, "--output_dir", "out", *chosen])
    assert "is the output of a run" not in str(stopped.value)


def test_the_option_is_named_by_which_a_pretraining_goes_on(tmp_path):
    write_folder(tmp_path / "images", ["0.png", "1.png"])
    write(tmp_path / "export" / "config.json", json.dumps({"model_type": "vit"}).encode())
    given = [("model_name_or_path", "export"), ("corpus", "images"), ("output_dir", "out")]
    with pytest.raises(SystemExit) as stopped:
        pretrain.main([*(f"--{name}={tmp_path / value}" for name, value in given), "--use_cpu=true", "--held_out=0"])
    said = str(stopped.value)
    assert said.startswith("error: model_name_or_path: ") and "its model_type is 'vit', allowed is 'vit_mae'" in said
    assert said.endswith("Its pretraining/ subfolder may: pass --model_subfolder pretraining.")


@pytest.mark.parametrize("folder", [folder for folder in AROUND if folder != "cv"])
def test_a_run_is_not_published_as_its_export(runs, folder):
    with pytest.raises(SystemExit) as stopped:
        publish.main(["--export_dir", folder, "--repo_id", "org/name", "--dry_run", "true"])
    assert str(stopped.value) == f"error: export_dir {folder!r} {AROUND[folder]}"


@pytest.mark.parametrize("folder", AROUND)
def test_the_demo_names_the_model_inside(runs, monkeypatch, folder):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "hub_cards" / "space")
    offered = importlib.import_module("opened_models").Offered
    for given in (folder, f"NAME={folder}"):
        with pytest.raises(ValueError) as refused:
            offered([given])
        assert str(refused.value) == f"model {folder!r} {AROUND[folder]}"
    assert offered(["run/export"]).names == ["run"]
