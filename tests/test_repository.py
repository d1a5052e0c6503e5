"""A repository that is not ours or not only ours, what is loaded back, and what is shown: in this process."""

import hashlib
import importlib
import json
import re
import shutil
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import Mock

import datasets
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from helpers import encode, grey, write
from huggingface_hub import HfApi
from huggingface_hub.utils.sha import git_hash
from safetensors.torch import load_file, save, save_file
from test_publish import OF_THE_REPOSITORY, REPO, classifier, exported, trained  # noqa: F401 - fixtures

import publish as publish_recipe
from commandline import UsageError
from hub.contents import with_export
from hub.publication import Publication
from hub.repository import MANIFEST, open_repository, send, verify
from hub.repository import publish as publish_hub
from images import splits
from images.arguments import PrepareArguments
from prepare_corpus import prepare

THEIRS = {
    "model": {"README.md": b"# Ours for years", "unet/weights.safetensors": b"\0w", "pipeline.py": b"a = 1\n"},
    "dataset": {"README.md": b"# Ours for years", "data/train.parquet": b"\0p", "loader.py": b"a = 1\n"},
    "space": {"README.md": b"---\nsdk: gradio\n---\n# Ours for years", "app.py": b"a = 1\n"},
}


def ours(repo_type: str, classifier: Path, folder: Path) -> list[str]:
    """Something to publish as such a repository: options of publish.py."""
    if repo_type == "dataset":
        features = Features(
            {"image": datasets.Image(), "label": ClassLabel(names=["a", "b"]), "sha256": Value("string")}
        )
        rows = [(encode(grey(seed=index)), index % 2) for index in range(4)]
        columns = {
            "image": [{"bytes": image, "path": None} for image, _ in rows],
            "label": [label for _, label in rows],
        }
        columns["sha256"] = [hashlib.sha256(image).hexdigest() for image, _ in rows]
        write(folder / "data" / "train-00000-of-00001.parquet", b"")
        Dataset.from_dict(columns, features).to_parquet(folder / "data" / "train-00000-of-00001.parquet")
        write(folder / "README.md", b"---\npretty_name: x\n---\n# Tiny data set\n")
    elif repo_type == "space":
        write(folder / "README.md", b"---\nsdk: gradio\n---\n# Tiny space\n")
        write(folder / "app.py", b"b = 2\n")
    else:
        folder = classifier
    return ["--export_dir", str(folder), "--repo_id", REPO, "--repo_type", repo_type]


def only_read(hub, since: int) -> bool:
    return {method for method, _, _ in hub.requests[since:]} <= {"GET", "HEAD"}


@pytest.mark.parametrize("repo_type", ["model", "dataset", "space"])
def test_what_others_wrote_is_replaced_only_if_one_says_so(
    hub, client, verified_here, classifier, tmp_path, capsys, repo_type
):
    client()
    HfApi(endpoint=hub.endpoint, token="hf_writer").create_repo(REPO, repo_type=repo_type, space_sdk="gradio")
    hub.commit(REPO, "by others", THEIRS[repo_type], repo_type)
    before, given = hub.files(REPO, repo_type=repo_type), ours(repo_type, classifier, tmp_path / "ours")
    for more in ([], ["--dry_run", "true"], ["--revision", "trial"], ["--create_pr", "true"]):
        with pytest.raises(SystemExit, match=r"holds README.md, .*, and no \.glcm_mae_files.json.* --replace true"):
            publish_recipe.main([*given, *more])
    assert hub.files(REPO, repo_type=repo_type) == before and set(hub.repo(REPO, repo_type).branches) == {"main"}

    begun = len(hub.requests)
    publish_recipe.main([*given, "--replace", "true", "--dry_run", "true"])
    said, others = capsys.readouterr().out, [name for name in THEIRS[repo_type] if name not in ("README.md", "app.py")]
    assert re.findall(r"would delete +(.*)", said) == sorted(others)
    assert "overwrites    README.md, which others have written" in said
    assert only_read(hub, begun) and hub.files(REPO, repo_type=repo_type) == before

    for _ in range(2):  # the second time, it is ours
        publish_recipe.main([*given, "--replace", "true"])
        sent = hub.files(REPO, repo_type=repo_type)
        assert not set(sent).intersection(others) and b"Ours for years" not in sent["README.md"]
    publish_recipe.main(given)
    assert len(hub.commits(REPO, repo_type)) == 3 and hub.repo(REPO, repo_type).tags.keys() == {"v1"}
    assert ("rows are the same" in capsys.readouterr().out) == (repo_type == "dataset")


def test_only_what_our_last_commit_wrote_is_deleted(hub, client, classifier, caplog):
    client()
    publication = Publication(classifier, REPO)
    publication = with_export(publication)
    files = publication.files
    publication.files = files | {"stale.py": b"a = 1\n", "stale.safetensors": b"\0s", "edited.py": b"a = 1\n"}
    send(publication, "first")
    assert json.loads(hub.files(REPO)[MANIFEST])["files"] == {
        name: {"sha256": hashlib.sha256(data).hexdigest(), "git_blob": git_hash(data)}
        for name, data in hub.files(REPO).items()
        if name not in OF_THE_REPOSITORY
    }
    others = {"added.py": b"b = 2\n", "added.safetensors": b"\0a", "edited.py": b"b = 2\n", "README.md": b"Edited"}
    hub.commit(REPO, "by others", others)
    publication.files = files
    for message in ("second", "third"):
        send(publication, message)
        stay = {"added.py", "added.safetensors", "edited.py"}
        assert set(hub.files(REPO)) == {*files, *OF_THE_REPOSITORY, *stay}
        assert all(hub.files(REPO)[name] == others[name] for name in stay)
    assert len(hub.commits(REPO)) == 4, "the third time, there is nothing to send"
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [said for said in warned if "overwrites" in said] == [
        "overwrites README.md, which others have written or changed"
    ]


@pytest.mark.parametrize(
    ("card", "taken"),
    [
        (b"---\nlicense: mit\n---\n", True),
        (b"---\nsdk: gradio\n---\n\nCheck out the configuration reference at https://hub/docs\n", True),
        (b"---\nlicense: mit\n---\n# My model\n", False),
    ],
)
def test_a_repository_with_only_the_card_that_the_hub_makes_is_free(hub, client, tmp_path, card, taken):
    client()
    HfApi(endpoint=hub.endpoint, token="hf_writer").create_repo(REPO)
    hub.commit(REPO, "by the Hub", {"README.md": card})
    with nullcontext() if taken else pytest.raises(UsageError, match="holds README.md, and no .glcm_mae_files.json"):
        open_repository(Publication(tmp_path, REPO))


@pytest.mark.parametrize("content", [b"{", b"[]", b"{}", b'{"files": ["a.py"]}', b'{"files": {"a.py": "x"}}'])
def test_a_list_of_files_that_is_not_as_we_write_it_is_told(hub, client, tmp_path, content):
    client()
    HfApi(endpoint=hub.endpoint, token="hf_writer").create_repo(REPO)
    hub.commit(REPO, "by others", {MANIFEST: content})
    with pytest.raises(UsageError, match=r"\.glcm_mae_files.json of .* is not as publish.py writes it .* --replace"):
        open_repository(Publication(tmp_path, REPO))


@pytest.mark.parametrize("recipe", ["pretrain", "finetune", "cross_validate"])
def test_a_repository_that_is_not_ours_is_known_before_the_training(hub, client, exported, tmp_path, recipe):
    client()
    HfApi(endpoint=hub.endpoint, token="hf_writer").create_repo(REPO)
    hub.commit(REPO, "by others", THEIRS["model"])
    for index in range(16):
        write(tmp_path / "raw" / "ab"[index % 2] / f"{index:02d}.png", encode(grey(32, 32, seed=index)))
    options = {"corpus": tmp_path / "raw", "output_dir": tmp_path / "run", "push_to_hub": True, "hub_model_id": REPO}
    if recipe == "pretrain":
        options |= {"model_name_or_path": exported / "pretraining", "held_out": 0, "use_cpu": True}
        options |= {"per_device_train_batch_size": 4, "num_train_epochs": 1}
    else:
        prepare(PrepareArguments(data_dir=str(tmp_path / "raw"), output_dir=str(tmp_path / "data"), num_folds=3))
        options["corpus"] = tmp_path / "data"
    if recipe == "finetune":
        options |= {"model_name_or_path": exported, "mode": "linear_probe", "use_cpu": True}
    elif recipe == "cross_validate":
        options["folds"] = "7"  # which there is not: known later
    write(tmp_path / "run" / "mine.txt", b"x")
    with pytest.raises(SystemExit, match="no .glcm_mae_files.json"):
        importlib.import_module(recipe).main([text for name in options for text in (f"--{name}", str(options[name]))])
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["mine.txt"], "nothing was begun"
    assert len(hub.commits(REPO)) == 2


def test_images_are_hashed_once_however_often_a_checkpoint_is_published(hub, client, monkeypatch, tmp_path):
    import pretrain

    client()
    for index in range(12):
        write(tmp_path / "raw" / f"{index:02d}.png", encode(grey(32, 32, seed=index)))
    hashed = Mock(side_effect=splits.image_sha256)
    monkeypatch.setattr("images.splits.image_sha256", hashed)
    monkeypatch.setattr("training.run.publish", Mock(return_value=[]))  # it would start a process
    given = {"corpus": tmp_path / "raw", "output_dir": tmp_path / "run", "image_size": 32, "patch_size": 8}
    for part in ("", "decoder_"):
        given |= {f"{part}hidden_size": 32, f"{part}num_hidden_layers": 1, f"{part}num_attention_heads": 2}
        given |= {f"{part}intermediate_size": 64}
    given |= {"held_out": 0, "glcm_weight": 0, "per_device_train_batch_size": 4, "num_train_epochs": 2}
    given |= {"learning_rate": 1e-3, "dataloader_num_workers": 0, "use_cpu": True, "disable_tqdm": True}
    given |= {"push_to_hub": True, "hub_model_id": REPO, "hub_strategy": "every_save"}
    pretrain.main([text for name in given for text in (f"--{name}", str(given[name]))])
    assert [commit.title for commit in hub.commits(REPO)] == ["Step 6", "Step 3", "initial commit"]
    digests = {hashlib.sha256(file.read_bytes()).hexdigest() for file in (tmp_path / "raw").iterdir()}
    assert set(hub.files(REPO)["training_images.txt"].decode().split()) == digests
    assert hashed.call_count == len(digests)


@pytest.fixture
def publication(classifier, tmp_path) -> Publication:
    """Of a copy of the classifier, which a test may change."""
    found = Publication(shutil.copytree(classifier, tmp_path / "export"), REPO)
    found = with_export(found)
    return found


def changed_weights(folder: Path) -> bytes:
    weights = load_file(folder / "model.safetensors")
    return save({name: weight + 0.1 for name, weight in weights.items()}, {"format": "pt"})


def test_loading_back_compares_what_is_at_the_commit(hub, client, verified_here, publication):
    client()
    first = send(publication, "first")["commit"]
    spoilt = {"model.safetensors": changed_weights(publication.folder), "preprocessor_config.json": b"{"}
    second = hub.commit(REPO, "by others", spoilt).sha
    assert verify(publication, first, publication.folder) == [
        "ViTForImageClassification gives the same answers from the Hub as from the folder"
    ]
    with pytest.raises(UsageError, match=rf"commit {second}.* does not load back: .*answers otherwise"):
        verify(publication, second, publication.folder)


def test_a_weight_that_is_missing_is_noticed_although_a_new_one_is_the_same(hub, client, verified_here, publication):
    file = publication.folder / "model.safetensors"
    weights = load_file(file)
    assert not weights.pop("classifier.bias").any(), "as it is made anew where it is missing"
    save_file(weights, file, {"format": "pt"})
    client()
    with pytest.raises(UsageError, match=r"which gets no tag\), but does not load back: .*'classifier.bias'"):
        list(publish_hub(publication, "first", publication.folder))
    assert len(hub.commits(REPO)) == 2 and not hub.repo(REPO).tags


def test_no_tag_and_no_collection_before_it_has_loaded_back(hub, client, verified_here, publication, monkeypatch):
    client()
    publication.collection = "All"
    seen = []

    def look(*given):
        seen.append((dict(hub.repo(REPO).tags), dict(hub.collections)))
        return verify(*given)

    monkeypatch.setattr("hub.repository.verify", look)
    *_, last = publish_hub(publication, "first", publication.folder)
    assert seen == [({}, {})] and last == "tag          v1" and len(hub.collections) == 1


@pytest.mark.parametrize("fault", ["row", "column", "split"])
def test_a_data_set_is_loaded_back_row_by_row(hub, client, verified_here, classifier, tmp_path, fault):
    folder = tmp_path / "ours"
    ours("dataset", classifier, folder)
    client()
    publication, _ = publish_recipe.publication_of(publish_recipe.PublishArguments(str(folder), REPO, "dataset"))
    first = send(publication, "first")["commit"]
    assert verify(publication, first, folder) == ["train: 4 rows are the same on the Hub as in the folder"]
    table, name = Dataset.from_parquet(str(folder / "data" / "train-00000-of-00001.parquet")), "train-00000-of-00001"
    if fault == "row":
        table = table.select([0, 1, 2])
    elif fault == "column":
        table = table.remove_columns("label")
    else:
        name = "test-00000-of-00001"
    table.to_parquet(tmp_path / "other.parquet")
    other = {f"data/{name}.parquet": (tmp_path / "other.parquet").read_bytes()}
    second = hub.commit(REPO, "by others", other, "dataset").sha
    message = {"row": "row 3 is not as in", "column": "other columns", "split": "has the splits"}[fault]
    with pytest.raises(UsageError, match=f"does not load back: .*{message}"):
        verify(publication, second, folder)


def test_private_is_private_from_the_first_moment(hub, client, verified_here, classifier, capsys):
    client()
    given = ["--export_dir", str(classifier), "--repo_id", REPO]
    # Nobody but its owner can load it back, and here nobody is logged in.
    with pytest.raises(SystemExit, match="does not load back"):
        publish_recipe.main([*given, "--private", "true"])
    assert hub.repo(REPO).private and len(hub.commits(REPO)) == 2
    hub.repo(REPO).private = False
    before = hub.files(REPO)
    with pytest.raises(SystemExit, match="exists and is public, and private was asked for"):
        publish_recipe.main([*given, "--private", "true"])
    assert hub.files(REPO) == before


def test_a_pickle_and_a_checkpoint_are_left_out_and_named(hub, client, publication):
    for name in ("training_args.bin", "checkpoint-3/model.safetensors", ".cache/a.json", "optimizer.pt"):
        write(publication.folder / name, b"x")
    publication = with_export(publication)
    client()
    send(publication, "first")
    assert set(publication.left_out) == {
        *("training_args.bin", "checkpoint-3/model.safetensors", ".cache/a.json", "optimizer.pt")
    }
    assert set(hub.files(REPO)) == {*publication.files, *OF_THE_REPOSITORY}
    assert not publication.left_out.keys() & hub.files(REPO).keys()
