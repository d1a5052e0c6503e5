"""What the cards say, and what publishing does where things go wrong: in this process, against the tests' Hub."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import encode, grey, write
from huggingface_hub import HfApi, ModelCard, get_session
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers import (
    AutoImageProcessor,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    pipeline,
)

import publish as publish_recipe
from commandline import UsageError, parse_args
from corpora.facts import FACTS
from hub.cards import ADDRESS, DATA_ADDRESS, Origin, origin_of
from hub.contents import ROOT, with_export
from hub.export import write_classifier, write_export
from hub.never_published import files_of
from hub.publication import Publication
from hub.repository import finish, open_repository, send
from images.arguments import PrepareArguments
from images.transform import ImageTransform, transform_of_processor
from judging.summary import summarise
from modeling_glcm_mae import GLCMMAEForPreTraining
from prepare_corpus import prepare
from training.arguments import FinetuningArguments, PretrainingArguments
from training.callbacks import PublishEverySave
from training.models import with_mean_pooling
from training.run import publication_of_run, training_environment

REPO = "org/glcm-mae-tiny"
PROCESSOR = ImageTransform(32, resize="squash").processor()


def export(folder: Path, config, processor=PROCESSOR, **facts) -> str:
    """Write an export of an untrained model; returns its card."""
    given = {"title": "Tiny", "repo_id": ADDRESS, "corpus": "speckle"} | facts
    write_export(folder, GLCMMAEForPreTraining(config), processor, {"config.yaml": "a: 1\n"}, [], given)
    return (folder / "README.md").read_text()


def classifier(folder: Path, pooling: str = "cls", processor=PROCESSOR, **facts) -> str:
    """The same of a classifier."""
    names = {0: "benign", 1: "malignant"}
    sizes = {
        "image_size": facts.pop("image_size", 32),
        "patch_size": 8,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    model = ViTForImageClassification(ViTConfig(**sizes, intermediate_size=32, id2label=names))
    model = with_mean_pooling(model) if pooling == "mean" else model
    with torch.no_grad():
        model.classifier.weight.mul_(50)  # so that CLS token and mean are told apart
    model.config.architectures = [type(model).__name__]
    given = {"title": "Tiny", "repo_id": ADDRESS, "corpus": "busi", "fold": "0", "mode": "finetune"}
    given |= {"counts": {"train": 8, "validation": 2, "test": 2}, "pooling": pooling}
    write_classifier(folder, model, processor, {"config.yaml": "a: 1\n"}, [], given | facts)
    return (folder / "README.md").read_text()


def test_examples_of_a_classifier_that_resizes_nothing_have_its_size(tmp_path):
    processor = ImageTransform((32, 48), resize="none").processor()
    card = classifier(tmp_path / "export", processor=processor, image_size=(32, 48))
    with Image.open(tmp_path / "export" / "examples" / "speckle_1.png") as image:
        assert image.size == (48, 32) and "speckle_1.png" in card


def assert_tables_are_whole(card: str) -> None:
    """Every row belongs to a table with a head, and has as many cells."""
    for block in re.split(r"\n\s*\n", ModelCard(card).text):
        rows = [line for line in block.splitlines() if line.startswith("|")]
        if rows:
            assert re.fullmatch(r"\|(-+\|)+", rows[1]), f"no head: {rows}"
            assert len({row.count("|") for row in rows}) == 1, rows
    assert not re.search(r"\n{4,}|\bnan\b|\bNone\b|\{[{%]", card)
    headings = re.findall(r"^#+ .*$", card, re.MULTILINE)
    assert len(headings) == len(set(headings))


@pytest.mark.parametrize(("seconds", "said"), [(5, "1 min"), (61, "2 min"), (3600, "1 h 0 min"), (5430, "1 h 31 min")])
def test_a_card_says_how_long_the_training_took(seconds, said, tmp_path):
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    told = training_environment({"train_runtime": seconds}, args, resumed=False)
    assert told == f"{said} on 1 x CPU; energy was not measured"
    assert training_environment({"train_runtime": seconds}, args, resumed=True) is None, "a part of it"


FULL = {
    "environment": "30 min on 1 x CPU; energy was not measured",
    "data_facts": FACTS["busi"],
    "base_model": "facebook/vit-mae-base",
    "origin": Origin("facebook/vit-mae-base", "facebook/vit-mae-base", "facebook/vit-mae-base"),
}


@pytest.mark.parametrize("preset", ["texture", "paper", "mse"])
@pytest.mark.parametrize("facts", [{}, FULL | {"preset": True, "mse_epochs": 0.25, "num_train_epochs": 3}])
def test_card_of_a_pretraining_names_its_objective_and_no_other(preset, facts, tiny_config, tmp_path):
    facts = facts | ({"preset": preset} if facts else {})
    card = export(tmp_path / "export", tiny_config(preset), **facts)
    assert_tables_are_whole(card)
    row = re.search(r"\| Objective \| (.*) \|", card)[1]
    terms = {
        "texture": "2560 x GLCM + 1 x MSE + 8 x KL of the texture head + 0.5 x KL of the CLS token's head",
        "paper": "1 x GLCM + 1 x (1 - SSIM) + 0.1 x MSE",
        "mse": "1 x MSE",
    }
    assert row == (f"preset `{preset}`: " if facts else "") + terms[preset]
    assert "| Encoder | 1 layers of width 32, patches of 8 pixels, images of 32 x 32; 0.0" in card
    assert ("glcm" in ModelCard(card).data.tags) == (preset != "mse")
    assert ("no texture\nterm" in card) == (preset == "mse")
    assert (
        ("CC BY-NC 4.0" in card)
        == ("MSE alone for 25 % of the training" in card)
        == ("cc-by-4.0" in card)
        == bool(facts)
    )


def test_card_of_an_encoder_whose_cls_token_alone_foretells_texture(tiny_config, tmp_path):
    card = export(tmp_path / "export", tiny_config("mse", glcm_cls_weight=1.5, glcm_cls_tiles=2))
    assert_tables_are_whole(card)
    assert "| Objective | 1 x MSE + 1.5 x KL of the CLS token's head |" in card
    assert "predicts the texture of the image from its CLS token" in card and "no texture\nterm" not in card
    assert "of 2 x 2 tiles of the image |" in card and "| Texture head |" not in card
    assert "glcm" in ModelCard(card).data.tags


@pytest.mark.parametrize(("channels", "tag"), [(1, None), (3, "image-feature-extraction")])
def test_pipeline_is_named_only_where_it_opens_the_encoder(channels, tag, tiny_config, tmp_path):
    processor = ImageTransform(32, image_mean=(0.66,) * channels, image_std=(0.18,) * channels).processor()
    given = {"title": "Tiny", "repo_id": ADDRESS, "num_train_epochs": 6.0}
    model = GLCMMAEForPreTraining(tiny_config(num_channels=channels))
    write_export(tmp_path / "export", model, processor, {}, [], given)
    card = (tmp_path / "export" / "README.md").read_text()
    assert_tables_are_whole(card)
    assert ModelCard(card).data.get("pipeline_tag") == tag
    assert ("Do not use `pipeline`, which hands colour" in card) == ('convert("L")' in card) == (tag is None)
    extract = pipeline("image-feature-extraction", str(tmp_path / "export"), device="cpu")
    with nullcontext() if tag else pytest.raises(ValueError, match="channel|shape|mean"):
        assert np.array(extract(Image.fromarray(grey(40, 48)))).shape == (1, 17, 32)
    assert "values of 8-bit images / 255, mean 0.66, std 0.18" in card and "| Epochs | 6 |" in card
    assert f"\n{channels} channel{'s' if tag else ''}; " in card


@pytest.mark.parametrize(("preset", "said"), [("texture", True), ("mse", False)])
def test_a_squared_error_above_the_mean_is_explained_where_texture_is_learned(preset, said, tiny_config, tmp_path):
    card = export(tmp_path / "export", tiny_config(preset), metrics={"mse": ["1.6", "0.4", "1"]})
    assert_tables_are_whole(card)
    assert ("`glcm_l1` may be lower for noise than for a blur" in card) == said
    assert "with the model\nbefore training" not in card, "there is no such column"
    probe = {"labels": 50, "before": "0.247", "after": "0.967"}
    given = {"metrics": {"mse": ["1.6", "2", "0.4", "1"]}, "untrained": True, "probe": probe}
    card = export(tmp_path / "judged", tiny_config(preset), **given)
    assert ("with the model\nbefore training" in card) == said
    assert "A linear probe of the encoder with 50 labels is right in 0.247 of" in card and "in 0.967 after" in card


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize(
    "facts", [{}, FULL | {"figures": [("accuracy", "0.5", "0 to 1")], "values": {"accuracy": 0.5}}]
)
def test_card_of_a_classifier_opens_it_in_three_ways(pooling, facts, tmp_path):
    card = classifier(tmp_path / "export", pooling, **facts)
    assert_tables_are_whole(card)
    code = "\n".join(re.findall(r"```python\n(.*?)```", card, re.DOTALL)).replace(ADDRESS, str(tmp_path / "export"))
    names = {"image": Image.fromarray(grey(40, 48))}
    exec(compile(code, "card", "exec"), names)
    answers = {row["label"]: row["score"] for row in names["classify"](names["image"])}
    labels = names["classifier"].config.id2label
    by_hand = {labels[index]: value for index, value in enumerate(names["probabilities"].tolist())}
    assert by_hand == pytest.approx(answers, abs=1e-4)
    with torch.no_grad():
        logits = names["classifier"].classifier(names["features"])[0]
    assert torch.allclose(logits.softmax(dim=0), names["probabilities"], atol=1e-4)
    data = ModelCard(card).data
    assert data.get("inference") is None and "trust_remote_code" not in card
    assert (data.eval_results is not None) == bool(facts) and data.get("model_name") == (facts and "Tiny" or None)
    if facts:
        assert data.eval_results[0].dataset_split == "test part of fold 0"


def test_a_classifier_of_deep_images_answers_8_bit_ones(tmp_path):
    deep = ImageTransform(32, resize="squash").processor(65535)
    card = classifier(tmp_path / "export", processor=deep)
    assert "`value / 65535 * 255`" in card and "values of 8-bit images / 255" in card
    code = "\n".join(re.findall(r"```python\n(.*?)```", card, re.DOTALL)).replace(ADDRESS, str(tmp_path / "export"))
    image = Image.fromarray(grey(32, 32))
    names = {"image": image}
    exec(compile(code, "card", "exec"), names)
    answers = {row["label"]: row["score"] for row in names["classify"](image)}
    normalised = (np.asarray(image.convert("RGB")) / 255 - deep.image_mean) / deep.image_std
    with torch.no_grad():
        logits = names["classifier"](torch.tensor(normalised, dtype=torch.float32).permute(2, 0, 1)[None]).logits
    right = dict(zip(("benign", "malignant"), logits.softmax(dim=-1)[0].tolist(), strict=True))
    assert answers == pytest.approx(right, abs=1e-4)
    by_hand = dict(zip(("benign", "malignant"), names["probabilities"].tolist(), strict=True))
    assert by_hand == pytest.approx(right, abs=1e-4)
    # One that is cut off by `pipeline` is refused by the processor.
    with pytest.raises(ValueError, match="outside the range"):
        names["processor"](images=Image.fromarray(grey(40, 40, bits=16)))


@pytest.mark.parametrize("white", [4095, 65535])
def test_an_encoder_of_deep_images_takes_8_bit_ones(white, tiny_config, tmp_path):
    transform = ImageTransform(32, resize="squash")
    card = export(tmp_path / "export", tiny_config("mse"), transform.processor(white))
    assert f"`value / {white} * 255`" in card
    code = re.findall(r"```python\n(.*?)```", card, re.DOTALL)[0].replace(ADDRESS, str(tmp_path / "export"))
    image = Image.fromarray(grey(32, 32))
    names = {"image": image}
    exec(compile(code, "card", "exec"), names)
    right = transform.processor()(images=image.convert("RGB"), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(names["inputs"]["pixel_values"], right)
    assert transform_of_processor(AutoImageProcessor.from_pretrained(tmp_path / "export"), 32) == (transform, white)


def test_a_checkpoint_in_a_folder_tells_where_it_comes_from_and_not_where_it_lies(tiny_config, tmp_path):
    origin = FULL["origin"]
    export(tmp_path / "a", tiny_config(), title="GLCM-MAE, one", base_model=origin.base_model, origin=origin)
    for folder in (tmp_path / "a", tmp_path / "a" / "pretraining"):
        second = origin_of(str(folder))
        assert second.base_model == second.mae_weights == "facebook/vit-mae-base" and second.pretrained_here
        assert second.described == "GLCM-MAE, one; that one from facebook/vit-mae-base"
    card = classifier(tmp_path / "b", base_model=second.base_model, origin=second)
    assert "CC BY-NC 4.0" in card and "madan2025focus" in card and str(tmp_path) not in card
    assert origin_of(str(tmp_path / "b")).mae_weights == "facebook/vit-mae-base"
    (tmp_path / "c").mkdir()
    assert origin_of(str(tmp_path / "c")) == origin_of(None) == Origin()


def test_figures_of_folds_that_are_not_in_the_summary_are_not_claimed(tmp_path):
    count, rng = 20, np.random.default_rng(0)
    scores = rng.random(count)
    table = pd.DataFrame({"fold": np.arange(count) % 2 + 1, "file_name": [f"{i}.png" for i in range(count)]})
    table["group"], table["label"] = table["file_name"], np.arange(count) // 2 % 2
    table["prediction"] = (scores > 0.5).astype(int)
    table["probability_benign"], table["probability_malignant"] = 1 - scores, scores
    write(tmp_path / "run" / "summary.json", json.dumps(summarise(table)).encode())
    classifier(tmp_path / "run" / "fold_0" / "finetune" / "export", values={"accuracy": 0.5})
    write(tmp_path / "run" / "curves.png", encode(grey()))
    for fold in (1, 2):
        shutil.copytree(tmp_path / "run" / "fold_0", tmp_path / "run" / f"fold_{fold}")
    asked = publish_recipe.PublishArguments(str(tmp_path / "run"), REPO)
    publication, model = publish_recipe.publication_of(asked)
    card = publication.files["README.md"].decode()
    assert "fold 1, one of the 2 folds that were run" in card and "\n\n![Curves of all folds](curves.png)" in card
    assert model == tmp_path / "run" / "fold_1" / "finetune" / "export"
    assert ModelCard(card).data.eval_results[0].dataset_split == "test parts of 2 folds"
    assert_tables_are_whole(card)
    (tmp_path / "run" / "summary.json").rename(tmp_path / "elsewhere.json")
    (tmp_path / "run" / "summary.json").symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(UsageError, match="is a link to"):
        publish_recipe.publication_of(asked)


# What must not slip through


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", '{"nested": {"Hub_Token": "abcdefgh1234"}}'),
        ("a.yaml", "deep:\n  er:\n    API-KEY: abcdefgh1234"),
        ("a.yaml", "wandb_api_key: 0123456789abcdef0123"),
        ("a.txt", "cloned with github_pat_" + "A1b2" * 10),
        ("A.TXT", "hf_" + "aB3" * 11),
        ("a.yaml", "password: 'hunter2hunter2'"),
        ("Credentials.json", "{}"),
        ("prod.env", "A=1"),
    ],
)
def test_secrets_are_refused_wherever_they_are(name, content, tmp_path):
    write(tmp_path / "sub" / name, content.encode())
    with pytest.raises(UsageError, match=r"looks like a(n access token|\bsecret| secret)") as refused:
        files_of(tmp_path)
    said = str(refused.value).replace(str(tmp_path), "")  # which may have these digits
    assert "1234" not in said and "hunter" not in said


def test_what_trainer_writes_and_our_own_files_are_no_secrets(tmp_path):
    write(tmp_path / "config.yaml", b"hub_token: <HUB_TOKEN>\npush_to_hub_token: null\nmask_token: learned_one\n")
    write(tmp_path / ".vscode" / "settings.json", b"{}")
    write(tmp_path / ".ipynb_checkpoints" / "a.json", b"{}")
    write(tmp_path / "IMAGE.PNG", encode(grey()))
    files, left_out = files_of(tmp_path)
    assert set(files) == {"config.yaml", "IMAGE.PNG"}
    assert set(left_out) == {".vscode/settings.json", ".ipynb_checkpoints/a.json"}
    for folder in ("modeling_glcm_mae", "hub_cards", "recipes"):
        files_of(ROOT / folder)


# A Hub that is not as one wishes


@pytest.fixture
def publication(tmp_path) -> Publication:
    classifier(tmp_path / "export")
    return with_export(Publication(tmp_path / "export", REPO))


def test_a_token_that_only_reads_is_known_before_the_training_also_of_an_existing_repository(hub, client, tmp_path):
    client()
    open_repository(Publication(tmp_path, REPO))
    client("hf_reader")
    with pytest.raises(UsageError, match="may not write to"):
        open_repository(Publication(tmp_path, REPO))


def test_public_is_not_forced_upon_an_owner_whose_default_is_private(monkeypatch, client, tmp_path):
    client()
    asked = []
    monkeypatch.setattr(HfApi, "create_repo", lambda *args, **options: asked.append(options["private"]))
    for private in (False, True):
        with pytest.raises(UsageError, match="there is no|exists"):
            open_repository(Publication(tmp_path, REPO, private=private))
    assert asked == [None, True]


def test_a_repository_of_another_kind_is_left_as_it_was(hub, client, publication, tmp_path, tiny_config):
    client()
    send(publication, "first")
    export(tmp_path / "encoder", tiny_config())
    other = Publication(tmp_path / "encoder", REPO, gated="manual")
    other = with_export(other)
    with pytest.raises(UsageError, match="take another repo_id"):
        send(other, "second")
    assert not hub.repo(REPO).gated and len(hub.commits(REPO)) == 2


def test_a_hub_that_does_not_answer_is_given_up(client, monkeypatch, tmp_path):
    monkeypatch.setattr("hub.errors.TIMEOUT", 0.2)
    monkeypatch.setattr("hub.errors.PATIENCE", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        client(endpoint=f"http://127.0.0.1:{deaf.getsockname()[1]}")
        begun = time.monotonic()
        with pytest.raises(UsageError, match="does not answer"):
            open_repository(Publication(tmp_path, REPO))
    assert time.monotonic() - begun < 10
    get_session().timeout = None


def test_a_hub_that_cannot_be_reached_is_named_with_the_cause(client, monkeypatch, tmp_path):
    monkeypatch.setattr("hub.errors.PATIENCE", 0)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    client(endpoint=f"http://127.0.0.1:{port}")
    with pytest.raises(UsageError, match=r"\(\w+: .*refused\); see whether there is a network\. ") as told:
        open_repository(Publication(tmp_path, REPO))
    assert "?" not in str(told.value)


@pytest.mark.parametrize("licence", [[], ["--license", "cc-by-4.0"]])
def test_a_card_without_a_licence_is_hinted_at(licence, client, tmp_path, caplog, capsys):
    classifier(tmp_path / "export")
    client()
    given = ["--export_dir", str(tmp_path / "export"), "--repo_id", REPO, "--dry_run", "true"]
    publish_recipe.main([*given, *licence])
    assert "would publish" in capsys.readouterr().out
    assert ("no licence: --license ID" in caplog.text) == (not licence)


def test_a_pull_request_is_not_opened_twice_without_a_word(hub, client, publication):
    client()
    send(publication, "first")
    proposal = Publication(publication.folder, REPO, files=dict(publication.files), create_pr=True)
    with pytest.raises(UsageError, match="there is nothing to propose"):
        send(proposal, "the same")
    proposal.files["README.md"] += b"\nA word more.\n"
    hub.lose_answer("/commit/main")
    with pytest.raises(UsageError, match=f"first see in .*/{REPO}/discussions whether"):
        send(proposal, "another")
    assert "refs/pr/1" in hub.repo(REPO).branches and "refs/pr/2" not in hub.repo(REPO).branches
    for more in ({"gated": "auto"}, {"collection": "All"}, {"tag": "v1"}):
        with pytest.raises(UsageError, match="create_pr takes no"):
            publish_recipe.PublishArguments(str(publication.folder), REPO, create_pr=True, **more)


def test_no_failure_of_publishing_a_checkpoint_stops_the_training(
    hub, client, publication, monkeypatch, caplog, tmp_path
):
    client()
    state = TrainerState(global_step=7, is_world_process_zero=True)
    full, part = OSError(28, "No space left on device"), RuntimeError("upload of a part failed")
    as_it_is = HfApi.create_commit

    def save(when_writing=None, when_sending=None):
        write_export, create_commit = (
            Mock(side_effect=cause) if cause else before
            for cause, before in ((when_writing, lambda: None), (when_sending, as_it_is))
        )
        monkeypatch.setattr(HfApi, "create_commit", create_commit)
        PublishEverySave(publication, write_export).on_save(None, state, TrainerControl())

    save(when_sending=full)
    save(when_sending=part)
    save(when_writing=full)
    with pytest.raises(SafetensorError) as full_disk:  # as the weights are saved
        save_file({"a": torch.zeros(1)}, tmp_path / "not there" / "model.safetensors")
    save(when_writing=full_disk.value)
    told = [record.getMessage() for record in caplog.records if "step 7 is not published" in record.getMessage()]
    assert len(told) == 4 and "upload of a part failed" in told[1] and "the next checkpoint" in told[1]
    assert "No space left" in told[2] and len(hub.commits(REPO)) == 1, "what was not written is not sent"
    save()
    assert hub.commits(REPO)[0].title == "Step 7" and not hub.repo(REPO).tags


@pytest.mark.parametrize("arguments", [PretrainingArguments, FinetuningArguments])
def test_push_to_hub_of_a_recipe_is_for_the_end_and_says_how_to_go_on(arguments, tmp_path):
    given = {"output_dir": str(tmp_path), "push_to_hub": True, "hub_model_id": REPO, "use_cpu": True}
    args = arguments(**given, hub_revision="trial", hub_private_repo=True)
    asked = publication_of_run(args, tmp_path / "export")
    assert args.hub_strategy == "end"
    assert (asked.revision, asked.private) == ("trial", True)
    command = asked.command.split()
    assert command[:2] == ["python", "recipes/publish.py"]
    (again,) = parse_args((publish_recipe.PublishArguments,), ["--export_dir", "/", *command[4:]])
    assert (again.repo_id, again.private, again.revision) == (REPO, True, "trial")


# Data sets


def test_a_data_set_goes_by_publish_and_what_must_not_be_copied_does_not(hub, client, tmp_path):
    write(tmp_path / "config.yaml", b"corpus: gbcu\n")
    write(tmp_path / "README.md", f'---\npretty_name: x\n---\nload_dataset("{DATA_ADDRESS}")\n'.encode())
    with pytest.raises(UsageError, match="must not be published"):
        publish_recipe.PublishArguments(str(tmp_path), "org/images", "dataset")
    asked = publish_recipe.PublishArguments(str(tmp_path), "org/images", "dataset", private=True, collection="All")
    with pytest.raises(UsageError, match="holds no Parquet file"):
        publish_recipe.publication_of(asked)
    write(tmp_path / "data" / "train-0.parquet", b"PAR1")
    client()
    publication, _ = publish_recipe.publication_of(asked)
    assert finish(publication, send(publication, "data")["commit"]) == "v1"
    assert b'load_dataset("org/images")' in hub.files("org/images", repo_type="dataset")["README.md"]
    assert [item["type"] for item in next(iter(hub.collections.values()))["items"]] == ["dataset"]


@pytest.mark.slow
def test_a_cross_validation_is_published_at_its_end(hub, tmp_path):
    for index in range(32):
        write(tmp_path / "raw" / "ab"[index % 2] / f"{index:02d}.png", encode(grey(48, 48, seed=index)))
    prepare(PrepareArguments(data_dir=str(tmp_path / "raw"), output_dir=str(tmp_path / "data"), num_folds=2))
    sizes = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    fast = {
        "intermediate_size": 32,
        "num_train_epochs": 1,
        "per_device_train_batch_size": 4,
        "dataloader_num_workers": 0,
        "use_cpu": True,
    }
    given = [f"{name}={value}" for name, value in (sizes | fast).items()]
    command = [sys.executable, str(ROOT / "recipes" / "cross_validate.py"), "--corpus"]
    command += [str(tmp_path / "data"), "--output_dir", str(tmp_path / "run"), "--finetune_options", *given]
    command += ["--push_to_hub", "true", "--hub_model_id", REPO]

    def run(token: str) -> subprocess.CompletedProcess:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        environment |= hub.environment(tmp_path / "home", token)
        return subprocess.run(command, capture_output=True, text=True, env=environment)

    done = run("hf_reader")
    assert done.returncode == 1 and "may not write" in done.stderr and not (tmp_path / "run").exists()
    for _ in range(2):  # the second time, everything is there already
        done = run("hf_writer")
        assert done.returncode == 0 and "verified     BeitForImageClassification" in done.stdout, done.stderr
    assert len(hub.commits(REPO)) == 2 and set(hub.repo(REPO).tags) == {"v1"}
    sent = hub.files(REPO)
    assert {"summary.json", "curves.png", "model.safetensors"} <= set(sent) and "predictions.parquet" not in sent
    assert str(tmp_path).encode() not in b"".join(sent.values())
    assert_tables_are_whole(sent["README.md"].decode())
