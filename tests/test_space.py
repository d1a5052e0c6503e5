"""The demo and the server, started as a user starts them, in an environment of their own."""

import base64
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import colour, encode, grey, write
from huggingface_hub import HfApi, InferenceClient, ModelCard
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image
from pydicom.data import get_testdata_file
from safetensors.torch import load_file
from test_publish import classifier  # noqa: F401 - fixtures
from transformers import AutoImageProcessor, BeitForImageClassification, ViTForImageClassification, pipeline

from hub.cards import ADDRESS
from hub.contents import PublishArguments, publication_of
from hub.export import write_export
from hub.onnx_model import onnx_model
from hub.publication import ONNX_FILE
from images.transform import ImageTransform
from judging.summary import summarise
from modeling_glcm_mae import GLCMMAEForPreTraining
from training.models import with_mean_pooling

ROOT = Path(__file__).resolve().parent.parent
PYTHON = ROOT / os.environ.get("SPACE_VENV", ".venv-space") / "bin" / "python"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON.exists(), reason="needs the demo's environment: make test-space"),
]


@pytest.fixture(scope="module")
def exported(tmp_path_factory, tiny_config) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("space") / "export"
    facts = {"title": "Tiny", "repo_id": ADDRESS, "corpus": "speckle"}
    processor = ImageTransform(32, resize="squash").processor()
    write_export(folder, GLCMMAEForPreTraining(tiny_config("texture")), processor, {}, [], facts)
    return folder


def with_base(classifier: Path, folder: Path, base_model: str | None) -> Path:  # noqa: F811
    """A copy of a classifier whose card names the model it was trained from."""
    shutil.copytree(classifier, folder)
    card = ModelCard.load(folder / "README.md")
    card.data.base_model = base_model
    card.save(folder / "README.md")
    return folder


@pytest.fixture(scope="module")
def finetuned(classifier, exported, tmp_path_factory) -> Path:  # noqa: F811
    return with_base(classifier, tmp_path_factory.mktemp("space") / "finetuned", str(exported))


def published(folder: Path, repo_id: str, **options: str) -> dict[str, bytes]:
    """The files of a repository as publish.py sends them."""
    publication, _ = publication_of(PublishArguments(str(folder), repo_id, **options))
    return {name: file if isinstance(file, bytes) else file.read_bytes() for name, file in publication.files.items()}


@pytest.fixture(scope="module")
def space(tmp_path_factory) -> Path:
    """The space as it lies on the Hub, its files alone."""
    folder = tmp_path_factory.mktemp("space") / "flat"
    for name, data in published(ROOT / "hub_cards" / "space", "org/demo", repo_type="space").items():
        write(folder / name, data)
    return folder


@contextlib.contextmanager
def started(space: Path, models: list[str], variables: dict[str, str], *options: str) -> Iterator[str]:
    """The address of a server, in an environment without this repository."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(PYTHON), "app.py", "--model", *models, "--port", str(port), "--serve", "true"]
    given = {name: value for name, value in os.environ.items() if name != "PYTHONPATH" and not name.startswith("HF_")}
    process = subprocess.Popen([*command, *options], cwd=space, env=given | variables)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            assert process.poll() is None, "the server stopped"
            try:
                urllib.request.urlopen(f"{address}/demo/", timeout=5).close()
                break
            except (urllib.error.URLError, TimeoutError):
                time.sleep(0.5)
        yield address
    finally:
        process.terminate()
        process.wait(20)


def as_deep(classifier: Path, folder: Path, white: int) -> Path:  # noqa: F811
    """A copy of a classifier whose processor takes images of another white level."""
    settings = json.loads((shutil.copytree(classifier, folder) / "preprocessor_config.json").read_text())
    settings |= {"rescale_factor": 1 / white, "do_convert_rgb": white == 255}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def offered(classifier, exported, finetuned, tmp_path_factory) -> dict[str, Path]:  # noqa: F811
    """Every model that a server offers here, by its name; the first is the one to begin with."""
    root = tmp_path_factory.mktemp("offered")
    models = {"finetuned": finetuned, "encoder": exported, "plain": classifier}
    for name, base in (("lost base", "nowhere/at-all"), ("wrong base", str(classifier))):
        models[name] = with_base(classifier, root / name, base)
    # As cross_validate.py leaves it.
    for name, base in (("fold_0", None), ("fold_1", "nowhere/at-all"), ("other", None)):
        shutil.copytree(exported, root / name / "pretrain" / "export")
        models[name] = with_base(classifier, root / name / "finetune" / "export", base)
    # As finetune.py leaves it: the run says where it started, its export does not.
    models["started"] = with_base(classifier, root / "started" / "export", None)
    (root / "started" / "config.yaml").write_text(json.dumps({"model": {"model_name_or_path": str(exported)}}))
    for name, white in (("deep", 65535), ("twelve_bits", 4095)):
        models[name] = as_deep(classifier, root / name, white)
    mean = with_mean_pooling(ViTForImageClassification.from_pretrained(classifier))
    mean.config.architectures = ["BeitForImageClassification"]
    models["mean"] = shutil.copytree(classifier, root / "mean")
    mean.save_pretrained(models["mean"])
    models["damaged"] = shutil.copytree(classifier, root / "damaged")
    (models["damaged"] / "model.safetensors").write_bytes(b"no weights")
    return models


@pytest.fixture(scope="module")
def server(space, offered) -> Iterator[str]:
    models = [f"{name}={folder}" for name, folder in offered.items()]
    with started(space, models, {"HF_HUB_OFFLINE": "1"}) as address:
        yield address


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("image") / "image.png", encode(colour(48, 48)))


@pytest.fixture(scope="module")
def dicom() -> str:
    return get_testdata_file("CT_small.dcm")


def test_inference_client_gets_what_the_pipeline_answers(server, classifier, image):  # noqa: F811
    client = InferenceClient(model=f"{server}/classify")
    expected = {row["label"]: row["score"] for row in pipeline("image-classification", str(classifier))(str(image))}
    found = {row.label: row.score for row in client.image_classification(image)}
    assert found == pytest.approx(expected, abs=1e-5)
    (best,) = client.image_classification(image, top_k=1)
    assert best.label == max(expected, key=expected.get)
    raw = client.image_classification(image, function_to_apply="none")
    assert sum(row.score for row in raw) != pytest.approx(1)
    with pytest.raises(HfHubHTTPError, match="top_k must be a whole number of at least 1, got 0"):
        client.image_classification(image, top_k=0)
    with pytest.raises(HfHubHTTPError, match="Image .the image. cannot be read as any of"):
        client.image_classification(b"no image")


def demo(server: str, script: str) -> list:
    """Run `script` as a client of the demo; it fills the list `found`."""
    opened = f"""
import json
from gradio_client import Client, handle_file
client, found = Client({server + "/demo/"!r}, verbose=False), []
names = ("seen", "label", "words", "note", "rebuilt", "matrices", "foretold", "table", "figures", "warning")
def submit(model, file, mask_ratio=0.75, seed=0, down=30, right=60):
    return client.submit(model, handle_file(file), mask_ratio, seed, down, right, api_name="/answer")
def ask(*args, **more):
    return dict(zip(names, submit(*args, **more).result(), strict=True))
"""
    done = subprocess.run(
        [str(PYTHON), "-c", opened + script + "\nprint(json.dumps(found))"], capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def probabilities(answer: dict) -> dict[str, float]:
    return {row["label"]: row["confidence"] for row in answer["label"]["confidences"]}


def test_every_panel_answers(server, finetuned, image, dicom):
    answer, *others = demo(
        server,
        f"""
first = {{"model": "finetuned", "file": {str(image)!r}}}
found = [ask(**first), ask(**first, mask_ratio=0.25), ask(**first, seed=1), ask(**first, down=100)]
found += [ask(**first, right=0), ask(**first | {{"file": {str(dicom)!r}}})]
found += [client.predict("finetuned", handle_file({str(image)!r}), api_name="/surprise")]
found += [client.predict("finetuned", handle_file({str(image)!r}), api_name="/overlay")]
""",
    )
    picture, meaning = others.pop()
    surprising, caveat = others.pop()
    assert surprising and surprising != picture and "Surprising is not diseased" in caveat
    assert picture and "no outline of a lesion" in meaning
    expected = {row["label"]: row["score"] for row in pipeline("image-classification", str(finetuned))(str(image))}
    assert probabilities(answer) == pytest.approx(expected, abs=1e-5)
    assert "entropy" in answer["words"] and "0.250 to 0.750" in answer["figures"] and not answer["warning"]
    assert "states no sensitivity" in answer["words"] and "8 to train" in answer["words"]
    assert answer["note"] == "The reconstruction is by the base_model of finetuned."  # a folder here, of no name
    assert answer["seen"] and len(answer["table"]["data"]) == 25
    # Pictures are named by their content.
    differs = [{part for part in answer if answer[part] != other[part]} for other in others]
    assert "rebuilt" in differs[0] and "rebuilt" in differs[1] and not {"label", "seen"} & (differs[0] | differs[1])
    for chosen in differs[2:4]:
        assert {"seen", "rebuilt", "matrices", "foretold", "table"} <= chosen and "label" not in chosen
    assert {"seen", "label", "rebuilt", "matrices", "table"} <= differs[4]
    assert others[4]["note"].endswith("CT_small.dcm: window with centre -1024 and width 65536 (of the stored range).")


def test_ten_at_once_get_what_each_gets_alone(server, image):
    together, alone = demo(
        server,
        f"""
settings = [{{"seed": index % 5, "mask_ratio": 0.5 + index % 2 / 4}} for index in range(10)]
jobs = [submit("encoder", {str(image)!r}, **one) for one in settings]
found = [[job.result() for job in jobs]]
found += [[submit("encoder", {str(image)!r}, **one).result() for one in settings]]
""",
    )
    assert together == alone
    assert len({answer[4] for answer in together}) == 10  # reconstructions, named by their content


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ("plain", "No reconstruction: the card of plain names no base_model, whose autoencoder could be shown."),
        ("lost base", "No reconstruction: the base_model of lost base cannot be opened here."),
        ("wrong base", "No reconstruction: the base_model of wrong base, has no pretraining/ folder."),
    ],
)
def test_a_missing_autoencoder_is_a_sentence(server, image, model, sentence):
    (answer,) = demo(server, f"found = [ask({model!r}, {str(image)!r})]")
    assert set(probabilities(answer)) == {"benign", "malignant"}
    assert not answer["rebuilt"] and not answer["matrices"]
    assert answer["note"].startswith(sentence)
    assert ("pass --base_model ORG/ENCODER to publish.py" in answer["note"]) == (model == "plain")


def test_a_fold_shows_the_encoder_beside_it_and_a_run_the_one_that_it_started_from(server, image):
    """A base_model that the card names goes first."""
    names = ("fold_0", "fold_1", "other", "started")
    fold, named, other, started = demo(server, f"found = [ask(name, {str(image)!r}) for name in {names!r}]")
    assert fold["note"] == "The reconstruction is by the encoder of the same fold as fold_0."
    assert fold["rebuilt"] and fold["matrices"]
    assert named["note"] == "No reconstruction: the base_model of fold_1 cannot be opened here."
    assert started["note"] == "The reconstruction is by the encoder that started was trained from."
    assert started["rebuilt"] == fold["rebuilt"]
    assert not named["rebuilt"] and not other["rebuilt"] and "names no base_model" in other["note"]


def test_deep_files_are_judged_by_their_white(server, tmp_path):
    """A 16-bit file is seen as the same picture of 8 bits, by models of either depth, whatever stands for white."""
    values = grey(48, 48)
    for name, white in (("plain", 255), ("deep", 65535), ("twelve_bits", 4095)):
        scaled = values if white == 255 else (values * (white / 255)).round().astype(np.uint16)
        write(tmp_path / f"{name}.png", encode(scaled))
    rgba = np.dstack([values] * 3 + [np.full_like(values, 255)])
    rgba[:24, :, 3] = 0
    write(tmp_path / "transparent.png", encode(rgba))
    write(tmp_path / "white.png", encode(np.vstack([np.full((24, 48), 255, np.uint8), values[24:]])))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    write(tmp_path / "turned.png", encode(np.rot90(values).copy(), exif=exif))
    pairs = [("plain", "plain"), ("plain", "deep"), ("deep", "plain"), ("deep", "deep"), ("twelve_bits", "twelve_bits")]
    pairs += [("plain", "turned"), ("plain", "transparent"), ("plain", "white")]
    asked = [(model, str(tmp_path / f"{file}.png")) for model, file in pairs]
    found = [probabilities(answer) for answer in demo(server, f"found = [ask(*one) for one in {asked!r}]")]
    for answer in found[1:6]:
        assert answer == pytest.approx(found[0], abs=1e-6)
    assert found[6] == pytest.approx(found[7], abs=1e-6) and found[6] != pytest.approx(found[0], abs=1e-6)


def test_a_classifier_of_the_mean_token_answers_as_one(server, offered, classifier, image):  # noqa: F811
    model = BeitForImageClassification.from_pretrained(offered["mean"])
    pixels = AutoImageProcessor.from_pretrained(classifier)(images=Image.open(image), return_tensors="pt")
    with torch.no_grad():
        expected = model.eval()(**pixels).logits.softmax(dim=1)[0].tolist()
    mean, stock = demo(server, f"found = [ask(name, {str(image)!r}) for name in ('mean', 'plain')]")
    assert probabilities(mean) == pytest.approx(dict(zip(("benign", "malignant"), expected, strict=True)), abs=1e-5)
    assert probabilities(mean) != pytest.approx(probabilities(stock), abs=1e-5)


def test_a_cross_validated_model_by_its_hub_id(hub, space, exported, classifier, image, tmp_path):  # noqa: F811
    """Its card's intervals are shown and the autoencoder of its base_model; code of the repositories is not run."""
    scores = np.random.default_rng(0).random(40)
    table = pd.DataFrame({"fold": np.arange(40) % 2, "file_name": [f"{index}.png" for index in range(40)]})
    table["group"], table["label"], table["prediction"] = table["file_name"], np.arange(40) // 2 % 2, scores > 0.5
    table["probability_benign"], table["probability_malignant"] = 1 - scores, scores
    summary = summarise(table)
    write(tmp_path / "run" / "summary.json", json.dumps(summary).encode())
    write(tmp_path / "run" / "curves.png")
    shutil.copytree(classifier, tmp_path / "run" / "fold_0" / "finetune" / "export")
    names = {"org/encoder": exported, "org/classifier": tmp_path / "run", "org/secret": exported}
    api = HfApi(endpoint=hub.endpoint, token="hf_writer")
    for name, folder in names.items():
        base = {"base_model": "org/encoder"} if name == "org/classifier" else {}
        files = published(folder, name, **base)
        ran = tmp_path / "ran"
        files |= {path: f"open({str(ran)!r}, 'w')".encode() for path in files if path.endswith(".py")}
        api.create_repo(name, private=name == "org/secret")
        hub.commit(name, "Model", files)
    assert any(path.endswith(".py") for path in hub.files("org/encoder"))
    # Another classifier names a base_model that nobody else may see.
    api.create_repo("org/other")
    files = hub.files("org/classifier")
    files["README.md"] = files["README.md"].replace(b"base_model: org/encoder", b"base_model: org/secret")
    hub.commit("org/other", "Model", files)
    models = ["org/classifier", "org/other"]
    with started(space, models, hub.environment(tmp_path / "home", None)) as server:
        whole, other = demo(server, f"found = [ask(name, {str(image)!r}) for name in {models!r}]")
    pooled = summary["figures"]["auroc"]["pooled"]
    assert f"| {pooled['value']:.3f} | {pooled['low']:.3f} to {pooled['high']:.3f} |" in whole["figures"]
    assert "Results of the cross-validation" in whole["figures"] and "curves.png" not in whole["figures"]
    assert whole["note"] == "The reconstruction is by org/encoder, the base_model of org/classifier."
    assert whole["rebuilt"] and len(whole["table"]["data"]) == 25
    assert probabilities(other) == probabilities(whole) and not other["rebuilt"]
    assert other["note"].endswith("No reconstruction: the base_model of org/other cannot be opened here.")
    assert not ran.exists()


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        ("nowhere/at-all", None, "model 'nowhere/at-all' is not offered here; there are finetuned, encoder, plain,"),
        ("/etc", None, "model '/etc' is not offered here"),
        ("../..", None, "model '../..' is not offered here"),
        ("damaged", None, "model 'damaged' cannot be opened here"),
        ("plain", b"no image", "Image 'notes.png' cannot be read as any of PNG, JPEG, TIFF, BMP."),
        ("plain", b"", "Image 'notes.png' is empty (0 bytes)."),
        ("plain", "huge", "notes.png has more than 64,000,000 pixels: make it smaller first"),
        (
            "plain",
            encode(np.zeros((8, 8), np.float32), "TIFF"),
            "'notes.png' stores float32 grey values up to 0.0, whose white is unknown",
        ),
    ],
)
def test_mistakes_are_one_sentence(server, offered, image, tmp_path, model, data, message):
    if data == "huge":
        data = encode(np.zeros((20_000, 20_000), np.uint8))
    path = image if data is None else write(tmp_path / "notes.png", data)
    (said,) = demo(
        server,
        f"""
try:
    ask({model!r}, {str(path)!r})
except Exception as error:
    found = [str(error)]
""",
    )
    assert message in said and "Traceback" not in said and "\n" not in said
    assert not any(str(folder.parent) in said for folder in offered.values())


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"[]", "JSON must be"),
        (b'{"inputs": null}', "JSON must be"),
        (b'{"inputs": "/etc/passwd"}', "inputs must be an image in base64"),
        (b'{"inputs": "AAAA", "parameters": [1]}', "parameters must be an object, got [1]"),
        (b"{" * 10, "the request cannot be read"),
        (b"[" * 100_000, "the request cannot be read"),
        (b'{"inputs": "AAAA"}', "Image 'the image' cannot be read as any of PNG, JPEG, TIFF, BMP."),
        ("huge", "the image has more than 64,000,000 pixels"),
        ("long", "it is longer than 128 MiB"),
    ],
)
def test_requests_that_are_none_get_one_sentence(server, body, message):
    if body == "huge":
        body = json.dumps({"inputs": base64.b64encode(encode(np.zeros((20_000, 20_000), np.uint8))).decode()}).encode()
    elif body == "long":
        body = bytes(130 * 2**20)
    asked = urllib.request.Request(f"{server}/classify", body, {"Content-Type": "application/json"})
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(asked, timeout=60)
    said = json.load(refused.value)["error"]
    assert refused.value.code == 400 and message in said and " at 0x" not in said


def test_models_that_are_none_end_the_start(exported, tmp_path):
    for given in (["/srv/secret/export"], [str(exported), f"X={tmp_path}/typo"]):
        assert start("--model", *given)[-1].endswith("is neither a folder here nor a Hub id, OWNER/NAME")
    twins = [str(exported), f"{exported}/"]
    assert "two models are called" in start("--model", *twins)[-1]


def test_any_public_model_of_the_hub_where_that_is_allowed_but_without_the_owners_token(
    hub, space, exported, finetuned, image, tmp_path
):
    api = HfApi(endpoint=hub.endpoint, token="hf_writer")
    for name, private in (("org/open", False), ("org/private", True), ("org/thief", False)):
        api.create_repo(name, private=private)
        files = published(exported, name)
        if name == "org/thief":  # names weights of this machine for its own
            shards = dict.fromkeys(load_file(exported / "model.safetensors"), str(exported / "model.safetensors"))
            del files["model.safetensors"]
            files["model.safetensors.index.json"] = json.dumps({"metadata": {}, "weight_map": shards}).encode()
        hub.commit(name, "Model", files)
    variables = hub.environment(tmp_path / "home", "hf_writer")
    with started(space, [str(finetuned)], variables, "--any_public", "true") as server:
        found = demo(
            server,
            f"""
for name in ("org/open", "org/private", {str(exported)!r}, {finetuned.name!r}, "org/thief"):
    try:
        found.append(ask(name, {str(image)!r})["note"])
    except Exception as error:
        found.append(str(error))
""",
        )
    assert "org/open has no classifier: it shows reconstructions only." in found[0]
    assert "model 'org/private' cannot be opened here" in found[1]
    assert "is not a Hub id, OWNER/NAME" in found[2]
    assert "The reconstruction is by the base_model of finetuned." in found[3]
    assert "model 'org/thief' cannot be opened here" in found[4]


def test_onnx_runtime_computes_the_classifiers_given_and_no_others(
    hub,
    space,
    classifier,  # noqa: F811
    exported,
    image,
    tmp_path,
):
    """What computes is told by weights that differ between the two files, as they never do after publish.py."""
    pytest.importorskip("onnxscript", reason="needs the extra onnx: pip install -c constraints.txt -e '.[onnx]'")
    other = shutil.copytree(classifier, tmp_path / "other")
    model = ViTForImageClassification.from_pretrained(other)
    model.classifier.bias.data += torch.tensor([0.0, 1.0])
    model.save_pretrained(other)
    files = published(classifier, "org/given") | {ONNX_FILE: onnx_model(other)}
    api = HfApi(endpoint=hub.endpoint, token="hf_writer")
    for name in ("org/given", "org/public"):
        api.create_repo(name)
        hub.commit(name, "Model", files)
    names = ("org/given", "org/public", "encoder")
    variables = hub.environment(tmp_path / "home", None) | {"GLCM_MAE_ONNX": "true"}
    with started(space, [names[0], f"encoder={exported}"], variables, "--any_public", "true") as server:
        given, public, encoder = demo(server, f"found = [ask(name, {str(image)!r}) for name in {names!r}]")
        pressed = demo(
            server, f"found = [client.predict('org/given', handle_file({str(image)!r}), api_name='/overlay')]"
        )
        served = InferenceClient(model=f"{server}/classify").image_classification(image)
    by_onnx, by_pytorch = (
        {row["label"]: row["score"] for row in pipeline("image-classification", str(folder))(str(image))}
        for folder in (other, classifier)
    )
    assert probabilities(given) == pytest.approx(by_onnx, abs=1e-4)
    assert {row.label: row.score for row in served} == pytest.approx(by_onnx, abs=1e-4)
    assert probabilities(public) == pytest.approx(by_pytorch, abs=1e-5)
    assert by_onnx != pytest.approx(by_pytorch, abs=1e-2)
    assert encoder["rebuilt"] and "no outline of a lesion" in pressed[0][1]


def test_without_its_onnx_model_a_classifier_is_refused_where_onnx_is_asked_for(classifier):  # noqa: F811
    (*_, said) = start("--onnx", "true", "--model", f"mine={classifier}")
    assert said == (
        "error: model 'mine' has no onnx/model.onnx: publish it with --onnx true and give its Hub id, or start without "
        "--onnx"
    )


def test_a_mistyped_option_is_told_before_anything_is_imported(tmp_path):
    """Where gradio and torch cannot be imported."""
    for name in ("gradio", "torch", "transformers", "uvicorn"):
        write(tmp_path / f"{name}.py", b"raise ImportError('not needed for that')")
    command = [str(PYTHON), str(ROOT / "hub_cards/space/app.py"), "--modle", "x"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 2 and done.stderr.endswith("error: unrecognized arguments: --modle x\n")


def test_a_variable_that_is_neither_true_nor_false_is_refused(exported, monkeypatch):
    monkeypatch.setenv("GLCM_MAE_ONNX", "1")
    command = [str(PYTHON), str(ROOT / "hub_cards/space/app.py"), "--model", str(exported)]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'recipes'}"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 2 and done.stderr.endswith("error: onnx must be true or false, got '1'\n")


def start(*options: str, cwd: Path = ROOT) -> list[str]:
    """What the demo says that does not start; its lines."""
    given = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'recipes'}", "HF_HUB_OFFLINE": "1"}
    given.pop("GLCM_MAE_MODEL", None)
    # Port 0 is any that is free.
    command = [str(PYTHON), str(ROOT / "hub_cards/space/app.py"), "--port", "0", *options]
    done = subprocess.run(command, capture_output=True, text=True, env=given, cwd=cwd, timeout=120)
    assert done.returncode == 1 and not done.stdout
    return done.stderr.splitlines()


def test_an_encoder_is_not_served_as_a_classifier(exported):
    assert start("--serve", "true", "--model", str(exported))[-1].endswith("has no classifier to serve")


def test_without_the_quickstart_one_message_says_what_to_do(tmp_path):
    (said,) = start(cwd=tmp_path)
    assert said.startswith("error: model 'runs/quickstart/export' is neither a folder here nor a Hub id")
    assert "run `make quickstart` first, or name a model (--model" in said


@pytest.mark.parametrize("serve", ["true", "false"])
def test_a_taken_port_is_one_message(tmp_path, serve):
    """Also where there is no model yet, which is looked for later."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = start("--serve", serve, "--port", str(port), cwd=tmp_path)
    assert said == [
        f"error: cannot listen on port {port} of 127.0.0.1 (Address already in use): name another one with --port"
    ]


@pytest.mark.parametrize("serve", ["true", "false"])
def test_it_says_where_it_answers_once_it_does(space, exported, finetuned, tmp_path, serve):
    model = tmp_path / "model"
    shutil.copytree(exported, model)
    settings = json.loads((model / "pretraining" / "config.json").read_text()) | {"mask_ratio": 0.62}
    (model / "pretraining" / "config.json").write_text(json.dumps(settings))
    model = with_base(finetuned, tmp_path / "finetuned", str(model))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [str(PYTHON), "app.py", "--model", str(model), "--port", str(port), "--serve", serve]
    given = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(
        command, cwd=space, env=given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            path, line = "", ""
            while not line.startswith(("answers at", "page at")):
                line = process.stdout.readline()
                assert line, "the server stopped"
                assert "share" not in line
            if serve == "true":
                path = "/demo"
                assert line == f"answers at {address}/classify, page at {address}/demo\n"
            else:
                assert line == f"page at {address}/\n"
            with urllib.request.urlopen(f"{address}{path}/config", timeout=10) as answer:  # at once
                parts = [part["props"] for part in json.load(answer)["components"]]
            assert [part["value"] for part in parts if part.get("label") == "Mask ratio"] == [0.62]
        finally:
            process.send_signal(signal.SIGINT)
            rest, _ = process.communicate(timeout=30)
    assert "Traceback" not in rest and "share" not in rest


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_in_a_browser(server, image, dicom, tmp_path, width, scheme):
    chromium, node = shutil.which("chromium"), shutil.which("node")
    modules = os.environ.get("NODE_PATH", "")
    if not (chromium and node and (Path(modules) / "playwright-core").is_dir()):
        pytest.skip("needs chromium, node, and playwright-core in NODE_PATH")
    command = [node, str(ROOT / "tests" / "space_browser.cjs"), chromium, f"{server}/demo/", "encoder", "plain"]
    command += [str(image), str(dicom)]
    done = subprocess.run([*command, str(width), scheme, str(tmp_path)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    names = ("start", "answer", "patch", "features", "surprise", "sensitivity", "autoencoder", "classifier")
    assert {file.stem for file in tmp_path.glob("*.png")} == set(names)
