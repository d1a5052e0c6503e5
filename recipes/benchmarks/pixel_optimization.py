"""Does the gradient of the loss lead to the texture? Moves the pixels of blurred patches down it, without any network.

    python recipes/benchmarks/pixel_optimization.py
    python recipes/benchmarks/pixel_optimization.py --corpus busi --data_dir DOWNLOAD --json pixel_optimization.json

Seconds a row on two CPU cores. Each patch comes from another image, at a random place where it is not flat (standard
deviation of its grey above --min_std, grey spanning 0 to 1). The start is the same patch of the image blurred by a 5x5
mean; then Adam (300 steps, rate 0.02 in units of the normalised pixel_values, in which grey spans 4.4) moves the pixels
down the loss to the original. The loss is divided by its value at the start, so that its units do not matter to Adam's
epsilon.

Rows: the co-occurrence term of the presets alone, the whole objective of `texture`, and other kernels and numbers of
levels, all computed by the model's own `reconstruction_loss`. Columns:

- GLCM L1: distance of hard, normalised 16-level co-occurrence matrices to the original; 0 best, 2 worst.
- gradient energy: mean absolute horizontal difference over that of the original; 1 best, less is blur, more is noise.
- useful gradient: share of the pixels whose gradient at the start is larger in magnitude than 1 % of the largest one of
  their patch. The others hardly know which way to go.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

# The recipes import each other by bare names, and Python looks beside this file only.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from side_by_side import machine, markdown_table

from corpora.load import load_corpus
from images.decode import decode_image
from images.transform import ImageTransform
from modeling_glcm_mae import GLCMMAEConfig, GLCMMAEForPreTraining, texture_fidelity

PATCH_SIZE = 16
BLUR = 5  # side of the mean filter in pixels
USEFUL = 0.01  # of the largest gradient of the patch
# One patch an image; the layers are never run, so they are as small as they can be.
SIZES = {
    "image_size": PATCH_SIZE,
    "patch_size": PATCH_SIZE,
    "hidden_size": 4,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "intermediate_size": 4,
    "decoder_hidden_size": 4,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 1,
    "decoder_intermediate_size": 4,
}
TERM_ALONE = {"ssim_weight": 0.0, "mse_weight": 0.0}
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "paper": ("paper", TERM_ALONE),
    "texture": ("texture", TERM_ALONE),
    "texture (whole objective)": ("texture", {}),
    "sigmoid30x64": ("paper", TERM_ALONE | {"glcm_levels": 64}),
    "linear16": ("texture", TERM_ALONE | {"glcm_levels": 16}),
    "linear32": ("texture", TERM_ALONE | {"glcm_levels": 32}),
}


def find_patches(options: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor]:
    """Patches of different images, and the same patches of the blurred images.

    Returns:
        Twice `(num_patches, PATCH_SIZE, PATCH_SIZE)`, grey spanning [0, 1].

    Raises:
        ValueError: if too few images have a patch that is not flat.
    """
    images = load_corpus(
        options.corpus,
        data_dir=options.data_dir,
        speckle_images=options.num_patches,
        image_size=options.image_size,
        seed=options.seed,
    )
    transform = ImageTransform(image_size=options.image_size, image_mean=(0.0,), image_std=(1.0,))
    generator = torch.Generator().manual_seed(options.seed)
    sharp, blurred = [], []
    bar = tqdm(total=options.num_patches, desc="choosing patches", unit=" patches", leave=False)
    for index in torch.randperm(len(images), generator=generator).tolist():
        row = images[index]
        grey = transform(decode_image(row["image"], name=row["file_name"], num_channels=1))  # 1 H W
        padded = nn.functional.pad(grey, (BLUR // 2,) * 4, mode="reflect")
        smooth = nn.functional.avg_pool2d(padded, BLUR, stride=1)  # 1 H W
        for _ in range(20):  # an image without texture is passed over
            top, left = torch.randint(options.image_size - PATCH_SIZE + 1, (2,), generator=generator).tolist()
            place = (0, slice(top, top + PATCH_SIZE), slice(left, left + PATCH_SIZE))
            if grey[place].std() > options.min_std:
                sharp.append(grey[place])
                blurred.append(smooth[place])
                bar.update()
                break
        if len(sharp) == options.num_patches:
            bar.close()
            return torch.stack(sharp), torch.stack(blurred)
    raise ValueError(
        f"only {len(sharp)} of {len(images)} images have a patch with a standard deviation above min_std="
        f"{options.min_std}: lower --min_std or --num_patches (got {options.num_patches})"
    )


class Objective:
    """The loss of a configuration as a function of grey patches in [0, 1].

    Args:
        config: of patches of `PATCH_SIZE`.
        target: `(M, PATCH_SIZE, PATCH_SIZE)`.
    """

    def __init__(self, config: GLCMMAEConfig, target: torch.Tensor):
        self.model = GLCMMAEForPreTraining(config)
        self.target = self._pixel_values(target)
        self.mask = torch.ones(len(target), 1)

    @staticmethod
    def _pixel_values(grey: torch.Tensor) -> torch.Tensor:
        """`(M, H, W)` -> `(M, 3, H, W)`, normalised as the presets' grey range takes it."""
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
        return (grey.unsqueeze(1) - mean) / std

    def __call__(self, grey: torch.Tensor) -> torch.Tensor:
        logits = self.model.patchify(self._pixel_values(grey))
        return self.model.reconstruction_loss(self.target, logits, self.mask)["loss"]


def fidelity(pred: torch.Tensor, target: torch.Tensor) -> dict[str, float]:
    """`glcm_l1` and `gradient_energy_ratio` of grey patches in [0, 1]."""
    return {name: float(value) for name, value in texture_fidelity(pred, target, value_range=(0.0, 1.0)).items()}


def optimize(
    config: GLCMMAEConfig, target: torch.Tensor, start: torch.Tensor, steps: int, rate: float, name: str
) -> dict[str, float]:
    """Move the pixels of `start` down the loss to `target`, both `(M, PATCH_SIZE, PATCH_SIZE)`.

    Returns:
        The columns of the table, `loss_ratio` (loss at the end over that at the start) and `seconds`.
    """
    objective = Objective(config, target)
    pixels = start.clone().requires_grad_()
    # The rate is meant for normalised pixels, as a model would put them out.
    grey_span = config.glcm_value_range[1] - config.glcm_value_range[0]
    optimizer = torch.optim.Adam([pixels], lr=rate / grey_span)
    started = time.monotonic()
    first = None
    for _ in tqdm(range(steps), desc=name, unit=" steps", leave=False):
        optimizer.zero_grad()
        loss = objective(pixels)
        if first is None:
            first = loss.detach().clamp(min=1e-30)
        (loss / first).backward()
        if not optimizer.state:
            size = pixels.grad.abs()
            useful = float((size > USEFUL * size.amax(dim=(1, 2), keepdim=True)).float().mean())
        optimizer.step()
    seconds = time.monotonic() - started
    with torch.no_grad():
        last = objective(pixels)
    return {
        **fidelity(pixels.detach(), target),
        "useful_gradient": useful,
        "loss_ratio": float(last / first),
        "seconds": seconds,
    }


def table(before: dict[str, float], rows: dict[str, dict[str, float]]) -> str:
    """Markdown."""
    lines = [
        ["loss", "GLCM L1 before", "after", "gradient energy before", "after", "useful gradient"],
        *(
            [
                name,
                f"{before['glcm_l1']:.2f}",
                f"{row['glcm_l1']:.2f}",
                f"{before['gradient_energy_ratio']:.2f}",
                f"{row['gradient_energy_ratio']:.2f}",
                f"{row['useful_gradient']:.0%}",
            ]
            for name, row in rows.items()
        ),
    ]
    return markdown_table(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--corpus", default="speckle", help="as for pretrain.py: a name, a folder or a Hub id")
    parser.add_argument("--data_dir", help="folder of the download, for a corpus that is given by name")
    parser.add_argument("--image_size", type=int, default=224, help="side that images are scaled and cropped to")
    parser.add_argument("--num_patches", type=int, default=64)
    parser.add_argument("--min_std", type=float, default=0.05, help="patches with less variation of grey are flat")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--learning_rate", type=float, default=0.02)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS), metavar="ROW", help="%(choices)s")
    parser.add_argument("--seed", type=int, default=0, help="chooses the patches")
    parser.add_argument("--threads", type=int, help="CPU threads of PyTorch")
    parser.add_argument("--json", type=Path, help="results and settings")
    options = parser.parse_args(argv)
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        target, start = find_patches(options)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    before = fidelity(start, target)
    rows = {}
    for name in options.rows:
        preset, overrides = ROWS[name]
        config = GLCMMAEConfig.from_preset(preset, **SIZES, **overrides)
        rows[name] = optimize(config, target, start, options.steps, options.learning_rate, name)
    print(table(before, rows))
    if options.json:
        settings = {name: value for name, value in vars(options).items() if name not in ("json", "data_dir")}
        report = {"settings": settings, "machine": machine("cpu"), "before": before, "rows": rows}
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
