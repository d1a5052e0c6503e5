"""What the demo's address answers: the page, and the Hub's image-classification task beside it."""

import base64
import contextlib
import json
import logging
import os
import socket

import gradio as gr
import uvicorn
from answers import FUNCTIONS
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, RedirectResponse
from opened_models import MAX_BYTES, Offered, read
from page import LOOK, build
from transformers import pipeline

logger = logging.getLogger("demo")


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


class Server(uvicorn.Server):
    """Says where it answers, once it does."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        host = "localhost" if self.config.host == "0.0.0.0" else self.config.host
        port = self.servers[0].sockets[0].getsockname()[1]
        address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        logger.info("answers at %s/classify, page at %s/demo", address, address)


def run(offered: Offered, host: str, port: int, with_task: bool) -> None:
    """Answer until interrupted.

    Args:
        offered: the models, of which the first is opened at the start.
        host, port: where, but for the page alone on the Hub, where Gradio sets both itself.
        with_task: whether POST /classify answers too, with the page at /demo.

    Raises:
        ValueError: the first model cannot be opened, or has no classifier to serve.
    """
    logger.info("opening %s", offered.names[0])
    if with_task:
        app = serve(offered.names[0], offered)
        app = gr.mount_gradio_app(app, build(offered), path="/demo", max_file_size=MAX_BYTES, **LOOK)
        with contextlib.suppress(KeyboardInterrupt):
            Server(uvicorn.Config(app, host=host, port=port, log_level="warning")).run()
        return
    page = build(offered)
    if "SPACE_ID" in os.environ:
        page.launch(max_file_size=MAX_BYTES, **LOOK)
        return
    # Quiet: Gradio would advise a public link, which is nothing for medical images.
    page.launch(
        server_name=host, server_port=port, quiet=True, prevent_thread_lock=True, max_file_size=MAX_BYTES, **LOOK
    )
    logger.info("page at %s", page.local_url)
    page.block_thread()
