"""A demo of any GLCM-MAE model: what it answers, what it rebuilds, and the texture of both. Research only.

    python app.py --model ORG/glcm-mae-busi-finetuned [--host 127.0.0.1] [--port 7860]
    python app.py --model path/to/classifier/export --serve true
    python app.py --model "BUSI, fold 0=runs/busi/fold_0/finetune/export" ORG/glcm-mae-ct

Visitors choose among the models given, and see none of their paths. With `--any_public true` they may name any other
public model of the Hub, which is opened without your token. With `--onnx true` the classifiers given are computed by
ONNX Runtime, from the `onnx/model.onnx` that `publish.py --onnx true` puts beside them.

With `--serve true`, POST /classify also answers as the Hub's image-classification task does, for
`huggingface_hub.InferenceClient(model="http://127.0.0.1:7860/classify").image_classification(...)`.
"""

import argparse
import base64
import contextlib
import errno
import json
import logging
import os
import socket
from pathlib import Path

import gradio as gr
import uvicorn
from answers import FUNCTIONS
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, RedirectResponse
from opened_models import MAX_BYTES, Offered, read
from page import LOOK, build
from transformers import pipeline

logger = logging.getLogger("demo")
DEFAULT_MODEL = "runs/quickstart/export"


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
    if kind.startswith("multipart/"):
        raise ValueError("forms are not read: send the bytes of the image, or JSON")
    if not kind.startswith("application/json"):
        return body, {}
    asked = json.loads(body)
    if not isinstance(asked, dict) or not isinstance(asked.get("inputs"), str):
        raise ValueError('JSON must be {"inputs": an image in base64, "parameters": {...}}')
    parameters = asked.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise ValueError(f"parameters must be an object, got {parameters!r}")
    try:
        return base64.b64decode(asked["inputs"], validate=True), parameters
    except ValueError as error:
        raise ValueError(f"inputs must be an image in base64 ({error})") from error


def serve(name: str, offered: Offered) -> FastAPI:
    """The Hub's image-classification task at POST /classify.

    Raises:
        ValueError: the model has no classifier.
    """
    network = offered.open(name).classifier
    if network is None:
        raise ValueError(f"model {name!r} has no classifier to serve")
    model = pipeline("image-classification", model=network.model, image_processor=network.processor, device="cpu")
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
    parser.add_argument(
        "--onnx",
        default=os.environ.get("GLCM_MAE_ONNX", "false"),
        choices=["true", "false"],
        help="whether ONNX Runtime computes the classifiers given (variable GLCM_MAE_ONNX)",
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--serve", default="false", choices=["true", "false"])
    args = parser.parse_args()
    for name in ("any_public", "onnx"):  # argparse does not look at what comes of the environment
        if getattr(args, name) not in ("true", "false"):
            parser.error(f"{name} must be true or false, got {getattr(args, name)!r}")
    logging.basicConfig(format="%(message)s")
    logger.setLevel(logging.INFO)
    on_the_hub = "SPACE_ID" in os.environ  # where Gradio sets address and port itself
    if not on_the_hub or args.serve == "true":
        check_port(args.host, args.port)
    try:
        offered = Offered(args.model, args.any_public == "true", args.onnx == "true")
        logger.info("opening %s", offered.names[0])
        if args.serve == "true":
            app = serve(offered.names[0], offered)
            app = gr.mount_gradio_app(app, build(offered), path="/demo", max_file_size=MAX_BYTES, **LOOK)
            with contextlib.suppress(KeyboardInterrupt):
                Server(uvicorn.Config(app, host=args.host, port=args.port, log_level="warning")).run()
            return
        page = build(offered)
    except ValueError as error:
        missing = args.model == [DEFAULT_MODEL] and not Path(DEFAULT_MODEL).is_dir()
        hint = ": run `make quickstart` first, or name a model (--model, or the variable GLCM_MAE_MODEL)"
        raise SystemExit(f"error: {error}{hint if missing else ''}") from error
    if on_the_hub:
        page.launch(max_file_size=MAX_BYTES, **LOOK)
        return
    # Quiet: Gradio would advise a public link, which is nothing for medical images.
    page.launch(
        server_name=args.host,
        server_port=args.port,
        quiet=True,
        prevent_thread_lock=True,
        max_file_size=MAX_BYTES,
        **LOOK,
    )
    logger.info("page at %s", page.local_url)
    page.block_thread()


if __name__ == "__main__":
    main()
