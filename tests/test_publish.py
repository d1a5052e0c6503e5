"""publish.py and push_to_hub against a Hub on this machine, by the real clients over HTTP."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import encode, grey, write
from huggingface_hub import ModelCard
from transformers import ViTConfig, ViTForImageClassification, pipeline

from modeling_glcm_mae import GLCMMAEForPreTraining
from recipe_data import ImageTransform
from recipe_export import ADDRESS, write_classifier, write_export
from recipe_summary import summarise

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
REPO = "org/glcm-mae-tiny"


@pytest.fixture(scope="module")
def exported(tmp_path_factory, tiny_config) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("publish") / "export"
    processor = ImageTransform(32, resize="squash").processor()
    facts = {"title": "Tiny", "repo_id": ADDRESS, "corpus": "speckle"}
    write_export(folder, GLCMMAEForPreTraining(tiny_config("texture")), processor, {"config.yaml": "a: 1\n"}, [], facts)
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    names = {0: "benign", 1: "malignant"}
    config = ViTConfig(
        **{"image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
        **{"intermediate_size": 64, "id2label": names, "label2id": {name: index for index, name in names.items()}},
    )
    model = ViTForImageClassification(config)
    model.config.architectures = ["ViTForImageClassification"]
    folder = tmp_path_factory.mktemp("publish") / "classifier"
    facts = {"title": "Tiny classifier", "repo_id": ADDRESS, "corpus": "speckle", "fold": "0", "mode": "finetune"}
    facts |= {"counts": {"train": 8, "validation": 2, "test": 2}, "pooling": "cls", "values": {"accuracy": 0.5}}
    facts |= {"figures": [("accuracy", "0.500", "0.250 to 0.750")], "base_model": None, "deep": False}
    write_classifier(
        folder, model, ImageTransform(32, resize="squash").processor(), {"config.yaml": "a: 1\n"}, [], facts
    )
    return folder


def run(hub, home: Path, recipe: str, *options: object, token: str | None = "hf_writer", **environment: str):
    given = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    command = [sys.executable, str(RECIPES / f"{recipe}.py"), *map(str, options)]
    given |= hub.environment(home, token) | environment
    return subprocess.run(command, capture_output=True, text=True, env=given, timeout=240)


def publish(hub, home: Path, folder: Path, *options: object, repo_id: str = REPO, **more):
    return run(hub, home, "publish", "--export_dir", folder, "--repo_id", repo_id, *options, **more)


def python(hub, home: Path, script: str, token: str | None = "hf_reader") -> dict:
    """Run `script` in a process that cannot import the package; it fills the dict `found`."""
    hidden = "import json, sys\nsys.modules['modeling_glcm_mae'] = None\nfound = {}\n"
    given = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    given |= hub.environment(home, token)
    command = [sys.executable, "-c", hidden + script + "\nprint(json.dumps(found))"]
    done = subprocess.run(command, capture_output=True, text=True, env=given, timeout=240)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_both_kinds_are_published_and_open_in_plain_transformers(hub, exported, classifier, tmp_path):
    (tmp_path / "sent").mkdir()
    folder = shutil.copytree(exported, tmp_path / "sent" / "export")
    (folder / "training_args.bin").write_bytes(b"a pickle")
    done = publish(hub, tmp_path / "a", folder, "--collection", "GLCM-MAE")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("gives the same answers from the Hub as from the folder") == 2
    assert "left out training_args.bin" in done.stderr
    done = publish(hub, tmp_path / "a", classifier, "--collection", "GLCM-MAE", repo_id=f"{REPO}-finetuned")
    assert done.returncode == 0, done.stderr

    for repo_id, local in ((REPO, exported), (f"{REPO}-finetuned", classifier)):
        sent = hub.files(repo_id)
        names = {path.relative_to(local).as_posix() for path in local.rglob("*") if path.is_file()}
        assert set(sent) == names | {".gitattributes"}
        assert sent["model.safetensors"] == (local / "model.safetensors").read_bytes()
        assert repo_id.encode() in sent["README.md"] and ADDRESS.encode() not in sent["README.md"]
        assert len(hub.commits(repo_id)) == 2 and set(hub.repo(repo_id).tags) == {"v1"}
    (collection,) = hub.collections.values()
    assert [item["id"] for item in collection["items"]] == [REPO, f"{REPO}-finetuned"]

    # Every block of code of both cards, as a stranger runs it.
    write(tmp_path / "image.png", encode(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)))
    for repo_id, count in ((REPO, 3), (f"{REPO}-finetuned", 1)):
        blocks = re.findall(r"```python\n(.*?)```", hub.files(repo_id)["README.md"].decode(), re.DOTALL)
        assert len(blocks) == count
        opened = f"from PIL import Image\nimage = Image.open({str(tmp_path / 'image.png')!r})\n"
        python(hub, tmp_path / "c", opened + "\n".join(blocks))
    widget = ModelCard(hub.files(f"{REPO}-finetuned")["README.md"].decode()).data.widget
    assert len(widget) == 2
    classify = pipeline("image-classification", str(classifier))
    for example in widget:
        answers = {row["label"]: row["score"] for row in classify(str(classifier / example["src"]))}
        assert {row["label"]: row["score"] for row in example["output"]} == pytest.approx(answers, abs=1e-4)

    pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    write(tmp_path / "image.png", encode(pixels))
    found = python(
        hub,
        tmp_path / "b",
        f"""
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification, AutoModelForPreTraining
from transformers import pipeline
image = Image.open({str(tmp_path / "image.png")!r})
pixels = AutoImageProcessor.from_pretrained({REPO!r})(images=image, return_tensors="pt")["pixel_values"]
encoder, report = AutoModel.from_pretrained({REPO!r}, output_loading_info=True)
local = AutoModel.from_pretrained({str(exported)!r})
with torch.no_grad():
    first, second, third = encoder(pixels), encoder(pixels), local(pixels)
found["type"] = type(encoder).__module__ + "." + type(encoder).__name__
found["missing"] = sorted(report["missing_keys"])
found["tokens"] = first.last_hidden_state.shape[1]
found["equal"] = [torch.equal(first[name], other[name]) for other in (second, third)
                  for name in ("last_hidden_state", "pooler_output")]
whole = AutoModelForPreTraining.from_pretrained({REPO!r}, subfolder="pretraining", trust_remote_code=True)
kept = AutoModelForPreTraining.from_pretrained({str(exported)!r}, subfolder="pretraining", trust_remote_code=True)
noise = torch.rand(1, 16, generator=torch.Generator().manual_seed(0))
found["class"] = type(whole).__name__
found["losses"] = [model.eval()(pixels, noise=noise).loss.item() for model in (whole, kept)]
found["head"] = type(AutoModelForImageClassification.from_pretrained({REPO!r})).__name__
found["answers"] = [pipeline("image-classification", source)(image)
                    for source in ({REPO + "-finetuned"!r}, {str(classifier)!r})]
found["features"] = len(pipeline("image-feature-extraction", {REPO!r})(image)[0])
""",
    )
    assert found["type"].startswith("transformers.") and found["type"].endswith(".ViTModel")
    assert found["missing"] == [] and found["tokens"] == 17 and found["equal"] == [True] * 4
    assert found["class"] == "GLCMMAEForPreTraining" and found["losses"][0] == pytest.approx(found["losses"][1], 1e-6)
    assert found["head"] == "ViTForImageClassification" and found["features"] == 17
    assert found["answers"][0] == found["answers"][1] and {row["label"] for row in found["answers"][0]} == {
        *("benign", "malignant")
    }


def test_again_makes_no_second_commit_and_a_change_makes_one(hub, classifier, tmp_path):
    folder = shutil.copytree(classifier, tmp_path / "classifier")
    for _ in range(2):
        done = publish(hub, tmp_path / "a", folder)
        assert done.returncode == 0, done.stderr
    assert len(hub.commits(REPO)) == 2 and set(hub.repo(REPO).tags) == {"v1"}
    (folder / "README.md").write_text((folder / "README.md").read_text() + "\nA word more.\n")
    assert publish(hub, tmp_path / "a", folder).returncode == 0
    assert len(hub.commits(REPO)) == 3 and set(hub.repo(REPO).tags) == {"v1", "v2"}
    assert hub.files(REPO, "v2")["README.md"].endswith(b"A word more.\n")
    assert hub.repo(REPO).tags["v2"] == hub.repo(REPO).branches["main"]


@pytest.mark.parametrize("fault", ["every third write fails", "an upload is cut", "the answer is lost"])
def test_a_fault_is_got_over_with_one_commit(hub, classifier, tmp_path, fault):
    if fault == "every third write fails":
        hub.fail("POST|PUT", "(?<!validate-yaml)$", every=3, times=None)
    elif fault == "an upload is cut":
        hub.cut("^/lfs/", after_bytes=10_000)
    else:
        hub.lose_answer("/commit/main")
    done = publish(hub, tmp_path / "a", classifier)
    if done.returncode:  # a fault that the client itself gives up on
        hub.mend()
        assert "the same command goes on" in done.stderr.splitlines()[-1], done.stderr
        done = publish(hub, tmp_path / "a", classifier)
    assert done.returncode == 0, done.stderr
    assert len(hub.commits(REPO)) == 2 and "verified" in done.stdout
    assert any(status == 503 for _, _, status in hub.requests) == ("fails" in fault)


def test_a_token_revoked_half_way_is_one_message_and_the_rest_goes_on(hub, classifier, tmp_path):
    before = {path: path.read_bytes() for path in classifier.rglob("*") if path.is_file()}
    hub.revoke_after("hf_writer", 3)
    done = publish(hub, tmp_path / "a", classifier)
    assert done.returncode == 1
    assert "the access token is not valid (any more)" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    hub.add_user("org", "hf_writer")
    assert publish(hub, tmp_path / "a", classifier).returncode == 0
    assert len(hub.commits(REPO)) == 2
    assert before == {path: path.read_bytes() for path in classifier.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("token", "environment", "message"),
    [
        ("hf_wrong", {}, "the access token is not valid"),
        (None, {}, "there is no access token: run `hf auth login`"),
        ("hf_reader", {}, "may not write to"),
        ("hf_writer", {"HF_ENDPOINT": "http://127.0.0.1:9"}, "http://127.0.0.1:9 cannot be reached"),
    ],
)
def test_who_may_not_write_is_told_so(hub, classifier, tmp_path, token, environment, message):
    if environment:
        environment = environment | {"PYTHONPATH": str(tmp_path)}
        write(tmp_path / "sitecustomize.py", b"import time\ntime.sleep = lambda seconds: None\n")
    done = publish(hub, tmp_path / "a", classifier, token=token, **environment)
    assert done.returncode == 1
    assert message in done.stderr.splitlines()[-1] and "untouched" in done.stderr.splitlines()[-1]
    assert not hub.repos


def test_dry_run_shows_files_and_card_and_sends_nothing(hub, exported, tmp_path):
    done = publish(hub, tmp_path / "a", exported, "--dry_run", "true", "--license", "cc-by-4.0", token=None)
    assert done.returncode == 0, done.stderr
    assert "pretraining/model.safetensors" in done.stdout and "license: cc-by-4.0" in done.stdout
    assert f'AutoModel.from_pretrained("{REPO}")' in done.stdout
    assert hub.requests == []


@pytest.mark.slow
def test_private_gated_branch_and_pull_request(hub, classifier, tmp_path):
    done = publish(hub, tmp_path / "a", classifier, "--private", "true", "--gated", "manual")
    assert done.returncode == 0, done.stderr
    assert hub.repo(REPO).private and hub.repo(REPO).gated == "manual"
    folder = shutil.copytree(classifier, tmp_path / "classifier")
    (folder / "README.md").write_text((folder / "README.md").read_text() + "\nA word more.\n")
    done = publish(hub, tmp_path / "a", folder, "--create_pr", "true")
    assert done.returncode == 0 and f"{REPO}/discussions/1" in done.stdout, done.stderr
    assert len(hub.commits(REPO)) == 2 and hub.files(REPO, "refs/pr/1")["README.md"].endswith(b"A word more.\n")
    done = publish(hub, tmp_path / "a", folder, "--revision", "trial")
    assert done.returncode == 0 and len(hub.commits(REPO)) == 2, done.stderr
    assert hub.files(REPO, "trial")["README.md"].endswith(b"A word more.\n")
    hub.repo(REPO).private = False
    done = publish(hub, tmp_path / "a", folder, "--private", "true")
    assert done.returncode == 1 and "exists and is public, and private was asked for" in done.stderr


def spoilt(kind: str, folder: Path, outside: Path) -> str:
    """Break the export in some way; returns what the message must say."""
    config = json.loads((folder / "config.json").read_text())
    if kind == "link":
        (folder / "notes.txt").symlink_to(write(outside / "secret.txt", b"x"))
        return "notes.txt is a link to"
    if kind == "env":
        write(folder / ".env", b"A=1")
        return ".env looks like a secret by its name"
    if kind == "token":
        write(folder / "config.yaml", b"a: 1\nhub_token: hf_" + b"aB3" * 11 + b"\n")
        return "config.yaml, line 2, holds what looks like an access token"
    if kind == "auto_map":
        config["auto_map"] = {"AutoConfig": "configuration_glcm_mae.GLCMMAEConfig"}
        write(folder / "config.json", json.dumps(config).encode())
        return "a ViTForImageClassification has no use for auto_map"
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    return "config.json has no .safetensors file beside it"


@pytest.mark.parametrize("kind", ["link", "env", "token", "auto_map", "pickle"])
def test_what_must_not_be_published_is_refused(kind, classifier, tmp_path, capsys):
    import publish as recipe

    folder = shutil.copytree(classifier, tmp_path / "classifier")
    message = spoilt(kind, folder, tmp_path)
    with pytest.raises(SystemExit) as stopped:
        recipe.main(["--export_dir", str(folder), "--repo_id", REPO, "--dry_run", "true"])
    assert message in str(stopped.value) and "aB3" not in str(stopped.value)


@pytest.mark.slow
def test_an_encoder_does_not_take_the_place_of_a_classifier(hub, exported, classifier, tmp_path):
    assert publish(hub, tmp_path / "a", classifier).returncode == 0
    done = publish(hub, tmp_path / "a", exported)
    assert done.returncode == 1 and "take another repo_id" in done.stderr.splitlines()[-1]
    assert len(hub.commits(REPO)) == 2


def test_pretraining_publishes_at_every_save_and_at_the_end(hub, tmp_path):
    for index in range(16):
        write(tmp_path / "images" / f"{index:02d}.png", encode(grey(40, 48, seed=index)))
    sizes = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    sizes |= {"intermediate_size": 32, "decoder_hidden_size": 32, "decoder_num_hidden_layers": 1}
    sizes |= {"decoder_num_attention_heads": 4, "decoder_intermediate_size": 32, "dataloader_num_workers": 0}
    given = sizes | {"corpus": tmp_path / "images", "held_out": 4, "num_train_epochs": 2, "learning_rate": 1e-3}
    given |= {"per_device_train_batch_size": 4, "output_dir": tmp_path / "run", "num_pictures": 0, "use_cpu": True}
    given |= {"push_to_hub": True, "hub_model_id": REPO, "hub_strategy": "every_save"}
    options = [text for name, value in given.items() for text in (f"--{name}", str(value))]
    done = run(hub, tmp_path / "a", "pretrain", *options, token="hf_reader")
    assert done.returncode == 1 and "may not write" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "run" / "metrics.jsonl").exists(), "known before the first step"

    done = run(hub, tmp_path / "a", "pretrain", *options)
    assert done.returncode == 0, done.stderr
    assert [commit.title for commit in hub.commits(REPO)][-3:] == ["Step 6", "Step 3", "initial commit"]
    assert set(hub.repo(REPO).tags) == {"v1"}
    sent = hub.files(REPO)
    assert sent["model.safetensors"] == (tmp_path / "run" / "export" / "model.safetensors").read_bytes()
    assert not any(name.endswith(".bin") for name in sent) and b"push_to_hub: true" in sent["config.yaml"]


def test_a_data_set_is_pushed_and_loads_whole_and_as_a_stream(hub, tmp_path):
    for index in range(24):
        write(tmp_path / "raw" / "ab"[index % 2] / f"{index:02d}.png", encode(grey(48, 48, seed=index)))
    options = ("--data_dir", tmp_path / "raw", "--output_dir", tmp_path / "data", "--push_to_hub", "org/images")
    done = run(hub, tmp_path / "a", "prepare_corpus", *options, "--num_folds", 2, "--salt", "a-secret")
    assert done.returncode == 0, done.stderr
    sent = hub.files("org/images", repo_type="dataset")
    assert not any(b"a-secret" in content for content in sent.values())
    found = python(
        hub,
        tmp_path / "b",
        """
from datasets import load_dataset
found["rows"] = len(load_dataset("org/images")["train"])
found["names"] = sorted(row["file_name"] for row in load_dataset("org/images", split="train", streaming=True))
""",
    )
    assert found["rows"] == 24 and found["names"][0] == "a/00.png"


def test_the_demo_and_the_metric_are_published_as_spaces(hub, tmp_path):
    root = RECIPES.parent
    done = publish(hub, tmp_path / "a", root / "hub_cards" / "space", "--repo_type", "space", repo_id="org/demo")
    assert done.returncode == 0, done.stderr
    sent = set(hub.files("org/demo", repo_type="space"))
    assert sent >= {"app.py", "requirements.txt", "modeling_glcm_mae/glcm.py", "corpora/folder.py", "recipe_overlay.py"}
    metric = RECIPES / "metrics" / "medical_classification"
    done = publish(hub, tmp_path / "a", metric, "--repo_type", "space", repo_id="org/medical_classification")
    assert done.returncode == 0, done.stderr
    found = python(
        hub,
        tmp_path / "b",
        """
import evaluate
metric = evaluate.load("org/medical_classification")
found["accuracy"] = metric.compute(predictions=[[0.8, 0.2], [0.1, 0.9]], references=[0, 1])["accuracy"]
""",
    )
    assert found == {"accuracy": 1.0}


def test_a_pickle_beside_our_weights_is_never_opened(hub, classifier, tmp_path):
    assert publish(hub, tmp_path / "a", classifier).returncode == 0
    trap = tmp_path / "opened"
    code = f"import os\nos.mkdir({str(trap)!r})"
    pickle = b"cbuiltins\nexec\n(V" + code.replace("\n", "\\u000a").encode() + b"\ntR."
    hub.commit(REPO, "by someone else", {"pytorch_model.bin": pickle, "training_args.bin": pickle})
    python(
        hub,
        tmp_path / "b",
        f"""
from transformers import AutoModel, AutoModelForImageClassification, pipeline
pipeline("image-classification", {REPO!r}), AutoModel.from_pretrained({REPO!r})
""",
    )
    assert not trap.exists()
    subprocess.run([sys.executable, "-c", f"import pickle; pickle.loads({pickle!r})"], check=True)
    assert trap.is_dir(), "the trap itself works"


def test_a_full_disk_while_checking_is_one_message_and_the_commit_stays(hub, classifier, tmp_path):
    # A limit on the size of a file stands in for the full disk: the write fails in the same place.
    limited = "import resource, runpy, sys\nresource.setrlimit(resource.RLIMIT_FSIZE, (40000, 40000))\nimport signal\n"
    limited += "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nsys.path.insert(0, sys.argv[1])\n"
    limited += "sys.argv = sys.argv[2:]\nrunpy.run_path(sys.argv[0], run_name='__main__')"
    given = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    command = [sys.executable, "-c", limited, str(RECIPES), str(RECIPES / "publish.py")]
    command += ["--export_dir", str(classifier), "--repo_id", REPO]
    given |= hub.environment(tmp_path / "a", "hf_writer")
    done = subprocess.run(command, capture_output=True, text=True, env=given, timeout=240)
    assert done.returncode == 1
    assert "is published" in done.stderr.splitlines()[-1] and "does not load back" in done.stderr.splitlines()[-1]
    done = publish(hub, tmp_path / "a", classifier)
    assert done.returncode == 0 and "verified" in done.stdout, done.stderr
    assert len(hub.commits(REPO)) == 2


def test_a_cross_validation_is_published_with_the_figures_of_all_folds(classifier, tmp_path, capsys):
    import publish as recipe

    rng = np.random.default_rng(0)
    count = 40
    scores = rng.random(count)
    table = pd.DataFrame({"fold": np.arange(count) % 2, "file_name": [f"{i}.png" for i in range(count)]})
    table["group"], table["label"] = table["file_name"], rng.integers(0, 2, count)
    table["prediction"] = (scores > 0.5).astype(int)
    table["probability_benign"], table["probability_malignant"] = 1 - scores, scores
    summary = summarise(table)
    write(tmp_path / "run" / "summary.json", json.dumps(summary).encode())
    write(tmp_path / "run" / "curves.png", encode(grey()))
    for fold in (0, 1):
        shutil.copytree(classifier, tmp_path / "run" / f"fold_{fold}" / "finetune" / "export")
    given = ["--export_dir", str(tmp_path / "run"), "--repo_id", REPO, "--dry_run", "true"]
    recipe.main([*given, "--fold", "1"])
    shown = capsys.readouterr().out
    assert "classifier of fold 1 of 2" in shown and "curves.png" in shown and "fold_" not in shown
    pooled = summary["figures"]["auroc"]["pooled"]
    assert f"| {pooled['value']:.3f} | {pooled['low']:.3f} to {pooled['high']:.3f} |" in shown
    assert "## Result on the test part" not in shown
    card = ModelCard(shown[shown.index("\n---\n") + 1 :])
    values = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert values["auroc"] == pytest.approx(pooled["value"], abs=1e-4) and values["accuracy"] != 0.5
    with pytest.raises(SystemExit, match=r"fold '7' has no export .* allowed are 0, 1"):
        recipe.main([*given, "--fold", "7"])
