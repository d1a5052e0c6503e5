"""publish.py and push_to_hub against a Hub on this machine, by the real clients over HTTP.

Tests marked `plain` open what was published as strangers do, by the interpreter of PLAIN_PYTHON: that of an environment
with torch, transformers and pillow only, from `make test-plain`. By default it is the one that runs the tests.
"""

import copy
import csv
import hashlib
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
from huggingface_hub import HfApi, ModelCard
from PIL import Image
from transformers import (
    AutoImageProcessor,
    ViTConfig,
    ViTForImageClassification,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    pipeline,
)

import publish as publish_recipe
from hub.cards import ADDRESS
from hub.export import write_classifier, write_export
from hub.repository import MANIFEST
from images.transform import ImageTransform
from judging.summary import summarise
from modeling_glcm_mae import GLCMMAEForPreTraining
from output_folder import WRITTEN_LIST
from training.models import with_mean_pooling

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
REPO = "org/glcm-mae-tiny"
OF_THE_REPOSITORY = {".gitattributes", MANIFEST}  # beside what was published
PLAIN_PYTHON = os.environ.get("PLAIN_PYTHON", sys.executable)


@pytest.fixture(scope="module")
def trained(tiny_config) -> GLCMMAEForPreTraining:
    """Every tensor, biases and positions included, is another than that of a new model, as after a training."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = GLCMMAEForPreTraining(tiny_config("texture"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@pytest.fixture(scope="module")
def exported(tmp_path_factory, trained) -> Path:
    folder = tmp_path_factory.mktemp("publish") / "export"
    processor = ImageTransform(32, resize="squash").processor()
    facts = {"title": "Tiny", "repo_id": ADDRESS, "corpus": "speckle"}
    write_export(folder, trained, processor, {"config.yaml": "a: 1\n"}, [], facts)
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> Path:
    return written_classifier(tmp_path_factory.mktemp("publish") / "classifier", "cls")


def written_classifier(folder: Path, pooling: str) -> Path:
    torch.manual_seed(0)
    names = {0: "benign", 1: "malignant"}
    config = ViTConfig(
        **{"image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
        **{"intermediate_size": 64, "id2label": names, "label2id": {name: index for index, name in names.items()}},
    )
    model = ViTForImageClassification(config)
    model = with_mean_pooling(model) if pooling == "mean" else model
    model.config.architectures = [type(model).__name__]
    facts = {"title": "Tiny classifier", "repo_id": ADDRESS, "corpus": "speckle", "fold": "0", "mode": "finetune"}
    facts |= {"counts": {"train": 8, "validation": 2, "test": 2}, "pooling": pooling, "values": {"accuracy": 0.5}}
    facts |= {"figures": [("accuracy", "0.500", "0.250 to 0.750")], "base_model": None}
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


def python(
    hub,
    home: Path,
    script: str,
    token: str | None = "hf_reader",
    *,
    interpreter: str = PLAIN_PYTHON,
    package: bool = False,
) -> dict:
    """Run `script`, which fills the dict `found`, as a stranger, who does not have the package.

    With `package` it is somebody who has installed the package and has it imported, in the tests' environment. Neither
    has torchvision.
    """
    given = {name: value for name, value in os.environ.items() if not name.startswith("HF_") and name != "PYTHONPATH"}
    given |= hub.environment(home, token)
    if package:
        interpreter, given["PYTHONPATH"] = sys.executable, str(RECIPES.parent)
        first = "import modeling_glcm_mae"
    else:
        first = "sys.modules['modeling_glcm_mae'] = None"
    home.mkdir(parents=True, exist_ok=True)
    begin = f"import json, sys\nsys.modules['torchvision'] = None\n{first}\nfound = {{}}\n"
    command = [interpreter, "-c", f"{begin}{script}\nprint(json.dumps(found))"]
    done = subprocess.run(command, capture_output=True, text=True, env=given, cwd=home, timeout=240)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def only_message(done: subprocess.CompletedProcess) -> str:
    """What a command that failed has to say, in one line."""
    lines = done.stderr.splitlines()
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert [line for line in lines if line.startswith("error:")] == lines[-1:], done.stderr
    return lines[-1]


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder, but for our list of them, which is never published."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != WRITTEN_LIST)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def assert_published_once(hub, local: dict[str, bytes]) -> None:
    """One commit beside the first one, at it one tag, in it every file of the folder with its bytes."""
    assert hub.repo(REPO).tags == {"v1": hub.commits(REPO)[0].sha}
    assert_sent_once(hub, local)


def assert_sent_once(hub, local: dict[str, bytes]) -> None:
    """The same, with or without the tag."""
    assert len(hub.commits(REPO)) == 2
    sent = hub.files(REPO)
    assert set(sent) == {*local, *OF_THE_REPOSITORY}
    assert [name for name in local if sent[name] != local[name]] == ["README.md"]  # has the repository's address


@pytest.mark.slow
@pytest.mark.plain
def test_both_kinds_are_published_and_their_cards_say_how_to_open_them(hub, exported, classifier, tmp_path):
    (tmp_path / "sent").mkdir()
    folder = shutil.copytree(exported, tmp_path / "sent" / "export")
    (folder / "training_args.bin").write_bytes(b"a pickle")
    done = publish(hub, tmp_path / "a", folder, "--collection", "GLCM-MAE")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("gives the same answers from the Hub as from the folder") == 2
    assert "left out training_args.bin" in done.stderr
    done = publish(hub, tmp_path / "a", classifier, "--collection", "GLCM-MAE", repo_id=f"{REPO}-finetuned")
    assert done.returncode == 0, done.stderr
    mean = written_classifier(tmp_path / "sent" / "mean", "mean")
    done = publish(hub, tmp_path / "a", mean, repo_id=f"{REPO}-mean")
    assert done.returncode == 0 and "BeitForImageClassification gives the same answers" in done.stdout, done.stderr

    for repo_id, local in ((REPO, exported), (f"{REPO}-finetuned", classifier), (f"{REPO}-mean", mean)):
        sent = hub.files(repo_id)
        assert set(sent) == contents(local).keys() | OF_THE_REPOSITORY
        assert sent["model.safetensors"] == (local / "model.safetensors").read_bytes()
        assert repo_id.encode() in sent["README.md"] and ADDRESS.encode() not in sent["README.md"]
        assert len(hub.commits(repo_id)) == 2 and set(hub.repo(repo_id).tags) == {"v1"}
    (collection,) = hub.collections.values()
    assert [item["id"] for item in collection["items"]] == [REPO, f"{REPO}-finetuned"]

    # Every block of code of both cards, as a stranger runs it.
    write(tmp_path / "image.png", encode(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)))
    for repo_id, count in ((REPO, 3), (f"{REPO}-finetuned", 1), (f"{REPO}-mean", 1)):
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


def upload(hub, folder: Path, repo_id: str, **options: object) -> None:
    """Without publish.py, which would load it back and take its time for that."""
    owner = repo_id.split("/")[0]
    client = HfApi(endpoint=hub.endpoint, token={"org": "hf_writer", "other": "hf_other"}[owner])
    client.create_repo(repo_id, **options)
    client.upload_folder(repo_id=repo_id, folder_path=folder)


@pytest.mark.slow
@pytest.mark.plain
@pytest.mark.parametrize("package", [False, True], ids=["plain transformers", "the package imported"])
def test_what_a_stranger_does_with_it(hub, trained, exported, classifier, tmp_path, tiny_fields, package):
    stock = ViTMAEForPreTraining(ViTMAEConfig(**tiny_fields))
    stock.save_pretrained(tmp_path / "theirs")
    for folder, repo_id in ((exported, REPO), (classifier, f"{REPO}-finetuned"), (tmp_path / "theirs", "other/mae")):
        upload(hub, folder, repo_id)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 48, 3), dtype=np.uint8))
    image.save(tmp_path / "image.png")

    # What the model said at the end of its training: in our own class, all patches in their order, and the loss.
    pixels = AutoImageProcessor.from_pretrained(exported)(images=image, return_tensors="pt")["pixel_values"]
    noise = torch.rand(1, 16, generator=torch.Generator().manual_seed(0))
    everything = copy.deepcopy(trained)
    everything.config.mask_ratio = 0.0
    with torch.no_grad():
        features = everything.vit(pixels, noise=torch.arange(16.0)[None]).last_hidden_state
        loss = trained(pixels, noise=noise).loss
    expected = {"pixels": pixels, "features": features, "noise": noise, "loss": loss}
    torch.save(expected, tmp_path / "expected.pt")

    found = python(
        hub,
        tmp_path / "home",
        f"""
import importlib.util
import torch
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification
from transformers import AutoModelForPreTraining, pipeline

repo, finetuned, theirs = {REPO!r}, {REPO + "-finetuned"!r}, "other/mae"
expected = torch.load({str(tmp_path / "expected.pt")!r})
image = Image.open({str(tmp_path / "image.png")!r})
beside = ("modeling_glcm_mae", "torchvision", "accelerate", "datasets", "sklearn", "skimage", "scipy")
found["beside"] = [name for name in beside if importlib.util.find_spec(name)]
found["home"] = []


def stock(model):
    found["home"].append(type(model).__module__)
    return type(model).__name__


def near(one, other):
    return one.shape == other.shape and bool((one - other).abs().max() <= 1e-6)


def load_theirs():
    models = [AutoModel.from_pretrained(theirs), *[
        AutoModelForPreTraining.from_pretrained(theirs, trust_remote_code=trust) for trust in (None, True)
    ]]
    kept = AutoModelForPreTraining.from_pretrained({str(tmp_path / "theirs")!r}).state_dict()
    for model in models[1:]:
        loaded = model.state_dict()
        assert loaded.keys() == kept.keys() and all(torch.equal(loaded[name], kept[name]) for name in kept)
    return [stock(one) for one in (AutoConfig.from_pretrained(theirs), *models)]


found["theirs"] = load_theirs()

processor = AutoImageProcessor.from_pretrained(repo)
pixels = processor(images=image, return_tensors="pt")["pixel_values"]
found["processor"], found["pixels"] = stock(processor), near(pixels, expected["pixels"])
encoder, report = AutoModel.from_pretrained(repo, output_loading_info=True)
found["encoder"] = stock(encoder)
found["lacking"] = [sorted(report["missing_keys"])]
with torch.no_grad():
    first, second, third = encoder(pixels), encoder(pixels), AutoModel.from_pretrained(repo)(pixels)
    found["tokens"] = first.last_hidden_state.shape[1]
    found["twice"] = [torch.equal(first[name], other[name]) for other in (second, third)
                      for name in ("last_hidden_state", "pooler_output")]
    found["trained"] = [near(first.last_hidden_state, expected["features"]),
                        near(first.pooler_output, expected["features"][:, 0])]
    found["unseen"] = []
    for patch in range(16):
        y, x = 8 * (patch // 4), 8 * (patch % 4)
        changed = pixels.clone()
        changed[..., y : y + 8, x : x + 8] += 1
        if torch.equal(encoder(changed).pooler_output, first.pooler_output):
            found["unseen"].append(patch)
found["pipeline"] = near(torch.tensor(pipeline("image-feature-extraction", repo)(image)), first.last_hidden_state)

head, report = AutoModelForImageClassification.from_pretrained(repo, num_labels=3, output_loading_info=True)
found["head"] = stock(head)
found["lacking"].append(sorted(report["missing_keys"]))
model, report = AutoModelForImageClassification.from_pretrained(finetuned, output_loading_info=True)
found["classifier"] = stock(model)
found["lacking"].append(sorted(report["missing_keys"]))
with torch.no_grad():
    found["kept"] = near(head.vit(pixels).last_hidden_state, first.last_hidden_state)
    pixels_of_classifier = AutoImageProcessor.from_pretrained(finetuned)(images=image, return_tensors="pt")
    sure = model(**pixels_of_classifier).logits.softmax(-1)[0]
found["probabilities"] = {{model.config.id2label[index]: value.item() for index, value in enumerate(sure)}}
found["answers"] = [{{row["label"]: row["score"] for row in pipeline("image-classification", source)(image)}}
                    for source in (finetuned, {str(classifier)!r})]

trust = {{"subfolder": "pretraining", "trust_remote_code": True}}
whole, report = AutoModelForPreTraining.from_pretrained(repo, output_loading_info=True, **trust)
found["lacking"].append(sorted(report["missing_keys"]))
wholes = [whole]
if {package}:
    import modeling_glcm_mae
    wholes.append(modeling_glcm_mae.GLCMMAEForPreTraining.from_pretrained(repo, subfolder="pretraining"))
found["whole"] = [type(model).__name__ for model in wholes]
found["code"] = [type(model).__module__.split(".")[0] for model in wholes]
with torch.no_grad():
    found["loss"] = [model(expected["pixels"], noise=expected["noise"]).loss.item() for model in wholes]
found["theirs again"] = load_theirs()
""",
        package=package,
    )
    if PLAIN_PYTHON != sys.executable and not package:
        assert found["beside"] == [], "not a plain environment"
    assert ("modeling_glcm_mae" in found["beside"]) == package
    assert {module.split(".")[0] for module in found["home"]} == {"transformers"}
    assert found["encoder"] == "ViTModel" and found["head"] == found["classifier"] == "ViTForImageClassification"
    assert found["lacking"] == [[], ["classifier.bias", "classifier.weight"], [], []]
    assert found["tokens"] == 17 and found["twice"] == [True] * 4 and found["trained"] == [True] * 2
    assert found["unseen"] == [] and found["pipeline"] and found["kept"] and found["pixels"]
    assert found["processor"] == "ViTImageProcessorPil", "the one that does without torchvision"
    assert found["answers"][0] == found["answers"][1] == pytest.approx(found["probabilities"], abs=1e-6)
    assert set(found["probabilities"]) == {"benign", "malignant"}
    assert set(found["whole"]) == {"GLCMMAEForPreTraining"}
    assert found["code"] == ["transformers_modules", "modeling_glcm_mae"][: 1 + package]
    assert found["loss"] == [pytest.approx(loss.item(), rel=1e-6)] * (1 + package)
    names = ["ViTMAEConfig", "ViTMAEModel", "ViTMAEForPreTraining", "ViTMAEForPreTraining"]
    assert found["theirs"] == found["theirs again"] == names


@pytest.mark.plain
def test_a_private_and_a_gated_model_open_for_those_who_may(hub, exported, classifier, tmp_path):
    upload(hub, exported, REPO, private=True)
    upload(hub, classifier, f"{REPO}-finetuned", private=True)
    found = python(
        hub,
        tmp_path / "home",
        f"""
from huggingface_hub import HfApi
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification, AutoModelForPreTraining

owner, repos = HfApi(token="hf_writer"), ({REPO!r}, {REPO + "-finetuned"!r})


def opened(case, token):
    # A cache for each case, or one would find what another was given.
    given = {{"token": token, "cache_dir": case}}
    trust = {{"subfolder": "pretraining", "trust_remote_code": True}}
    calls = [lambda: AutoModel.from_pretrained(repos[0], **given),
             lambda: AutoImageProcessor.from_pretrained(repos[0], **given),
             lambda: AutoModelForPreTraining.from_pretrained(repos[0], **given, **trust),
             lambda: AutoModelForImageClassification.from_pretrained(repos[1], **given)]
    found[case] = []
    for call in calls:
        try:
            found[case].append(type(call()).__name__)
        except OSError as error:
            found[case].append(str(error))


opened("private, nobody", False)
opened("private, another", "hf_other")
opened("private, its owner", "hf_reader")
for repo in repos:
    owner.update_repo_settings(repo, private=False, gated="manual")
opened("gated, nobody", False)
opened("gated, not granted", "hf_other")
for repo in repos:
    owner.grant_access(repo, "other")
opened("gated, granted", "hf_other")
""",
        token=None,
    )
    models = ["ViTModel", "ViTImageProcessorPil", "GLCMMAEForPreTraining", "ViTForImageClassification"]
    assert found["private, its owner"] == found["gated, granted"] == models
    for case, said in (("private", "private repository"), ("gated", "gated repo")):
        for who in ("nobody", "another" if case == "private" else "not granted"):
            assert len(found[f"{case}, {who}"]) == 4
            assert all(said in message for message in found[f"{case}, {who}"]), found


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


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["every third write fails", "an upload is cut", "the answer is lost"])
def test_a_fault_is_got_over_with_one_commit(hub, classifier, tmp_path, fault):
    if fault == "every third write fails":
        hub.fail("POST|PUT", "(?<!validate-yaml)$", every=3, times=None)
    elif fault == "an upload is cut":
        hub.cut("^/lfs/", after_bytes=10_000)
    else:
        hub.lose_answer("/commit/main")
    local = contents(classifier)
    done = publish(hub, tmp_path / "a", classifier)
    if done.returncode:  # a fault that the client itself gives up on
        hub.mend()
        assert "the same command goes on" in only_message(done)
        done = publish(hub, tmp_path / "a", classifier)
    assert done.returncode == 0 and "verified" in done.stdout, done.stderr
    assert "Traceback" not in done.stderr and contents(classifier) == local
    assert_published_once(hub, local)
    # The fault has struck where it was meant to.
    struck = {
        (method, path.split("/")[1] if method == "PUT" else path.split("/")[-2], status)
        for method, path, status in hub.requests
        if status in (0, 503)
    }
    if fault == "an upload is cut":
        assert struck == {("PUT", "lfs", 0)}
    elif fault == "the answer is lost":
        assert struck == {("POST", "commit", 0)}
    else:
        assert sum(status == 503 for _, _, status in hub.requests) >= 3


# The commit is the seventh request that writes: after the repository, two questions and three files that are verified.
@pytest.mark.slow
@pytest.mark.parametrize(("writes", "commits"), [(3, 1), (7, 2)], ids=["while uploading", "after the commit"])
def test_a_token_revoked_half_way_is_one_message_and_the_rest_goes_on(hub, classifier, tmp_path, writes, commits):
    local = contents(classifier)
    hub.revoke_after("hf_writer", writes)
    message = only_message(publish(hub, tmp_path / "a", classifier))
    assert "the access token is not valid (any more)" in message and "the same command goes on" in message
    assert len(hub.commits(REPO)) == commits and not hub.repo(REPO).tags
    hub.add_user("org", "hf_writer")
    done = publish(hub, tmp_path / "a", classifier)
    assert done.returncode == 0 and "verified" in done.stdout, done.stderr
    assert contents(classifier) == local
    assert_published_once(hub, local)


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
    assert message in only_message(done) and "untouched" in only_message(done)
    assert not hub.repos


def test_dry_run_shows_files_and_card_and_sends_nothing(hub, exported, tmp_path):
    done = publish(hub, tmp_path / "a", exported, "--dry_run", "true", "--license", "cc-by-4.0", token=None)
    assert done.returncode == 0, done.stderr
    assert "pretraining/model.safetensors" in done.stdout and "license: cc-by-4.0" in done.stdout
    assert f'AutoModel.from_pretrained("{REPO}")' in done.stdout
    assert not hub.repos and {method for method, _, _ in hub.requests} <= {"GET", "HEAD"}


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
    folder = shutil.copytree(classifier, tmp_path / "classifier")
    message = spoilt(kind, folder, tmp_path)
    with pytest.raises(SystemExit) as stopped:
        publish_recipe.main(["--export_dir", str(folder), "--repo_id", REPO, "--dry_run", "true"])
    assert message in str(stopped.value) and "aB3" not in str(stopped.value)


@pytest.mark.slow
def test_an_encoder_does_not_take_the_place_of_a_classifier(hub, exported, classifier, tmp_path):
    assert publish(hub, tmp_path / "a", classifier).returncode == 0
    done = publish(hub, tmp_path / "a", exported)
    assert done.returncode == 1 and "take another repo_id" in done.stderr.splitlines()[-1]
    assert len(hub.commits(REPO)) == 2


@pytest.mark.slow
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


@pytest.mark.slow
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
def read(rows):
    return {row["file_name"]: [row["label"], row["sha256"], list(row["image"].size)] for row in rows}


found["whole"] = read(load_dataset("org/images")["train"])
found["streamed"] = read(load_dataset("org/images", split="train", streaming=True))
""",
        interpreter=sys.executable,
    )
    assert found["whole"] == found["streamed"] and len(found["whole"]) == 24
    with (tmp_path / "data" / "private" / "names.csv").open(newline="") as lines:
        names = {row["file_name"]: row["written_name"] for row in csv.DictReader(lines)}
    assert not any(name.startswith("private") or name == ".gitignore" for name in sent)
    for index in range(24):
        name = f"{'ab'[index % 2]}/{index:02d}.png"
        digest = hashlib.sha256((tmp_path / "raw" / name).read_bytes()).hexdigest()
        assert found["whole"][names[name]] == [index % 2, digest, [48, 48]]


def test_the_demo_and_the_metric_are_published_as_spaces(hub, tmp_path):
    root = RECIPES.parent
    done = publish(hub, tmp_path / "a", root / "hub_cards" / "space", "--repo_type", "space", repo_id="org/demo")
    assert done.returncode == 0, done.stderr
    sent = set(hub.files("org/demo", repo_type="space"))
    assert sent >= {
        "app.py",
        "requirements.txt",
        "modeling_glcm_mae/glcm.py",
        "corpora/folder.py",
        "judging/overlay.py",
    }
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
        interpreter=sys.executable,
    )
    assert found == {"accuracy": 1.0}


@pytest.mark.plain
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


@pytest.mark.slow
def test_a_full_disk_while_checking_is_one_message_and_the_commit_stays(hub, classifier, tmp_path):
    # A limit on the size of a file stands in for the full disk: the write fails in the same place.
    limited = "import resource, runpy, sys\nresource.setrlimit(resource.RLIMIT_FSIZE, (40000, 40000))\nimport signal\n"
    limited += "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nsys.path.insert(0, sys.argv[1])\n"
    limited += "sys.argv = sys.argv[2:]\nrunpy.run_path(sys.argv[0], run_name='__main__')"
    given = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    command = [sys.executable, "-c", limited, str(RECIPES), str(RECIPES / "publish.py")]
    command += ["--export_dir", str(classifier), "--repo_id", REPO]
    given |= hub.environment(tmp_path / "a", "hf_writer")
    local = contents(classifier)
    message = only_message(subprocess.run(command, capture_output=True, text=True, env=given, timeout=240))
    assert "is published" in message and "does not load back" in message and "untouched" in message
    assert_sent_once(hub, local)
    assert not hub.repo(REPO).tags, "what does not load back gets none"
    done = publish(hub, tmp_path / "a", classifier)
    assert done.returncode == 0 and "verified" in done.stdout, done.stderr
    assert contents(classifier) == local
    assert_published_once(hub, local)


def test_a_cross_validation_is_published_with_the_figures_of_all_folds(client, classifier, tmp_path, capsys):
    client()
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
    publish_recipe.main([*given, "--fold", "1"])
    shown = capsys.readouterr().out
    assert (
        "classifier of fold 1, one of the 2 folds that were run" in shown
        and "curves.png" in shown
        and "fold_" not in shown
    )
    pooled = summary["figures"]["auroc"]["pooled"]
    assert f"| {pooled['value']:.3f} | {pooled['low']:.3f} to {pooled['high']:.3f} |" in shown
    assert "## Result on the test part" not in shown
    card = ModelCard(shown[shown.index("\n---\n") + 1 :])
    values = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert values["auroc"] == pytest.approx(pooled["value"], abs=1e-4) and values["accuracy"] != 0.5
    with pytest.raises(SystemExit, match=r"fold '7' has no export .* allowed are 0, 1"):
        publish_recipe.main([*given, "--fold", "7"])


# A repository that is not ours, or not only ours: in this process


# What is loaded back is compared


# What is sent, and to whom it is shown
