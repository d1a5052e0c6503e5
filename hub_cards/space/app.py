"""A demo of any GLCM-MAE model: what it answers, what it rebuilds, and the texture of both. Research only.

    python app.py --model ORG/glcm-mae-busi-finetuned [--host 127.0.0.1] [--port 7860]
    python app.py --model path/to/classifier/export --serve true

With `--serve true`, POST / also answers as the Hub's image-classification task does, for
`huggingface_hub.InferenceClient(model="http://127.0.0.1:7860/classify").image_classification(...)`.
"""

import argparse
import base64
import io
import json
import math
import os
import threading
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import torch
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, RedirectResponse
from huggingface_hub import file_exists
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image, UnidentifiedImageError
from transformers import AutoConfig, AutoImageProcessor, ViTForImageClassification, pipeline

from corpora.folder import BadImageError
from modeling_glcm_mae import GLCMMAEForPreTraining, cooccurrence_matrix, texture_features
from recipe_dicom import read_dicom
from recipe_overlay import occlusion_map

CAVEAT = "**For research only.** This is not a medical device and must not be used for diagnosis."
_MASKING = threading.Lock()  # requests share a model, whose mask ratio is a field of its configuration
FUNCTIONS = ("softmax", "sigmoid", "none")


@dataclass(frozen=True)
class Model:
    """A repository as far as it can be shown: `classifier` or `autoencoder` is `None` where there is none."""

    name: str
    processor: Any
    classifier: ViTForImageClassification | None
    autoencoder: GLCMMAEForPreTraining | None
    figures: str


def _has(name: str, file: str) -> bool:
    return (Path(name) / file).is_file() if Path(name).is_dir() else file_exists(name, file)


@lru_cache(maxsize=2)
def load(name: str) -> Model:
    """Open a model by Hub id or folder. No code of a repository is run: the autoencoder's is this package's.

    Raises:
        ValueError: it cannot be opened, or is of another kind; names the model.
    """
    try:
        config = AutoConfig.from_pretrained(name)
        processor = AutoImageProcessor.from_pretrained(name)
        classifier = autoencoder = None
        if (config.architectures or [None])[0] == "ViTForImageClassification":
            classifier, report = ViTForImageClassification.from_pretrained(name, output_loading_info=True)
            if report["missing_keys"]:
                raise ValueError(f"weights are missing: {', '.join(sorted(report['missing_keys']))}")
            classifier.eval()
        if _has(name, "pretraining/config.json"):
            autoencoder = GLCMMAEForPreTraining.from_pretrained(name, subfolder="pretraining").eval()
    except (OSError, ValueError) as error:
        raise ValueError(f"model {name!r} cannot be opened: {str(error).splitlines()[0]}") from error
    if classifier is None and autoencoder is None:
        raise ValueError(f"model {name!r} has neither a classifier nor a pretraining/ folder: nothing to show")
    return Model(name, processor, classifier, autoencoder, _figures(name))


def _figures(name: str) -> str:
    """The results that the card states, with their intervals."""
    from huggingface_hub import ModelCard

    if not _has(name, "README.md"):
        return "The model states no results."
    card = ModelCard.load(Path(name) / "README.md" if Path(name).is_dir() else name).text
    _, mark, rest = card.partition("<!-- results -->")
    return (
        rest.partition("<!-- end of results -->")[0].replace("## ", "#### ") if mark else "The model states no results."
    )


def read(path: str | None) -> Image.Image:
    """An image file, or the first frame of a DICOM file, in 8-bit RGB.

    Raises:
        ValueError: it is neither.
    """
    if path is None:
        raise ValueError("drop an image first")
    file = Path(path)
    try:
        with file.open("rb") as opened:
            opened.seek(128)
            dicom = opened.read(4) == b"DICM"
        if dicom or file.suffix.lower() in (".dcm", ".dicom"):
            image = Image.open(io.BytesIO(next(read_dicom(file, name=file.name, salt="")).data))
        else:
            image = Image.open(file)
            image.load()
    except (UnidentifiedImageError, OSError, BadImageError) as error:
        raise ValueError(f"{file.name} cannot be read as an image: {str(error).splitlines()[0]}") from error
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image, dtype=np.float64)
        white = 65535 if values.max() > 255 else 255
        image = Image.fromarray((values / white * 255).round().clip(0, 255).astype(np.uint8))
    return image.convert("RGB")


def _pixels(model: Model, image: Image.Image) -> torch.Tensor:
    network = model.classifier or model.autoencoder
    return model.processor(
        images=image.convert("L") if network.config.num_channels == 1 else image, return_tensors="pt"
    )["pixel_values"]


def _picture(model: Model, pixels: torch.Tensor) -> np.ndarray:
    mean, std = (torch.tensor(getattr(model.processor, f"image_{name}")).view(-1, 1, 1) for name in ("mean", "std"))
    shown = (pixels * std + mean).clamp(0, 1)
    return (shown.expand(3, -1, -1).permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)


def _panels(pictures: dict[str, np.ndarray], columns: int) -> Image.Image:
    """Pictures with their names above them."""
    rows = -(-len(pictures) // columns)
    figure = Figure(figsize=(3.4 * columns, 3.6 * rows), layout="constrained")
    for axis, (name, picture) in zip(figure.subplots(rows, columns).flat, pictures.items(), strict=True):
        axis.imshow(picture, interpolation="nearest")
        axis.set_title(name, fontsize=14, y=-0.12)  # the label of the page lies over the top
        axis.axis("off")
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=100)
    return Image.open(drawn).convert("RGB")


def _enlarged(picture: np.ndarray) -> Image.Image:
    """In whole pixels to about the width of a phone: small models see small images."""
    factor = max(1, 320 // picture.shape[1])
    return Image.fromarray(picture.repeat(factor, axis=0).repeat(factor, axis=1))


@torch.no_grad()
def classify(model: Model, image: Image.Image) -> tuple[dict[str, float] | None, str]:
    """Probabilities, and how sure the answer is, in words."""
    if model.classifier is None:
        return None, f"{model.name} has no classifier: it shows reconstructions only."
    found = model.classifier(_pixels(model, image)).logits.softmax(dim=1)[0]
    entropy = float(-(found * found.clamp_min(1e-12).log()).sum() / math.log(len(found)))
    words = "sure" if entropy < 0.3 else "rather unsure" if entropy < 0.8 else "undecided"
    probabilities = {model.classifier.config.id2label[index]: float(value) for index, value in enumerate(found)}
    return (
        probabilities,
        f"The model is **{words}** (entropy {entropy:.2f} of 1). Sure is not the same as right.\n{model.figures}",
    )


@torch.no_grad()
def rebuild(model: Model, image: Image.Image, mask_ratio: float, seed: int) -> dict[str, torch.Tensor]:
    """`original`, `masked`, `reconstruction` and `pasted`, each `(C, H, W)`, normalised."""
    network, pixels = model.autoencoder, _pixels(model, image)
    patch, (height, width) = network.config.patch_size, pixels.shape[-2:]
    noise = torch.rand(1, (height // patch) * (width // patch), generator=torch.Generator().manual_seed(seed))
    kept = int(noise.shape[1] * (1 - mask_ratio))
    hidden = (noise.argsort(dim=1).argsort(dim=1) >= kept).view(1, 1, height // patch, width // patch)
    hidden = hidden.repeat_interleave(patch, -2).repeat_interleave(patch, -1)
    with _MASKING:
        network.config.mask_ratio = float(mask_ratio)
        rebuilt = network.reconstruct(pixels, noise=noise)
    parts = {"original": pixels, "masked": pixels.masked_fill(hidden, 0.0), "reconstruction": rebuilt}
    return {name: part[0] for name, part in (parts | {"pasted": torch.where(hidden, rebuilt, pixels)}).items()}


def texture_of_patch(
    model: Model, parts: dict[str, torch.Tensor], row: int, column: int
) -> tuple[dict[str, np.ndarray], list]:
    """Logarithm of the counts of a patch, original and reconstruction, and the table of their features."""
    config = model.autoencoder.config
    patch = config.patch_size
    top, left = row * patch, column * patch
    if top + patch > parts["original"].shape[1] or left + patch > parts["original"].shape[2]:
        raise ValueError(f"there is no patch in row {row}, column {column}")
    settings = {"levels": config.glcm_levels, "value_range": config.glcm_value_range, "kernel": "hard"}
    pictures, features = {}, []
    for name in ("original", "reconstruction"):
        square = parts[name][:, top : top + patch, left : left + patch].mean(dim=0)
        counts = cooccurrence_matrix(square, offsets=config.glcm_offsets, symmetric=True, **settings).sum(dim=0)
        features.append(texture_features(counts / counts.sum()))
        pictures[f"GLCM, {name}"] = torch.log1p(counts).numpy()
    first, second = features
    return pictures, [[name, round(float(first[name]), 4), round(float(second[name]), 4)] for name in first]


def overlay(model: Model, image: Image.Image) -> tuple[Image.Image, str]:
    """Where hiding the image lowers the probability of the answer (red) or raises it (blue)."""
    if model.classifier is None:
        raise ValueError(f"{model.name} has no classifier to explain")
    pixels = _pixels(model, image)
    with torch.no_grad():
        target = int(model.classifier(pixels).logits.argmax())
    patch = model.classifier.config.patch_size
    heat = occlusion_map(model.classifier, pixels[0], target, window=2 * patch, stride=patch).numpy()
    scaled = heat / max(float(np.abs(heat).max()), 1e-6) / 2 + 0.5
    mixed = 0.5 * _picture(model, pixels[0]) + 0.5 * 255 * colormaps["coolwarm"](scaled)[..., :3]
    name = model.classifier.config.id2label[target]
    return _enlarged(mixed.astype(np.uint8)), (
        f"Red: hiding this lowers the probability of **{name}**, by {max(100 * float(heat.max()), 0):.1f} points at "
        "most; blue: it raises it. "
        "It shows where the model is sensitive: not why, and no outline of a lesion."
    )


def _shown_errors(function):
    def call(*args):
        try:
            return function(*args)
        except ValueError as error:
            raise gr.Error(str(error)) from error

    return call


def build(first: str) -> gr.Blocks:
    """The page."""

    def answer(name, path, mask_ratio, seed, row, column):
        model, image = load(name), read(path)
        probabilities, words = classify(model, image)
        if model.autoencoder is None:
            return probabilities, words, None, None, [], f"{model.name} has no pretraining/ folder: no reconstruction."
        parts = rebuild(model, image, mask_ratio, int(seed))
        pictures, table = texture_of_patch(model, parts, int(row), int(column))
        rebuilt = _panels({name: _picture(model, part) for name, part in parts.items()}, columns=2)
        return probabilities, words, rebuilt, _panels(pictures, columns=2), table, ""

    with gr.Blocks(title="GLCM-MAE") as page:
        gr.Markdown(f"# GLCM-MAE\n{CAVEAT}")
        name = gr.Textbox(first, label="Model: Hub id or local folder")
        with gr.Row():
            with gr.Column(min_width=300):
                path = gr.File(label="Image or DICOM file", type="filepath")
                mask_ratio = gr.Slider(0.1, 0.95, 0.75, step=0.05, label="Mask ratio")
                seed = gr.Slider(0, 99, 0, step=1, label="Seed of the mask")
                row = gr.Slider(0, 13, 3, step=1, label="Patch row")
                column = gr.Slider(0, 13, 3, step=1, label="Patch column")
                go = gr.Button("Show", variant="primary")
            with gr.Column(min_width=300):
                label = gr.Label(label="Class probabilities")
                words = gr.Markdown()
        note = gr.Markdown()
        rebuilt = gr.Image(label="Masked reconstruction", type="pil")
        matrices = gr.Image(label="Co-occurrence matrices of the patch", type="pil")
        table = gr.Dataframe(headers=["feature", "original", "reconstruction"], label="Texture features of the patch")
        explain = gr.Button("Where is the model sensitive? (slower)")
        heat, meaning = gr.Image(label="Occlusion overlay"), gr.Markdown()
        inputs = [name, path, mask_ratio, seed, row, column]
        outputs = [label, words, rebuilt, matrices, table, note]
        go.click(_shown_errors(answer), inputs, outputs, api_name="answer", concurrency_limit=2)
        path.upload(_shown_errors(answer), inputs, outputs, api_name=False, concurrency_limit=2)
        for slider in (mask_ratio, seed, row, column):
            slider.release(_shown_errors(answer), inputs, outputs, api_name=False, concurrency_limit=2)
        sensitive = _shown_errors(lambda name, path: overlay(load(name), read(path)))
        explain.click(sensitive, [name, path], [heat, meaning], api_name="overlay", concurrency_limit=1)
    return page.queue(max_size=64)


def serve(name: str) -> FastAPI:
    """The Hub's image-classification task at POST /classify.

    Raises:
        ValueError: the model has no classifier.
    """
    if load(name).classifier is None:
        raise ValueError(f"model {name!r} has no classifier to serve")
    model = pipeline("image-classification", name)
    app = FastAPI()

    @app.post("/classify")
    async def classification(request: Request):
        body, parameters = await request.body(), {}
        try:
            if request.headers.get("content-type", "").startswith("application/json"):
                asked = json.loads(body)
                body, parameters = base64.b64decode(asked["inputs"], validate=True), asked.get("parameters") or {}
            unknown = sorted(set(parameters) - {"top_k", "function_to_apply"})
            if unknown:
                raise ValueError(f"unknown parameter {unknown[0]!r}; allowed are function_to_apply and top_k")
            if parameters.get("function_to_apply", "softmax") not in FUNCTIONS:
                raise ValueError(f"function_to_apply must be one of {', '.join(FUNCTIONS)}")
            top_k = parameters.get("top_k", 5)
            if not isinstance(top_k, int) or top_k < 1:
                raise ValueError(f"top_k must be a whole number of at least 1, got {top_k!r}")
            image = Image.open(io.BytesIO(body))
            image.load()
        except (KeyError, ValueError, OSError) as error:
            return JSONResponse({"error": f"the request cannot be read: {error}"}, status_code=400)
        return model(image.convert("RGB"), **{"top_k": 5} | parameters)

    @app.get("/")
    def root():
        return RedirectResponse("/demo")

    return app


def main() -> None:
    """Start the server."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=os.environ.get("GLCM_MAE_MODEL", "runs/quickstart/export"))
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--serve", default="false", choices=["true", "false"])
    args = parser.parse_args()
    try:
        if args.serve == "true":
            app = gr.mount_gradio_app(serve(args.model), build(args.model), path="/demo")
            uvicorn.run(app, host=args.host, port=args.port, log_level="warning")
            return
        load(args.model)
    except ValueError as error:
        hint = " (`make quickstart` makes it)" if args.model == "runs/quickstart/export" else ""
        raise SystemExit(f"error: {error}{hint}") from error
    # On the Hub, Gradio sets address and port itself.
    here = {} if "SPACE_ID" in os.environ else {"server_name": args.host, "server_port": args.port}
    build(args.model).launch(**here)


if __name__ == "__main__":
    main()
