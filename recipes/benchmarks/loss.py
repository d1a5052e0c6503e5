"""What does the texture loss cost? Times it against its definition and within a training step, side by side.

    python recipes/benchmarks/loss.py --threads 2 --json loss.json

About 2 minutes on two CPU cores. All inputs are generated speckle images, normalised as for training, and a
reconstruction of them with 10 % noise. Compared calls run in turns in this process; a ratio is the median of the
rounds, with the lowest and the highest. Patches are 16x16, three quarters of an image masked (147 at 224 pixels).

"Plain PyTorch" is the backend "sparse", else the fastest one is measured.

- dense_over_fast: time of the definition (backend "dense") over that of the fastest backend; loss and gradient of one
  image, setting of the preset `paper` with and without its down-weighting.
- step_over_mse: time of a training step of a ViT-B/16 at 224 pixels (forward, backward, AdamW) with the whole objective
  of a preset over that with plain mean squared error. The same model, batch and masks.
- extra_mb_per_image: what a process of its own grows by at its peak while it computes the loss and the gradient of one
  image, beyond inputs and libraries (MiB of resident memory on Linux, of allocated memory on CUDA). Preset `paper`.
- levels_256_over_16: time of the loss with 256 levels over that with 16.
- offsets_8_over_2: the same for eight offsets over two.
- ms_per_image: milliseconds of the loss and its gradient for an image of a batch, by preset; and of the targets, loss
  and gradient of the texture head and of the head of the CLS token that `texture` has beside it.

Few rounds (or --tiny) only show that the script works. On a shared machine, take --threads 1: threads wait for
each other, and short calls suffer most.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

# The recipes import each other by bare names, and Python looks beside this file only.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from side_by_side import TINY, machine, markdown_table, ratio, seconds_side_by_side, training_steps

from corpora.speckle import CLASS_SETS, speckle_image
from modeling_glcm_mae import GLCMMAEConfig, glcm_loss
from modeling_glcm_mae.glcm_head import num_pairs, pair_distribution, pair_divergence

PATCH_SIZE = 16
MASKED = 0.75
DISTINCT = 32  # images: to generate a large batch takes longer than to measure it
SHOWN = ("value", "lowest", "highest")
EIGHT_OFFSETS = [[0, 1], [1, 0], [1, 1], [1, -1], [0, 2], [2, 2], [2, 0], [2, -2]]


def images(count: int, size: int, mean: float = 0.456, std: float = 0.224) -> torch.Tensor:
    """Speckle of all classes in turn, normalised: `(count, 1, size, size)`. From `DISTINCT` on they come again."""
    classes = CLASS_SETS["hard"]
    distinct = min(count, DISTINCT)
    made = [torch.from_numpy(speckle_image(classes[i % len(classes)], size, [3, i])) for i in range(distinct)]
    made = torch.stack(made).repeat(-(-count // distinct), 1, 1)[:count]
    return ((made.float() / 255 - mean) / std).unsqueeze(1)


def masked_patches(count: int, size: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Patches of a reconstruction and of the images, `(M, 16, 16)`; the reconstruction wants a gradient."""
    pixels = images(count, size)
    patches = torch.nn.functional.unfold(pixels, PATCH_SIZE, stride=PATCH_SIZE)  # B p*p N
    patches = patches.transpose(1, 2)[:, : int(patches.shape[2] * MASKED)].reshape(-1, PATCH_SIZE, PATCH_SIZE)
    noise = torch.randn(patches.shape, generator=torch.Generator().manual_seed(0)) * 0.1 * patches.std()
    return (patches + noise).to(device).requires_grad_(), patches.to(device)


def loss_call(
    pred: torch.Tensor, target: torch.Tensor, backend: str, preset: str = "paper", **overrides: Any
) -> Callable[[], None]:
    """Loss and gradient with the setting of a preset."""
    config = GLCMMAEConfig.from_preset(preset)
    settings = {
        "levels": config.glcm_levels,
        "value_range": config.glcm_value_range,
        "offsets": config.glcm_offsets,
        "kernel": config.glcm_kernel,
        "sharpness": config.glcm_sharpness,
        "reweight": config.glcm_reweight,
        "normalize": config.glcm_normalize,
    } | overrides

    def call() -> None:
        torch.autograd.grad(glcm_loss(pred, target, backend=backend, **settings), pred)

    return call


def head_call(pieces: torch.Tensor) -> Callable[[], None]:
    """Targets, loss and gradient of a head that predicts the matrices of `pieces` `(M, h, w)`, as `texture` has it."""
    config = GLCMMAEConfig.from_preset("texture")
    shape = (len(pieces), len(config.glcm_head_offsets), num_pairs(config.glcm_head_levels))
    logits = torch.zeros(shape, device=pieces.device, requires_grad=True)
    setting = {
        "levels": config.glcm_head_levels,
        "value_range": config.glcm_value_range,
        "offsets": config.glcm_head_offsets,
    }

    def call() -> None:
        torch.autograd.grad(pair_divergence(logits, pair_distribution(pieces, **setting)).mean(), logits)

    return call


def steps_of_presets(presets: Sequence[str], options: argparse.Namespace) -> dict[str, Callable[[], torch.Tensor]]:
    """A training step of a ViT-B/16 with each preset."""
    torch.manual_seed(0)
    sizes = TINY if options.tiny else {}
    config = GLCMMAEConfig.from_preset("texture", image_size=options.image_size, **sizes)
    pixels = images(options.batch_size, options.image_size).expand(-1, 3, -1, -1).contiguous()
    noise = torch.rand(len(pixels), (options.image_size // PATCH_SIZE) ** 2)
    batch = {"pixel_values": pixels.to(options.device), "noise": noise.to(options.device)}
    return training_steps(config, presets, batch, bf16=options.bf16)


def peak_mib(backend: str, image_size: int, device: str) -> float:
    """Memory that the loss of one image takes at its peak. Run in a process of its own: a peak never falls."""
    pred, target = masked_patches(1, image_size, device)
    # Loads what the first call loads.
    loss_call(pred[:1].detach().requires_grad_(), target[:1], backend, levels=2)()
    if device == "cpu":
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
        before = _resident_kib("VmRSS")
        loss_call(pred, target, backend)()
        return (_resident_kib("VmHWM") - before) / 1024
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    loss_call(pred, target, backend)()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def _resident_kib(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))


def peak_mib_in_a_process(backend: str, options: argparse.Namespace) -> float:
    """`peak_mib` of a fresh process."""
    command = [sys.executable, __file__, "--peak_of", backend, "--image_size", str(options.image_size)]
    command += ["--device", options.device, "--threads", str(torch.get_num_threads())]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """All ratios: name of the ratio -> name of the setting -> median, lowest, highest."""
    results: dict[str, dict[str, Any]] = {}
    rounds = {"repeats": options.repeats, "device": options.device}

    pred, target = masked_patches(1, options.image_size, options.device)
    results["dense_over_fast"] = {}
    for name, reweight in (("paper", True), ("paper, not down-weighted", False)):
        calls = {
            backend: loss_call(pred, target, backend, reweight=reweight) for backend in ("dense", "auto", "sparse")
        }
        seconds = seconds_side_by_side(calls, **rounds)
        results["dense_over_fast"][name] = ratio(seconds, "dense", "auto")
        results["dense_over_fast"][f"{name}, plain PyTorch"] = ratio(seconds, "dense", "sparse")

    seconds = seconds_side_by_side(steps_of_presets(("mse", "texture", "paper"), options), **rounds)
    results["step_over_mse"] = {preset: ratio(seconds, preset, "mse") for preset in ("paper", "texture")}

    results["extra_mb_per_image"] = {
        name: {"value": peak_mib_in_a_process(backend, options)}
        for name, backend in (("paper", "auto"), ("paper, plain PyTorch", "sparse"), ("paper, dense", "dense"))
    }

    pred, target = masked_patches(options.batch_size, options.image_size, options.device)
    results["levels_256_over_16"] = {}
    for name, backend in (("paper", "auto"), ("paper, plain PyTorch", "sparse")):
        calls = {str(levels): loss_call(pred, target, backend, levels=levels) for levels in (16, 256)}
        results["levels_256_over_16"][name] = ratio(seconds_side_by_side(calls, **rounds), "256", "16")
    calls = {str(count): loss_call(pred, target, "auto", offsets=EIGHT_OFFSETS[:count]) for count in (2, 8)}
    results["offsets_8_over_2"] = {"paper": ratio(seconds_side_by_side(calls, **rounds), "8", "2")}
    calls = {
        preset + suffix: loss_call(pred, target, backend, preset)
        for preset in ("paper", "texture")
        for suffix, backend in (("", "auto"), (", plain PyTorch", "sparse"))
    }
    # The texture head judges visible patches too: those of `target`, over the share that is masked.
    calls["texture head"] = head_call(target.repeat(2, 1, 1)[: round(len(target) / MASKED)])
    side = options.image_size // GLCMMAEConfig.from_preset("texture").glcm_cls_tiles
    tiles = images(options.batch_size, options.image_size)[:, 0].unfold(1, side, side).unfold(2, side, side)
    calls["head of the CLS token"] = head_call(tiles.flatten(0, 2).to(options.device))
    results["ms_per_image"] = {
        name: dict(zip(SHOWN, (1e3 / options.batch_size * f(found) for f in (median, min, max)), strict=True))
        for name, found in seconds_side_by_side(calls, **rounds).items()
    }
    return results


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--batch_size", type=int, default=8, help="images of a training step")
    parser.add_argument("--repeats", type=int, default=5, help="rounds of each comparison")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--bf16", action="store_true", help="training steps under bfloat16 autocast")
    parser.add_argument("--tiny", action="store_true", help="a tiny ViT in place of ViT-B, to try the script")
    parser.add_argument("--threads", type=int, help="CPU threads of PyTorch")
    parser.add_argument("--json", type=Path, help="results, sizes and machine")
    parser.add_argument("--peak_of", choices=["auto", "sparse", "dense"], help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.peak_of:
        print(peak_mib(options.peak_of, options.image_size, options.device))
        return
    results = measure(options)
    rows = [["measure", "setting", "median", "lowest", "highest"]]
    for name, settings in results.items():
        for setting, found in settings.items():
            rows.append([name, setting, *(f"{found[key]:.4g}" if key in found else "" for key in SHOWN)])
    print(markdown_table(rows))
    if options.json:
        sizes = {name: getattr(options, name) for name in ("image_size", "batch_size", "repeats", "bf16", "tiny")}
        where = {"sizes": sizes | {"patch_size": PATCH_SIZE, "masked": MASKED}, "machine": machine(options.device)}
        # The first setting of each is the one that the name stands for.
        report = {
            name: {"value": next(iter(settings.values()))["value"], "settings": settings, **where}
            for name, settings in results.items()
        }
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
