"""A demo of any GLCM-MAE model: what it answers, what it rebuilds, and the texture of both. Research only.

    python app.py --model ORG/glcm-mae-busi-finetuned [--host 127.0.0.1] [--port 7860]
    python app.py --model path/to/classifier/export --serve true

With `--serve true`, POST /classify also answers as the Hub's image-classification task does, for
`huggingface_hub.InferenceClient(model="http://127.0.0.1:7860/classify").image_classification(...)`.
"""

import argparse
import base64
import contextlib
import errno
import io
import json
import logging
import math
import os
import re
import socket
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import torch
import uvicorn
import yaml
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, RedirectResponse
from huggingface_hub import hf_hub_download, metadata_load
from huggingface_hub.errors import HFValidationError, RemoteEntryNotFoundError, StrictDataclassError
from huggingface_hub.utils import validate_repo_id
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from safetensors import SafetensorError
from transformers import AutoConfig, AutoImageProcessor, PreTrainedModel, ViTForImageClassification, pipeline

from corpora.record import DICOM_SUFFIXES
from hub.vit_mean_pooling import ViTMeanPoolingForImageClassification
from images.decode import decode_image, is_deep, to_8_bits
from images.dicom import read_dicom
from judging.overlay import occlusion_map
from modeling_glcm_mae import GLCMMAEForPreTraining, cooccurrence_matrix, texture_features

logger = logging.getLogger("demo")
CAVEAT = "**For research only.** This is not a medical device and must not be used for diagnosis."
CLASSIFIERS = {kind.__name__: kind for kind in (ViTForImageClassification, ViTMeanPoolingForImageClassification)}
DEFAULT_MODEL = "runs/quickstart/export"
FUNCTIONS = ("softmax", "sigmoid", "none")
HIDDEN_COLOUR = (58, 82, 150)  # no grey, which would look like anatomy
SHOWN_LEVELS = 32  # a patch has too few pairs of pixels for a matrix of more grey levels
# What transformers, the Hub's client and safetensors raise on a repository that is damaged or not there.
UNUSABLE = (OSError, ValueError, RuntimeError, SafetensorError, StrictDataclassError, yaml.YAMLError)


@dataclass(frozen=True)
class Network:
    """A network with the processor it was trained with, and the grey value of white in its training."""

    model: PreTrainedModel
    processor: Any
    white: float

    def pixels(self, image: Image.Image) -> torch.Tensor:
        """`(1, C, H, W)`, normalised, of an 8-bit RGB image."""
        grey = self.model.config.num_channels == 1
        try:
            return self.processor(images=image.convert("L") if grey else image, return_tensors="pt")["pixel_values"]
        except ValueError as error:  # a strip, say, of which one side would have no pixel left
            size = f"{image.width} x {image.height}"
            raise ValueError(f"an image of {size} pixels cannot be resized for the model: {error}") from error

    def picture(self, pixels: torch.Tensor) -> np.ndarray:
        """`(H, W, 3)` uint8 of normalised pixels `(C, H, W)`, which are NaN where they are hidden."""
        mean, std = (torch.tensor(getattr(self.processor, f"image_{name}")).view(-1, 1, 1) for name in ("mean", "std"))
        shown = (pixels.nan_to_num() * std + mean).clamp(0, 1)
        picture = (shown.expand(3, -1, -1).permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
        picture[pixels.isnan().any(dim=0).numpy()] = HIDDEN_COLOUR
        return picture


@dataclass(frozen=True)
class Model:
    """A repository as far as it can be shown.

    Attributes:
        classifier, autoencoder: `None` where there is none.
        figures: the results that the card states, with their intervals, in Markdown.
        note: whose autoencoder is shown, or why a part is missing.
    """

    classifier: Network | None
    autoencoder: Network | None
    figures: str
    note: str


@dataclass(frozen=True)
class Patch:
    """A square of the model's grid, in pixels of the model's input."""

    top: int
    left: int
    size: int


@lru_cache(maxsize=2)
def load(name: str) -> Model:
    """Open a model by Hub id or folder. No code of a repository is run: the classes are this package's.

    A classifier's repository has no decoder. The autoencoder is then that of the `base_model` which its card names; if
    it names none, that which a cross-validation left in the same fold.

    Raises:
        ValueError: it cannot be opened, or is of another kind; names the model.
    """
    try:
        if not name or not Path(name).is_dir():
            validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(f"model {name!r} is neither a folder here nor a Hub id, OWNER/NAME") from error
    try:
        architecture = (AutoConfig.from_pretrained(name, trust_remote_code=False).architectures or ["none"])[0]
        classifier = _network(CLASSIFIERS[architecture], name) if architecture in CLASSIFIERS else None
        card = _file(name, "README.md")
        if classifier is None:
            autoencoder, note = _autoencoder(name), f"{name} has no classifier: it shows reconstructions only."
        else:
            autoencoder, note = _autoencoder_of_base(name, card)
    except UNUSABLE as error:
        raise ValueError(f"model {name!r} cannot be opened: {_first_line(error)}") from error
    if classifier is None and autoencoder is None:
        raise ValueError(
            f"model {name!r} is a {architecture} without a pretraining/ folder; allowed are {', '.join(CLASSIFIERS)}, "
            "and encoders with one"
        )
    return Model(classifier, autoencoder, _figures(card), note)


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _file(name: str, file: str) -> Path | None:
    """A file of a repository or folder; `None` if it is not there."""
    if Path(name).is_dir():
        return Path(name, file) if Path(name, file).is_file() else None
    try:
        return Path(hf_hub_download(name, file))
    except RemoteEntryNotFoundError:
        return None


def _network(kind: type[PreTrainedModel], name: str, **where: str) -> Network:
    model, report = kind.from_pretrained(name, output_loading_info=True, **where)
    if report["missing_keys"]:
        raise ValueError(f"weights are missing: {', '.join(sorted(report['missing_keys']))}")
    processor = AutoImageProcessor.from_pretrained(name, trust_remote_code=False)
    # `read` makes every image one of 8 bits, also for models that were trained on deeper ones.
    white = round(1 / processor.rescale_factor, 6)
    processor.rescale_factor, processor.do_convert_rgb = 1 / 255, model.config.num_channels == 3
    return Network(model.eval(), processor, white)


def _autoencoder(name: str) -> Network | None:
    if _file(name, "pretraining/config.json") is None:
        return None
    return _network(GLCMMAEForPreTraining, name, subfolder="pretraining")


def _autoencoder_of_base(name: str, card: Path | None) -> tuple[Network | None, str]:
    """The autoencoder of the model that a classifier was trained from, and a sentence on it."""
    origin, folder = f"the base_model of {name}", Path(name).resolve()
    try:
        base = (metadata_load(card) or {}).get("base_model") if card else None
        if isinstance(base, list):
            base = base[0] if base else None
        if base is None and folder.is_dir() and folder.match("fold_*/finetune/export"):
            beside = folder.parents[1] / "pretrain" / "export"  # as cross_validate.py leaves it
            if beside.is_dir():
                base, origin = str(beside), f"the encoder of the same fold as {name}"
        if base is None:
            return None, (
                f"No reconstruction: the card of {name} names no base_model, whose autoencoder could be shown. "
                "Publish the encoder and pass --base_model ORG/ENCODER to publish.py."
            )
        autoencoder = _autoencoder(base)
    except UNUSABLE as error:
        return None, f"No reconstruction: {origin} cannot be opened ({_first_line(error)})."
    if autoencoder is None:
        return None, f"No reconstruction: {base}, {origin}, has no pretraining/ folder."
    return autoencoder, f"The reconstruction is by {base}, {origin}."


def _figures(card: Path | None) -> str:
    """The results that a card states, with their intervals. Its pictures are files of the repository: left out."""
    _, mark, rest = (card.read_text(encoding="utf-8") if card else "").partition("<!-- results -->")
    results = re.sub(r"!\[[^]]*\]\([^)]*\)", "", rest.partition("<!-- end of results -->")[0]).strip()
    return results.replace("## ", "#### ") if mark and results else "The model's card states no results."


def read(data: bytes, name: str, white: float) -> tuple[Image.Image, str]:
    """An image file, or the first frame of a DICOM file, in 8-bit RGB; and the DICOM window in words.

    Args:
        data: the file's bytes.
        name: its name; what errors call it.
        white: the grey value of white in the model's training. Files of another depth are read by the white of theirs,
            DICOM files by their window.

    Raises:
        ValueError: what the training would say of the file.
    """
    words, own = "", None
    if data[128:132] == b"DICM" or name.lower().endswith(DICOM_SUFFIXES):
        frame = next(read_dicom(io.BytesIO(data), name=name, salt=""))
        data = frame.png
        if frame.window is not None:
            centre, width, source = frame.window
            words = f"Grey of {name}: window with centre {centre:g} and width {width:g} (of the {source})."
    elif (white != 255) if is_deep(data, name=name) else (1 < white <= 255):
        own = white
    pixels = decode_image(data, name=name, num_channels=3, white_level=own)
    return Image.fromarray(to_8_bits(pixels)), words


def _opened(name: str, path: str | None) -> tuple[Model, Image.Image, str]:
    if path is None:
        raise ValueError("drop an image first")
    model = load(name.strip())
    return model, *read(Path(path).read_bytes(), Path(path).name, (model.classifier or model.autoencoder).white)


@torch.no_grad()
def classify(model: Model, image: Image.Image) -> tuple[dict[str, float], str]:
    """Probabilities, and how sure the answer is, in words."""
    network = model.classifier.model
    found = network(model.classifier.pixels(image)).logits.softmax(dim=1)[0]
    entropy = float(-(found * found.clamp_min(1e-12).log()).sum() / math.log(len(found)))
    words = "sure" if entropy < 0.3 else "rather unsure" if entropy < 0.8 else "undecided"
    return (
        {network.config.id2label[index]: float(value) for index, value in enumerate(found)},
        f"The model is **{words}** (entropy {entropy:.2f} of 1). Sure is not the same as right.",
    )


@torch.no_grad()
def rebuild(
    network: Network, image: Image.Image, mask_ratio: float, seed: int, down: float, right: float
) -> tuple[dict[str, torch.Tensor], Patch]:
    """Hide patches at random, and the chosen one in any case: what is visible was never judged in the training.

    Args:
        network: an autoencoder.
        image: 8-bit RGB.
        mask_ratio: share of the patches that are hidden.
        seed: of the mask.
        down, right: of the chosen patch, in per cent of the image's height and width.

    Returns:
        `original`, `masked` (NaN where hidden), `reconstruction` and `pasted`, each `(C, H, W)`, normalised; the chosen
        patch.
    """
    pixels, size = network.pixels(image), network.model.config.patch_size
    rows, columns = (side // size for side in pixels.shape[-2:])
    row, column = (min(int(part / 100 * number), number - 1) for part, number in ((down, rows), (right, columns)))
    noise = torch.rand(1, rows * columns, generator=torch.Generator().manual_seed(seed))
    noise[0, row * columns + column] = 1  # the highest are hidden
    rebuilt = network.model.reconstruct(pixels, noise=noise, mask_ratio=mask_ratio)
    parts = {
        "original": pixels,
        "masked": pixels.masked_fill(rebuilt.pixel_mask, math.nan),
        "reconstruction": rebuilt.reconstruction,
        "pasted": rebuilt.pasted,
    }
    return {name: part[0] for name, part in parts.items()}, Patch(row * size, column * size, size)


def texture(network: Network, square: torch.Tensor) -> tuple[np.ndarray, dict[str, torch.Tensor]]:
    """Joint counts `(K, K)` of a normalised patch `(C, p, p)` over all offsets of the model, and their features."""
    config = network.model.config
    counts = cooccurrence_matrix(
        network.model.grey(square.movedim(0, -1)),
        levels=min(config.glcm_levels, SHOWN_LEVELS),
        value_range=config.glcm_value_range,
        offsets=config.glcm_offsets,
        kernel="hard",
        symmetric=True,
    ).sum(dim=0)
    return counts.numpy(), texture_features(counts / counts.sum())


def draw_reconstruction(network: Network, parts: dict[str, torch.Tensor], patch: Patch) -> Image.Image:
    """The parts with their names, the chosen patch framed."""
    figure = Figure(figsize=(7, 7.4), dpi=120, layout="constrained")
    for axis, (name, part) in zip(figure.subplots(2, 2).flat, parts.items(), strict=True):
        axis.imshow(network.picture(part), interpolation="nearest")
        corner = (patch.left - 0.5, patch.top - 0.5)
        axis.add_patch(Rectangle(corner, patch.size, patch.size, fill=False, color="#ffb000", lw=2))
        axis.set_title(name, fontsize=15)
        axis.axis("off")
    return _image(figure)


def draw_texture(network: Network, squares: dict[str, torch.Tensor], counts: list[np.ndarray]) -> Image.Image:
    """The chosen patch, original and rebuilt, and below each its joint counts on one scale."""
    figure = Figure(figsize=(7, 7.4), dpi=120, layout="constrained")
    above, below = figure.subplots(2, 2)
    for axis, (name, square) in zip(above, squares.items(), strict=True):
        axis.imshow(network.picture(square), interpolation="nearest")
        axis.set_title(f"patch, {name}", fontsize=15)
        axis.axis("off")
    levels, most = len(counts[0]), max(2.0, *(float(matrix.max()) for matrix in counts))
    for axis, name, matrix in zip(below, squares, counts, strict=True):
        axis.set_facecolor("black")  # where there is no pair: zero has no logarithm
        extent = (0.5, levels + 0.5, levels + 0.5, 0.5)
        shades = axis.imshow(matrix, norm=LogNorm(1, most), cmap="magma", extent=extent, interpolation="nearest")
        axis.set_title(f"GLCM, {name}", fontsize=15)
        axis.set_xlabel("grey level", fontsize=13)
        axis.tick_params(labelsize=12)
    below[0].set_ylabel("grey level of the neighbour", fontsize=13)
    ticks = [tick for tick in (1, 3, 10, 30, 100, 300, 1000) if tick <= most]
    bar = figure.colorbar(shades, ax=below, location="bottom", shrink=0.8, aspect=30, ticks=ticks, format="%d")
    bar.ax.minorticks_off()
    bar.ax.tick_params(labelsize=12)
    bar.set_label("pairs of pixels (black: none)", fontsize=13)
    return _image(figure)


@torch.no_grad()
def overlay(network: Network, image: Image.Image) -> tuple[Image.Image, str]:
    """Where hiding the image lowers the probability of a classifier's answer (red) or raises it (blue)."""
    pixels, patch = network.pixels(image), network.model.config.patch_size
    target = int(network.model(pixels).logits.argmax())
    window = min(2 * patch, *pixels.shape[-2:])
    # On large grids side by side: overlapping windows of a ViT-B/16 would take a minute on two cores.
    stride = patch if pixels.shape[-1] < 10 * patch else window
    heat = 100 * occlusion_map(network.model, pixels[0], target, window=window, stride=stride).numpy()
    limit, name = max(float(np.abs(heat).max()), 1e-4), network.model.config.id2label[target]
    figure = Figure(figsize=(7, 4.6), dpi=120, layout="constrained")
    plain, mixed = figure.subplots(1, 2)
    for axis, title in ((plain, "original"), (mixed, "overlay")):
        axis.imshow(network.picture(pixels[0]), interpolation="nearest")
        axis.set_title(title, fontsize=15)
        axis.axis("off")
    shades = mixed.imshow(heat, cmap="coolwarm", alpha=0.5, vmin=-limit, vmax=limit)
    bar = figure.colorbar(shades, ax=[plain, mixed], location="bottom", shrink=0.8, aspect=30)
    bar.ax.tick_params(labelsize=12)
    bar.set_label("fall of the probability where hidden, in points", fontsize=13)
    return _image(figure), (
        f"Red: hiding this lowers the probability of **{name}**, by {max(float(heat.max()), 0):.1f} points at most; "
        "blue: it raises it. It shows where the model is sensitive: not why, and no outline of a lesion."
    )


def _enlarged(picture: np.ndarray) -> Image.Image:
    """In whole pixels to about the width of a phone: small models see small images."""
    factor = max(1, 320 // picture.shape[1])
    return Image.fromarray(picture.repeat(factor, axis=0).repeat(factor, axis=1))


def _image(figure: Figure) -> Image.Image:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def _shown_errors(function):
    def call(*args):
        try:
            return function(*args)
        except ValueError as error:
            raise gr.Error(str(error)) from error

    return call


def panels(model: Model, image: Image.Image, mask_ratio: float, seed: int, down: float, right: float) -> tuple:
    """What the page shows: input, probabilities, words on them, reconstruction, matrices, table of features."""
    shown = model.classifier or model.autoencoder
    seen = _enlarged(shown.picture(shown.pixels(image)[0]))
    probabilities, words = (None, "") if model.classifier is None else classify(model, image)
    if model.autoencoder is None:
        return seen, probabilities, words, None, None, []
    parts, patch = rebuild(model.autoencoder, image, mask_ratio, int(seed), down, right)
    rows, columns = slice(patch.top, patch.top + patch.size), slice(patch.left, patch.left + patch.size)
    squares = {part: parts[part][:, rows, columns] for part in ("original", "reconstruction")}
    counts, features = zip(*(texture(model.autoencoder, square) for square in squares.values()), strict=True)
    values = [[f"{float(value) + 0.0:.4g}" for value in found.values()] for found in features]  # no "-0"
    table = [list(row) for row in zip(features[0], *values, strict=True)]
    rebuilt = draw_reconstruction(model.autoencoder, parts, patch)
    return seen, probabilities, words, rebuilt, draw_texture(model.autoencoder, squares, list(counts)), table


def build(first: str) -> gr.Blocks:
    """The page."""
    model = load(first)
    # As in the training, within the slider's range. Read before the first answer, which sets it.
    trained = 0.75 if model.autoencoder is None else min(max(model.autoencoder.model.config.mask_ratio, 0.1), 0.95)
    # A first answer takes two seconds more than later ones: nobody shall wait for it.
    panels(model, Image.new("RGB", (64, 64)), trained, 0, 50, 50)

    def answer(name, path, *settings):
        model, image, window = _opened(name, path)
        seen, probabilities, words, *others = panels(model, image, *settings)
        visible = [gr.Column(visible=part is not None) for part in (seen, model.classifier, model.autoencoder)]
        return seen, probabilities, words, f"{model.note} {window}".strip(), *others, model.figures, *visible

    def answer_again(name, path, *settings):
        return gr.skip() if path is None else answer(name, path, *settings)

    def clear():
        return "", *[gr.Column(visible=False)] * 4

    def explain(name, path):
        model, image, _ = _opened(name, path)
        if model.classifier is None:
            raise ValueError(f"{name} has no classifier to explain")
        return *overlay(model.classifier, image), gr.Column(visible=True)

    def picture(what):  # label and buttons would lie over it
        return gr.Image(label=what, alt_text=what, show_label=False, buttons=[])

    with gr.Blocks(title="GLCM-MAE", analytics_enabled=False) as page:
        gr.Markdown(
            f"# GLCM-MAE\n{CAVEAT}\n\nDrop an image: the page then shows the class probabilities (of a classifier), "
            "a masked reconstruction and the texture of one patch (of an autoencoder)."
        )
        with gr.Row():
            with gr.Column(min_width=300):
                name = gr.Textbox(first, label="Model: Hub id or local folder")
                path = gr.File(label="Image or DICOM file (its first frame)", type="filepath")
                go = gr.Button("Show", variant="primary")
                note = gr.Markdown()
            with gr.Column(min_width=300, visible=False) as given:
                gr.Markdown("## What the model sees")
                seen = picture("What the model sees")
                with gr.Column(visible=False) as classified:
                    label = gr.Label(label="Class probabilities")
                    words = gr.Markdown()
                    sensitive = gr.Button("Where is the model sensitive? (slower)")
                    with gr.Accordion("Results that the model's card states", open=False):
                        figures = gr.Markdown()
        with gr.Column(visible=False) as explained:
            gr.Markdown("## Where the model is sensitive")
            heat, meaning = picture("Occlusion overlay"), gr.Markdown()
        with gr.Column(visible=False) as reconstructed:
            with gr.Row():
                with gr.Column(min_width=300):
                    gr.Markdown("## Masked reconstruction\nFramed: the chosen patch.")
                    mask_ratio = gr.Slider(0.1, 0.95, trained, step=0.01, label="Mask ratio")
                    seed = gr.Slider(0, 99, 0, step=1, label="Seed of the mask")
                    rebuilt = picture("Masked reconstruction")
                with gr.Column(min_width=300):
                    gr.Markdown("## Texture of the chosen patch\nAlways a hidden one: what is visible is not learned.")
                    down = gr.Slider(0, 100, 50, step=1, label="Patch, % from the top")
                    right = gr.Slider(0, 100, 50, step=1, label="Patch, % from the left")
                    matrices = picture("Co-occurrence matrices of the chosen patch")
            table = gr.Dataframe(
                headers=["feature", "original", "rebuilt"],
                label="Texture features of the patch",
                interactive=False,
                column_widths=["46%", "27%", "27%"],
                wrap=True,
                max_height=2000,  # all of it: no scrolling within the page
            )
        inputs = [name, path, mask_ratio, seed, down, right]
        parts = [given, classified, reconstructed]
        outputs = [seen, label, words, note, rebuilt, matrices, table, figures, *parts]
        # A new image or model: nothing of the former one may stay, whatever becomes of the new.
        hidden = {"api_visibility": "private"}
        for change, reply, api in (
            (go.click, answer, {"api_name": "answer"}),
            (name.submit, answer, hidden),
            (path.change, answer_again, hidden),
        ):
            cleared = change(clear, None, [note, explained, *parts], queue=False, **hidden)
            cleared.then(_shown_errors(reply), inputs, outputs, concurrency_limit=2, **api)
        for slider in (mask_ratio, seed, down, right):
            # Not `release`, which a keyboard does not do. While an answer is on its way, only the last position waits.
            slider.input(
                _shown_errors(answer_again), inputs, outputs, concurrency_limit=2, trigger_mode="always_last", **hidden
            )
        sensitive.click(
            _shown_errors(explain), [name, path], [heat, meaning, explained], api_name="overlay", concurrency_limit=1
        )
    return page.queue(max_size=64)


def serve(name: str) -> FastAPI:
    """The Hub's image-classification task at POST /classify.

    Raises:
        ValueError: the model has no classifier.
    """
    network = load(name).classifier
    if network is None:
        raise ValueError(f"model {name!r} has no classifier to serve")
    model = pipeline("image-classification", model=network.model, image_processor=network.processor)
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
            image, _ = read(body, "the image", network.white)
            network.pixels(image)  # says which images the processor cannot take
        except (KeyError, ValueError, OSError) as error:
            return JSONResponse({"error": f"the request cannot be read: {error}"}, status_code=400)
        return model(image, **{"top_k": 5} | parameters)

    @app.get("/")
    def root():
        return RedirectResponse("/demo")

    @app.get("/favicon.ico")  # which browsers ask for at the root
    def icon():
        return RedirectResponse("/demo/favicon.ico")

    return app


def check_port(host: str, port: int) -> None:
    """Before a model is opened, which takes seconds.

    Raises:
        SystemExit: nothing can listen there; names the port.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host.strip("[]"), port), family=family).close()
    except (OSError, OverflowError) as error:
        reason = os.strerror(error.errno) if getattr(error, "errno", 0) == errno.EADDRINUSE else error
        raise SystemExit(
            f"error: cannot listen on port {port} of {host} ({reason}): name another one with --port"
        ) from error


class Server(uvicorn.Server):
    """Says where it answers, once it does."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        host = "localhost" if self.config.host == "0.0.0.0" else self.config.host
        port = self.servers[0].sockets[0].getsockname()[1]
        address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        logger.info("answers at %s/classify, page at %s/demo", address, address)


def main() -> None:
    """Start the server."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=os.environ.get("GLCM_MAE_MODEL", DEFAULT_MODEL))
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--serve", default="false", choices=["true", "false"])
    args = parser.parse_args()
    logging.basicConfig(format="%(message)s")
    logger.setLevel(logging.INFO)
    on_the_hub = "SPACE_ID" in os.environ  # where Gradio sets address and port itself
    if not on_the_hub or args.serve == "true":
        check_port(args.host, args.port)
    try:
        if args.serve == "true":
            app = gr.mount_gradio_app(serve(args.model), build(args.model), path="/demo")
            with contextlib.suppress(KeyboardInterrupt):
                Server(uvicorn.Config(app, host=args.host, port=args.port, log_level="warning")).run()
            return
        page = build(args.model)
    except ValueError as error:
        missing = args.model == DEFAULT_MODEL and not Path(DEFAULT_MODEL).is_dir()
        hint = ": run `make quickstart` first, or name a model (--model, or the variable GLCM_MAE_MODEL)"
        raise SystemExit(f"error: {error}{hint if missing else ''}") from error
    if on_the_hub:
        page.launch()
        return
    # Quiet: Gradio would advise a public link, which is nothing for medical images.
    page.launch(server_name=args.host, server_port=args.port, quiet=True, prevent_thread_lock=True)
    logger.info("page at %s", page.local_url)
    page.block_thread()


if __name__ == "__main__":
    main()
