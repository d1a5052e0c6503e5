"""A demo of any GLCM-MAE model: what it answers, what it rebuilds, and the texture of both. Research only.

    python app.py --model ORG/glcm-mae-busi-finetuned [--host 127.0.0.1] [--port 7860]
    python app.py --model path/to/classifier/export --serve true
    python app.py --model "BUSI, fold 0=runs/busi/fold_0/finetune/export" ORG/glcm-mae-ct

Visitors choose among the models given, and see none of their paths. With `--any_public true` they may name any other
public model of the Hub, which is opened without your token.

With `--serve true`, POST /classify also answers as the Hub's image-classification task does, for
`huggingface_hub.InferenceClient(model="http://127.0.0.1:7860/classify").image_classification(...)`.
"""

import argparse
import base64
import contextlib
import errno
import functools
import json
import logging
import os
import socket
from pathlib import Path

import gradio as gr
import uvicorn
from answers import (
    FUNCTIONS,
    classify,
    draw_reconstruction,
    draw_texture,
    enlarged,
    overlay,
    rebuild,
    surprise_map,
    texture,
)
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, RedirectResponse
from opened_models import MAX_BYTES, Model, Offered, opened, read
from PIL import Image
from transformers import pipeline

logger = logging.getLogger("demo")
CAVEAT = "**For research only.** This is not a medical device and must not be used for diagnosis."
DEFAULT_MODEL = "runs/quickstart/export"


def _shown_errors(function):
    @functools.wraps(function)
    def call(*args):
        try:
            return function(*args)
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error

    return call


def panels(model: Model, image: Image.Image, mask_ratio: float, seed: int, down: float, right: float) -> tuple:
    """What the page shows: input, probabilities, words on them, reconstruction, matrices, table of features."""
    shown = model.classifier or model.autoencoder
    seen = enlarged(shown.picture(shown.pixels(image)[0]))
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


def build(offered: Offered) -> gr.Blocks:
    """The page."""
    model = offered.open(offered.names[0])
    # As in the training, within the slider's range. Read before the first answer, which sets it.
    trained = 0.75 if model.autoencoder is None else min(max(model.autoencoder.model.config.mask_ratio, 0.1), 0.95)
    # A first answer takes two seconds more than later ones: nobody shall wait for it.
    panels(model, Image.new("RGB", (64, 64)), trained, 0, 50, 50)

    def answer(model, image, mask_ratio, seed, down, right):
        model, image, window = opened(offered, model, image)
        seen, probabilities, words, *others = panels(model, image, mask_ratio, seed, down, right)
        head = model.autoencoder if model.autoencoder and model.autoencoder.model.config.glcm_head_weight else None
        visible = [gr.Column(visible=part is not None) for part in (seen, model.classifier, model.autoencoder, head)]
        return seen, probabilities, words, f"{model.note} {window}".strip(), *others, model.figures, *visible

    def answer_again(model, image, mask_ratio, seed, down, right):
        return gr.skip() if image is None else answer(model, image, mask_ratio, seed, down, right)

    def clear(image):
        # A model that is opened for the first time takes its time.
        return "" if image is None else "Working …", *[gr.Column(visible=False)] * 6

    def explain(model, image):
        found, pixels, _ = opened(offered, model, image)
        if found.classifier is None:
            raise ValueError(f"{model} has no classifier to explain")
        return *overlay(found.classifier, pixels), gr.Column(visible=True)

    def foretell(model, image):
        found, pixels, _ = opened(offered, model, image)
        if found.autoencoder is None:
            raise ValueError(f"{model} has no autoencoder that could foretell a texture")
        return *surprise_map(found.autoencoder, pixels), gr.Column(visible=True)

    def picture(what):  # label and buttons would lie over it
        return gr.Image(label=what, alt_text=what, show_label=False, buttons=[])

    with gr.Blocks(title="GLCM-MAE", analytics_enabled=False) as page:
        gr.Markdown(
            f"# GLCM-MAE\n{CAVEAT}\n\nDrop an image: the page then shows the class probabilities (of a classifier), "
            "a masked reconstruction and the texture of one patch (of an autoencoder)."
        )
        with gr.Row():
            with gr.Column(min_width=300):
                name = gr.Dropdown(
                    offered.names,
                    value=offered.names[0],
                    label="Model, or the Hub id of another one" if offered.any_public else "Model",
                    allow_custom_value=True,  # what is not offered is refused in our words
                )
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
            with gr.Column(visible=False) as foretelling:
                surprising = gr.Button("Where is the texture surprising? (slower)")
                with gr.Column(visible=False) as foretold:
                    surprises, caveat = picture("Surprise map"), gr.Markdown()
            table = gr.Dataframe(
                headers=["feature", "original", "rebuilt"],
                label="Texture features of the patch",
                interactive=False,
                column_widths=["46%", "27%", "27%"],
                wrap=True,
                max_height=2000,  # all of it: no scrolling within the page
            )
        inputs = [name, path, mask_ratio, seed, down, right]
        parts = [given, classified, reconstructed, foretelling]
        outputs = [seen, label, words, note, rebuilt, matrices, table, figures, *parts]
        # A new image or model: nothing of the former one may stay, whatever becomes of the new.
        hidden = {"api_visibility": "private"}
        for change, reply, api in (
            (go.click, answer, {"api_name": "answer"}),
            (name.input, answer_again, hidden),
            (path.change, answer_again, hidden),
        ):
            cleared = change(clear, path, [note, explained, foretold, *parts], queue=False, **hidden)
            cleared.then(_shown_errors(reply), inputs, outputs, concurrency_limit=2, **api)
        for slider in (mask_ratio, seed, down, right):
            # Not `release`, which a keyboard does not do. While an answer is on its way, only the last position waits.
            slider.input(
                _shown_errors(answer_again), inputs, outputs, concurrency_limit=2, trigger_mode="always_last", **hidden
            )
        sensitive.click(
            _shown_errors(explain), [name, path], [heat, meaning, explained], api_name="overlay", concurrency_limit=1
        )
        surprising.click(
            _shown_errors(foretell),
            [name, path],
            [surprises, caveat, foretold],
            api_name="surprise",
            concurrency_limit=1,
        )
    return page.queue(max_size=64)


async def _body_of(request: Request) -> bytes:
    """The body, as far as it is allowed to go.

    Raises:
        ValueError: it is longer.
    """
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > 2 * MAX_BYTES:  # in base64 an image takes a third more
            raise ValueError(f"it is longer than {2 * MAX_BYTES / 2**20:g} MiB")
    return bytes(body)


def _image_and_parameters(body: bytes, kind: str) -> tuple[bytes, dict]:
    """What a request holds: the bytes of an image, or JSON with them in base64.

    Raises:
        ValueError: it is something else.
    """
    if not kind.startswith("application/json"):
        return body, {}
    asked = json.loads(body)
    if not isinstance(asked, dict) or not isinstance(asked.get("inputs"), str):
        raise ValueError('JSON must be {"inputs": an image in base64, "parameters": {...}}')
    parameters = asked.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise ValueError(f"parameters must be an object, got {parameters!r}")
    return base64.b64decode(asked["inputs"], validate=True), parameters


def serve(name: str, offered: Offered) -> FastAPI:
    """The Hub's image-classification task at POST /classify.

    Raises:
        ValueError: the model has no classifier.
    """
    network = offered.open(name).classifier
    if network is None:
        raise ValueError(f"model {name!r} has no classifier to serve")
    model = pipeline("image-classification", model=network.model, image_processor=network.processor)
    app = FastAPI()

    @app.post("/classify")
    async def classification(request: Request):
        try:
            body = await _body_of(request)
            body, parameters = _image_and_parameters(body, request.headers.get("content-type", ""))
            unknown = sorted(set(parameters) - {"top_k", "function_to_apply"})
            if unknown:
                raise ValueError(f"unknown parameter {unknown[0]!r}; allowed are function_to_apply and top_k")
            if parameters.get("function_to_apply", "softmax") not in FUNCTIONS:
                raise ValueError(f"function_to_apply must be one of {', '.join(FUNCTIONS)}")
            top_k = parameters.get("top_k", 5)
            if type(top_k) is not int or top_k < 1:  # True is an int
                raise ValueError(f"top_k must be a whole number of at least 1, got {top_k!r}")
            image, _ = read(body, "the image", network.white)
            network.pixels(image)  # says which images the processor cannot take
        except (ValueError, OSError, RecursionError) as error:
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
    parser.add_argument(
        "--model",
        nargs="+",
        default=os.environ.get("GLCM_MAE_MODEL", DEFAULT_MODEL).split(),
        help="Hub ids and folders, the first to begin with; NAME=FOLDER gives a name (variable GLCM_MAE_MODEL)",
    )
    parser.add_argument(
        "--any_public",
        default=os.environ.get("GLCM_MAE_ANY_PUBLIC", "false"),
        choices=["true", "false"],
        help="whether visitors may name any public model of the Hub (variable GLCM_MAE_ANY_PUBLIC)",
    )
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
        offered = Offered(args.model, args.any_public == "true")
        if args.serve == "true":
            app = serve(offered.names[0], offered)
            app = gr.mount_gradio_app(app, build(offered), path="/demo", max_file_size=MAX_BYTES)
            with contextlib.suppress(KeyboardInterrupt):
                Server(uvicorn.Config(app, host=args.host, port=args.port, log_level="warning")).run()
            return
        page = build(offered)
    except ValueError as error:
        missing = args.model == [DEFAULT_MODEL] and not Path(DEFAULT_MODEL).is_dir()
        hint = ": run `make quickstart` first, or name a model (--model, or the variable GLCM_MAE_MODEL)"
        raise SystemExit(f"error: {error}{hint if missing else ''}") from error
    if on_the_hub:
        page.launch(max_file_size=MAX_BYTES)
        return
    # Quiet: Gradio would advise a public link, which is nothing for medical images.
    page.launch(
        server_name=args.host, server_port=args.port, quiet=True, prevent_thread_lock=True, max_file_size=MAX_BYTES
    )
    logger.info("page at %s", page.local_url)
    page.block_thread()


if __name__ == "__main__":
    main()
