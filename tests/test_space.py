"""The demo and the server, started as a user starts them, in an environment of their own."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch
from helpers import colour, encode, write
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from test_publish import classifier  # noqa: F401 - a fixture
from transformers import pipeline

from modeling_glcm_mae import GLCMMAEForPreTraining
from publish import PublishArguments, publication_of
from recipe_data import ImageTransform
from recipe_export import ADDRESS, write_export

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


@pytest.fixture(scope="module")
def server(classifier, tmp_path_factory):  # noqa: F811
    """The space as it lies on the Hub, its files alone; the address."""
    space = tmp_path_factory.mktemp("space") / "flat"
    publication, _ = publication_of(PublishArguments(str(ROOT / "hub_cards" / "space"), "org/demo", "space"))
    for name, file in publication.files.items():
        (space / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, space / name)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(PYTHON), "app.py", "--model", str(classifier), "--port", str(port), "--serve", "true"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    process = subprocess.Popen(command, cwd=space, env=environment | {"HF_HUB_OFFLINE": "1"})
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
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


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("image") / "image.png", encode(colour(48, 48)))


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
    with pytest.raises(HfHubHTTPError, match="the request cannot be read"):
        client.image_classification(b"no image")


def demo(server: str, script: str) -> str:
    opened = f"from gradio_client import Client, handle_file\nclient = Client('{server}/demo/', verbose=False)\n"
    script = opened + script
    done = subprocess.run([str(PYTHON), "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_panel_answers_and_ten_at_once(server, exported, classifier, image):  # noqa: F811
    demo(
        server,
        f"""
def ask(model, seed=0):
    return client.submit(model, handle_file({str(image)!r}), 0.75, seed, 1, 2, api_name="/answer")
label, words, rebuilt, matrices, table, note = ask({str(classifier)!r}).result()
assert {{row["label"] for row in label["confidences"]}} == {{"benign", "malignant"}}, label
assert "0.250 to 0.750" in words and "no reconstruction" in note and not rebuilt and not matrices
results = [job.result() for job in [ask({str(exported)!r}, seed) for seed in range(10)]]
for label, words, rebuilt, matrices, table, note in results:
    assert "no classifier" in words
    assert rebuilt and matrices and len(table["data"]) == 25
assert len({{rebuilt for _, _, rebuilt, _, _, _ in results}}) > 1, "the seed changes the mask"
picture, meaning = client.predict({str(classifier)!r}, handle_file({str(image)!r}), api_name="/overlay")
assert "no outline of a lesion" in meaning and picture
""",
    )


@pytest.mark.parametrize(
    ("model", "file", "message"),
    [("nowhere/at-all", "image.png", "cannot be opened"), (None, "notes.png", "notes.png cannot be read as an image")],
)
def test_mistakes_are_one_sentence(server, classifier, image, tmp_path, model, file, message):  # noqa: F811
    path = image if file == "image.png" else write(tmp_path / file, b"no image")
    said = demo(
        server,
        f"""
try:
    client.predict({model or str(classifier)!r}, handle_file({str(path)!r}), 0.75, 0, 1, 2, api_name="/answer")
except Exception as error:
    print(error)
""",
    )
    assert message in said and "Traceback" not in said


def test_an_encoder_is_not_served_as_a_classifier(exported):
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'recipes'}"}
    command = [str(PYTHON), str(ROOT / "hub_cards/space/app.py"), "--serve", "true", "--model", str(exported)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 1 and "has no classifier to serve" in done.stderr.splitlines()[-1]
    assert sys.executable != str(PYTHON)


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_in_a_browser(server, exported, image, tmp_path, width, scheme):
    chromium, node = shutil.which("chromium"), shutil.which("node")
    modules = os.environ.get("NODE_PATH", "")
    if not (chromium and node and (Path(modules) / "playwright-core").is_dir()):
        pytest.skip("needs chromium, node, and playwright-core in NODE_PATH")
    command = [node, str(ROOT / "tests" / "space_browser.cjs"), chromium, f"{server}/demo/", str(exported), str(image)]
    done = subprocess.run([*command, str(width), scheme, str(tmp_path)], capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(tmp_path.glob("*.png"))) == 2
