"""An export as an ONNX model, which runs without PyTorch; compared with PyTorch before anybody gets it."""

import importlib.util
import json
import logging
import warnings
from pathlib import Path

import numpy as np
import torch
from jinja2 import Template
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification, PreTrainedModel

from commandline import UsageError
from corpora.speckle import CLASS_SETS, speckle_image
from hub.cards import CARDS, with_section
from hub.publication import ONNX_FILE

TOLERANCE = 1e-4  # of an answer; relative where it is above 1
LARGEST = 2**31 - 2**20  # bytes of weights: a protobuf, which the file is, ends at 2 GiB
NEEDED = ("onnx", "onnxscript", "onnxruntime")
# Loader and names of the outputs, in the order in which the PyTorch model gives them.
KINDS = {
    "ViTModel": (AutoModel, ("last_hidden_state", "pooler_output")),
    "ViTForImageClassification": (AutoModelForImageClassification, ("logits",)),
    "BeitForImageClassification": (AutoModelForImageClassification, ("logits",)),
}


def onnx_model(folder: Path) -> bytes:
    """The encoder or classifier of an export as an ONNX model, the same bytes each time.

    Its input `pixel_values` is `(batch, channels, height, width)` float32, as the image processor gives it, of any
    number of images. Its outputs are those of the PyTorch model: `logits`, or `last_hidden_state` and `pooler_output`.

    Args:
        folder: an export, with its image processor.

    Raises:
        UsageError: the packages for it are not installed, the model is of another kind or too large, or ONNX Runtime
            answers otherwise than PyTorch.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"onnx true needs {', '.join(missing)}: pip install -c constraints.txt -e '.[onnx]'")
    architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
    if architecture not in KINDS:
        raise UsageError(f"onnx true is for {', '.join(KINDS)}, and {folder} holds a {architecture}")
    loader, outputs = KINDS[architecture]
    model = loader.from_pretrained(folder, dtype=torch.float32).eval()
    size = sum(4 * parameter.numel() for parameter in model.parameters())
    if size > LARGEST:
        raise UsageError(f"onnx true: the weights of {folder} take {size:,} bytes, allowed are {LARGEST:,}")
    pixels = _example_pixels(folder, model)
    content = _exported(model, pixels, outputs)
    for images in (pixels, pixels[:1]):
        _compare(content, model, images, outputs, folder)
    return content


def card_with_onnx(card: str, folder: Path, repo_id: str) -> str:
    """The card, which also says how the ONNX model is run."""
    config = json.loads((folder / "config.json").read_text())
    facts = {
        "repo_id": repo_id,
        "file": ONNX_FILE,
        "outputs": KINDS[config["architectures"][0]][1],
        "mode": "L" if config["num_channels"] == 1 else "RGB",
        "tolerance": f"{TOLERANCE:g}",
    }
    return with_section(card, Template((CARDS / "onnx.md").read_text(encoding="utf-8")).render(facts))


def _example_pixels(folder: Path, model: PreTrainedModel) -> torch.Tensor:
    """Generated speckle, an image of each class, as the export's own processor hands it to the model."""
    sides = model.config.image_size
    height, width = (sides, sides) if isinstance(sides, int) else sides
    mode = "L" if model.config.num_channels == 1 else "RGB"
    images = [
        Image.fromarray(speckle_image(kind, max(height, width), seed=seed)[:height, :width]).convert(mode)
        for seed, kind in enumerate(CLASS_SETS["easy"])
    ]
    return AutoImageProcessor.from_pretrained(folder)(images=images, return_tensors="pt")["pixel_values"]


def _exported(model: PreTrainedModel, pixels: torch.Tensor, outputs: tuple[str, ...]) -> bytes:
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    # They tell what they skip and fold, a line each, and warn that torchvision is not installed.
    for library in ("torch.onnx", "onnxscript", "onnx_ir"):
        logging.getLogger(library).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch about torch
        program = torch.onnx.export(
            model,
            kwargs={"pixel_values": pixels},
            input_names=["pixel_values"],
            output_names=outputs,
            dynamic_shapes={"pixel_values": {0: "batch"}},
            dynamo=True,
            verbose=False,
        )
    # Each node tells the line of code that it comes from, with the path of that file on this machine.
    ClearMetadataAndDocStringPass()(program.model)
    return program.model_proto.SerializeToString()


@torch.no_grad()
def _compare(
    content: bytes, model: PreTrainedModel, pixels: torch.Tensor, outputs: tuple[str, ...], folder: Path
) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    answers, expected = session.run(outputs, {"pixel_values": pixels.numpy()}), model(pixels)
    for name, answer in zip(outputs, answers, strict=True):
        wanted = expected[name].numpy()
        if not np.allclose(answer, wanted, rtol=TOLERANCE, atol=TOLERANCE):
            worst = np.abs(answer - wanted).max()
            raise UsageError(
                f"onnx true: the ONNX model of {folder} answers otherwise than PyTorch: {name} is off by {worst:.2g}, "
                f"allowed is {TOLERANCE:g}. Nothing is published; without onnx it can be"
            )
