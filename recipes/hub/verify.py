"""Load a published model or data set as a stranger would, and compare it with the folder it came from.

python hub/verify.py REPO_TYPE REPO_ID REVISION FOLDER [ONNX_FILE]

Run by publish.py, with the path of the ONNX model in the repository if one was sent.
"""

import json
import sys
from itertools import zip_longest
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import hf_hub_download
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    PreTrainedConfig,
)

STOCK_CLASSIFIERS = ("ViTForImageClassification", "BeitForImageClassification")


def answers(source: str, architecture: str, subfolder: str, **options) -> list[torch.Tensor]:
    """Outputs of a model for fixed pixels; fails on weights that are missing."""
    loader, custom = AutoModelForImageClassification, architecture not in STOCK_CLASSIFIERS
    if subfolder:
        loader, custom = AutoModelForPreTraining, True
    elif architecture == "ViTModel":
        loader, custom = AutoModel, False
    # The code that runs is the one that was just sent.
    model, report = loader.from_pretrained(
        source, subfolder=subfolder, trust_remote_code=custom, output_loading_info=True, dtype=torch.float32, **options
    )
    if report["missing_keys"]:
        raise ValueError(f"{source} {subfolder}: missing weights {sorted(report['missing_keys'])[:5]}")
    generator = torch.Generator().manual_seed(0)
    pixels = fixed_pixels(model.config, generator)
    model.eval()
    with torch.no_grad():
        if subfolder:
            patches = pixels.shape[2] * pixels.shape[3] // model.config.patch_size**2
            return [model(pixels, noise=torch.rand(1, patches, generator=generator)).logits]
        output = model(pixels)
    return [value for value in output.values() if isinstance(value, torch.Tensor)]


def fixed_pixels(config: PreTrainedConfig, generator: torch.Generator) -> torch.Tensor:
    size = config.image_size if isinstance(config.image_size, list | tuple) else [config.image_size] * 2
    return torch.rand(1, config.num_channels, *size, generator=generator)


def compare_onnx(repo_id: str, revision: str, folder: str, file: str) -> None:
    """Compare the answers of the ONNX model on the Hub with those of PyTorch here."""
    import onnxruntime  # most models are compared without

    config = json.loads((Path(folder) / "config.json").read_text())
    here = answers(folder, config["architectures"][0], "")
    session = onnxruntime.InferenceSession(hf_hub_download(repo_id, file, revision=revision))
    pixels = fixed_pixels(PreTrainedConfig.from_pretrained(folder), torch.Generator().manual_seed(0))
    there = session.run(None, {"pixel_values": pixels.numpy()})
    if not all(np.allclose(one, other, rtol=1e-4, atol=1e-4) for one, other in zip(there, here, strict=True)):
        raise ValueError(f"{repo_id} {file}: answers otherwise than {folder}")
    print(f"{file} gives the same answers from the Hub as PyTorch gives from the folder")


def compare_models(repo_id: str, revision: str, folder: str, onnx_file: str | None = None) -> None:
    """Compare the answers of every part."""
    for part in ("", "pretraining"):
        config = Path(folder) / part / "config.json"
        if not config.exists():
            continue
        architecture = json.loads(config.read_text())["architectures"][0]
        there = answers(repo_id, architecture, part, revision=revision)
        here = answers(folder, architecture, part)
        if len(there) != len(here) or not all(map(torch.equal, there, here)):
            raise ValueError(f"{repo_id} {part}: answers otherwise than {folder}")
        print(f"{architecture} {f'in {part}/ ' if part else ''}gives the same answers from the Hub as from the folder")
    if onnx_file:
        compare_onnx(repo_id, revision, folder, onnx_file)
    AutoImageProcessor.from_pretrained(repo_id, revision=revision)


def compare_data_sets(repo_id: str, revision: str, folder: str) -> None:
    """Compare the columns of every split, and every row without its image, of which `sha256` stands in the row."""
    from datasets import Image, load_dataset  # models are compared without

    there, here = (
        load_dataset(source, streaming=True, **at) for source, at in ((repo_id, {"revision": revision}), (folder, {}))
    )
    if list(there) != list(here):
        raise ValueError(f"{repo_id}: has the splits {', '.join(there)}, and {folder} has {', '.join(here)}")
    for split in here:
        features = here[split].features
        if there[split].features != features:
            raise ValueError(f"{repo_id} {split}: has other columns than {folder}")
        columns = [name for name, feature in features.items() if not isinstance(feature, Image)]
        given = {"split": split, "streaming": True, "columns": columns}  # the images are not fetched
        count = 0
        for one, other in zip_longest(load_dataset(repo_id, revision=revision, **given), load_dataset(folder, **given)):
            if one != other:
                raise ValueError(f"{repo_id} {split}: row {count} is not as in {folder}")
            count += 1
        print(f"{split}: {count} rows are the same on the Hub as in the folder")


def main(repo_type: str, repo_id: str, revision: str, folder: str, *onnx_file: str) -> None:
    compare = compare_data_sets if repo_type == "dataset" else compare_models
    compare(repo_id, revision, folder, *onnx_file)


if __name__ == "__main__":
    main(*sys.argv[1:])
