"""Load a published model as a stranger would, and compare it with the folder it came from. Run by publish.py.

python recipe_verify.py REPO_ID REVISION FOLDER
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification, AutoModelForPreTraining


def answers(source: str, architecture: str, subfolder: str, **options) -> list[torch.Tensor]:
    """Outputs of a model for fixed pixels; fails on weights that are missing."""
    loader, custom = AutoModelForImageClassification, architecture != "ViTForImageClassification"
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
    config = model.config
    size = config.image_size if isinstance(config.image_size, list | tuple) else [config.image_size] * 2
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(1, config.num_channels, *size, generator=generator)
    model.eval()
    with torch.no_grad():
        if subfolder:
            patches = size[0] * size[1] // config.patch_size**2
            return [model.reconstruct(pixels, noise=torch.rand(1, patches, generator=generator))]
        output = model(pixels)
    return [value for value in output.values() if isinstance(value, torch.Tensor)]


def main(repo_id: str, revision: str, folder: str) -> None:
    """Compare every part."""
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
    AutoImageProcessor.from_pretrained(repo_id, revision=revision)


if __name__ == "__main__":
    main(*sys.argv[1:])
