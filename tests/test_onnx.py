"""Models by torch.export and as ONNX: the answers of PyTorch, for any number of images, and as a stranger gets them."""

import copy
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import encode, picture, write
from PIL import Image
from test_publish import (  # noqa: F401 - fixtures
    OF_THE_REPOSITORY,
    REPO,
    contents,
    exported,
    python,
    trained,
    written_classifier,
)
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification, ViTModel, pipeline

import publish as publish_recipe
from commandline import UsageError
from hub.cards import ADDRESS
from hub.contents import PublishArguments
from hub.export import stock_encoder, write_export
from hub.onnx_model import onnx_model
from hub.publication import ONNX_FILE
from images.transform import ImageTransform
from modeling_glcm_mae import GLCMMAEForPreTraining
from training.calibration import divide_head

NEEDED = "needs the extra onnx: pip install -c constraints.txt -e '.[onnx]'"


@pytest.fixture(scope="module")
def onnxruntime():
    pytest.importorskip("onnxscript", reason=NEEDED)
    return pytest.importorskip("onnxruntime", reason=NEEDED)


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory) -> Path:
    """A classifier whose head was divided by its temperature, as fine-tuning leaves it."""
    folder = written_classifier(tmp_path_factory.mktemp("onnx") / "classifier", "cls")
    model = AutoModelForImageClassification.from_pretrained(folder)
    with torch.no_grad():
        model.classifier.weight.mul_(100)
    divide_head(model, 2.5)
    model.save_pretrained(folder)
    return folder


# --------------------------------------------------------------------------------------------------------- torch.export


@pytest.mark.parametrize("kind", ["encoder", "cls", "mean"])
def test_torch_export_takes_any_number_of_images(trained, tmp_path, kind):  # noqa: F811
    if kind == "encoder":
        model = stock_encoder(trained)
    else:
        folder = written_classifier(tmp_path / "classifier", kind)
        model = AutoModelForImageClassification.from_pretrained(folder).eval()
    batch = {"pixel_values": {0: torch.export.Dim("batch")}}
    program = torch.export.export(model, (), {"pixel_values": torch.randn(2, 3, 32, 32)}, dynamic_shapes=batch)
    for count in (1, 2, 5):
        pixels = torch.randn(count, 3, 32, 32)
        with torch.no_grad():
            expected, found = model(pixel_values=pixels), program.module()(pixel_values=pixels)
        assert list(found) == list(expected)
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-5)


# ----------------------------------------------------------------------------------------------------------------- ONNX


def test_an_onnx_encoder_sees_all_patches_of_any_number_of_images(onnxruntime, tiny_config, tmp_path):
    torch.manual_seed(1)
    model = GLCMMAEForPreTraining(tiny_config(image_size=(32, 48), num_channels=1)).eval()
    processor = ImageTransform((32, 48), resize="squash", image_mean=(0.4,), image_std=(0.2,)).processor()
    write_export(tmp_path, model, processor, {}, [], {"title": "Tiny", "repo_id": ADDRESS})
    session = onnxruntime.InferenceSession(onnx_model(tmp_path))
    assert [value.name for value in session.get_inputs()] == ["pixel_values"]
    assert [value.name for value in session.get_outputs()] == ["last_hidden_state", "pooler_output"]
    # Our own encoder, told to hide none: its patches in their order.
    model.config.mask_ratio = 0.0
    for count in (1, 3):
        pixels = torch.randn(count, 1, 32, 48)
        with torch.no_grad():
            expected = model.vit(pixels, noise=torch.arange(24.0).expand(count, -1)).last_hidden_state.numpy()
        features, cls_token = session.run(None, {"pixel_values": pixels.numpy()})
        assert features.shape == (count, 25, 32)
        np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(cls_token, expected[:, 0], rtol=1e-4, atol=1e-4)


def test_an_onnx_classifier_answers_calibrated_probabilities_and_names_no_place(onnxruntime, calibrated):
    content = onnx_model(calibrated)
    session = onnxruntime.InferenceSession(content)
    assert [value.name for value in session.get_outputs()] == ["logits"]
    images = [Image.fromarray(picture(seed, 40)) for seed in range(3)]
    pixels = AutoImageProcessor.from_pretrained(calibrated)(images=images, return_tensors="np")["pixel_values"]
    (logits,) = session.run(["logits"], {"pixel_values": pixels})
    found = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    said = [
        {row["label"]: row["score"] for row in answers}
        for answers in pipeline("image-classification", str(calibrated), device="cpu")(images)
    ]
    expected = [[answers["benign"], answers["malignant"]] for answers in said]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.ptp(found[:, 0]) > 0.01, "the images are told apart"
    for place in (b"site-packages", str(Path(torch.__file__).parent).encode(), str(calibrated).encode()):
        assert place not in content


def test_the_demo_takes_only_a_classifier_for_its_onnx_model(onnxruntime, calibrated, exported, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "hub_cards" / "space")
    from onnx_classifier import OnnxClassifier

    config, file = AutoConfig.from_pretrained(calibrated), tmp_path / "model.onnx"
    file.write_bytes(onnx_model(calibrated))
    model = OnnxClassifier(config, file)
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = AutoModelForImageClassification.from_pretrained(calibrated).eval()(pixels).logits
    torch.testing.assert_close(model(pixels).logits, expected, rtol=1e-4, atol=1e-4)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match="model.onnx is no ONNX model that can be run"):
        OnnxClassifier(config, file)
    file.write_bytes(onnx_model(exported))
    with pytest.raises(ValueError, match="takes and gives .*'last_hidden_state'.*, not pixel_values and logits"):
        OnnxClassifier(config, file)


def assert_published_with_onnx(hub, repo_id: str, before: dict[str, bytes]) -> str:
    """Nothing but the ONNX model was added; returns what the card says of it."""
    assert set(hub.files(repo_id)) == {*before, ONNX_FILE, *OF_THE_REPOSITORY}
    assert set(hub.repo(repo_id).tags) == {"v1"}
    card = hub.files(repo_id)["README.md"].decode()
    load, onnx, how = (card.index(f"\n## {name}") for name in ("Load it", "Run it without PyTorch", "How it was"))
    assert load < onnx < how and "```\n\n## " in card[onnx : how + 4]
    return card[onnx:how]


def run_without_pytorch(hub, home: Path, image: Path, said: str, told: str) -> list:
    """The code of the card, and what `told` says of its results."""
    (code,) = re.findall(r"```python\n(.*?)```", said, re.DOTALL)
    opened = f"sys.modules['torch'] = None\nfrom PIL import Image\nimage = Image.open({str(image)!r})\n"
    return python(hub, home, f"{opened}{code}\nfound['told'] = {told}", interpreter=sys.executable)["told"]


@pytest.mark.slow
def test_a_published_encoder_runs_without_pytorch_as_its_card_says(
    hub,
    client,
    verified_here,
    onnxruntime,
    exported,
    tmp_path,
    capsys,
    caplog,  # noqa: F811
):
    client()
    before = contents(exported)
    with caplog.at_level("INFO"):
        publish_recipe.main(["--export_dir", str(exported), "--repo_id", REPO, "--onnx", "true"])
    assert f"verified     {ONNX_FILE} gives the same answers from the Hub as PyTorch" in capsys.readouterr().out
    assert not [record for record in caplog.records if re.match(r"onnx|torch\.", record.name)], "hundreds of lines"
    assert contents(exported) == before
    said = assert_published_with_onnx(hub, REPO, before)
    file = write(tmp_path / "image.png", encode(np.stack([picture(0, 40)] * 3, axis=-1)))
    told = run_without_pytorch(hub, tmp_path / "b", file, said, "[features.shape, cls_token[0].tolist()]")
    pixels = AutoImageProcessor.from_pretrained(exported)(images=Image.open(file), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = ViTModel.from_pretrained(exported).eval()(pixels).pooler_output[0].tolist()
    assert told == [[1, 17, 32], pytest.approx(expected, abs=1e-4)]


@pytest.mark.slow
def test_a_published_classifier_runs_without_pytorch_and_is_sent_once(
    hub, client, verified_here, onnxruntime, calibrated, tmp_path, capsys, caplog
):
    client()
    given = ["--export_dir", str(calibrated), "--repo_id", REPO, "--onnx"]
    publish_recipe.main([*given, "true"])
    assert f"verified     {ONNX_FILE} gives the same answers from the Hub as PyTorch" in capsys.readouterr().out
    said = assert_published_with_onnx(hub, REPO, contents(calibrated))
    file = write(tmp_path / "image.png", encode(np.stack([picture(0, 40)] * 3, axis=-1)))
    told = run_without_pytorch(hub, tmp_path / "b", file, said, "[logits.shape, probabilities[0].tolist()]")
    answers = pipeline("image-classification", str(calibrated), device="cpu")(Image.open(file))
    expected = {row["label"]: row["score"] for row in answers}
    assert told == [[1, 2], pytest.approx([expected["benign"], expected["malignant"]], abs=1e-4)]

    # The same model gives the same bytes, so nothing is to be sent again; without the option it goes.
    publish_recipe.main([*given, "true"])
    assert len(hub.commits(REPO)) == 2 and set(hub.repo(REPO).tags) == {"v1"}
    with caplog.at_level("INFO"):
        publish_recipe.main([*given, "false"])
    assert ONNX_FILE not in hub.files(REPO) and f"deletes {ONNX_FILE}" in caplog.text
    assert "Run it without" not in hub.files(REPO)["README.md"].decode()


@pytest.mark.slow
def test_a_model_that_answers_otherwise_is_not_published(hub, client, onnxruntime, calibrated, monkeypatch):
    client()
    export = torch.onnx.export

    def other(model, *arguments, **options):
        model = copy.deepcopy(model)
        model.classifier.bias.data[1] += 1e-3
        return export(model, *arguments, **options)

    monkeypatch.setattr("torch.onnx.export", other)
    with pytest.raises(SystemExit, match=r"otherwise than PyTorch: logits is off by 0\.001, allowed is 0\.0001"):
        publish_recipe.main(["--export_dir", str(calibrated), "--repo_id", REPO, "--onnx", "true"])
    assert not hub.repos


def test_what_cannot_be_had_as_onnx_is_told(calibrated, tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="fold and onnx are for models"):
        PublishArguments(str(tmp_path), REPO, "dataset", onnx=True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxruntime" else object())
    given = ["--export_dir", str(calibrated), "--repo_id", REPO, "--dry_run", "true", "--onnx", "true"]
    with pytest.raises(SystemExit, match=r"error: onnx true needs onnxruntime: pip install .*\[onnx\]"):
        publish_recipe.main(given)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr("hub.onnx_model.LARGEST", 1000)
    with pytest.raises(SystemExit, match=r"error: onnx true: the weights of .* take [\d,]+ bytes, allowed are 1,000"):
        publish_recipe.main(given)
    other = shutil.copytree(calibrated, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"architectures": ["ViTMAEForPreTraining"]}))
    given[1] = str(other)
    with pytest.raises(SystemExit, match="onnx true is for ViTModel, .* holds a ViTMAEForPreTraining"):
        publish_recipe.main(given)
