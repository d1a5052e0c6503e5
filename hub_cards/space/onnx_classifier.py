"""A classifier that ONNX Runtime computes, from the file that publish.py made and compared with PyTorch."""

from pathlib import Path

import numpy as np
import onnxruntime
import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

ONNX_FILE = "onnx/model.onnx"


class OnnxClassifier(PreTrainedModel):
    """In the place of the PyTorch model that the file was made of.

    Args:
        config: of that model.
        file: takes `pixel_values` `(B, C, H, W)`, gives `logits` `(B, num_labels)`, as publish.py writes it.

    Raises:
        ValueError: the file is none, or has other inputs or outputs.
    """

    main_input_name = "pixel_values"
    # transformers asks the parameters, of which there are none here.
    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, config: PreTrainedConfig, file: Path) -> None:
        super().__init__(config)
        try:
            self._session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors have no class of their own in common
            raise ValueError(f"{file} is no ONNX model that can be run: {error}") from error
        names = [value.name for value in (*self._session.get_inputs(), *self._session.get_outputs())]
        if names != ["pixel_values", "logits"]:
            raise ValueError(f"{file} takes and gives {names}, not pixel_values and logits")

    def forward(self, pixel_values: torch.Tensor) -> ImageClassifierOutput:
        (logits,) = self._session.run(["logits"], {"pixel_values": np.ascontiguousarray(pixel_values.numpy())})
        return ImageClassifierOutput(logits=torch.from_numpy(logits))


# `pipeline` says at length which names it knows, if a model has another.
MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES["onnx"] = OnnxClassifier.__name__
