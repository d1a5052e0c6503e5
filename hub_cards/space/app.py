"""A demo of any GLCM-MAE model: what it answers, what it rebuilds, and the texture of both. Research only.

    python app.py --model ORG/glcm-mae-busi-finetuned [--host 127.0.0.1] [--port 7860]
    python app.py --model path/to/classifier/export --serve true
    python app.py --model "BUSI, fold 0=runs/busi/fold_0/finetune/export" ORG/glcm-mae-ct

Visitors choose among the models given, and see none of their paths. With `--any_public true` they may name any other
public model of the Hub, which is opened without your token. With `--onnx true` the classifiers given are computed by
ONNX Runtime, from the `onnx/model.onnx` that `publish.py --onnx true` puts into their repository.

With `--serve true`, POST /classify also answers as the Hub's image-classification task does, for
`huggingface_hub.InferenceClient(model="http://127.0.0.1:7860/classify").image_classification(...)`.
"""

import argparse
import errno
import logging
import os
import socket
from pathlib import Path

logger = logging.getLogger("demo")
DEFAULT_MODEL = "runs/quickstart/export"


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
    if "SPACE_ID" not in os.environ or args.serve == "true":  # on the Hub, Gradio sets address and port itself
        check_port(args.host, args.port)
    # Here, since to import them takes seconds, which nobody shall wait for to be told of a mistyped option.
    from opened_models import Offered
    from serving import run

    try:
        run(
            Offered(args.model, args.any_public == "true", args.onnx == "true"),
            args.host,
            args.port,
            args.serve == "true",
        )
    except ValueError as error:
        missing = args.model == [DEFAULT_MODEL] and not Path(DEFAULT_MODEL).is_dir()
        hint = ": run `make quickstart` first, or name a model (--model, or the variable GLCM_MAE_MODEL)"
        raise SystemExit(f"error: {error}{hint if missing else ''}") from error


if __name__ == "__main__":
    main()
