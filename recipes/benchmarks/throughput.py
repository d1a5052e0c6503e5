"""Does the data path keep up with the training? Images per second of either, with the settings of any run.

    python recipes/benchmarks/throughput.py --config recipes/configs/busi/pretrain_texture.yaml --data_dir DOWNLOAD

All options but those below go to pretrain.py's parser: corpus, sizes of the model, transforms, batch size, bf16. Images
are the first --num_images of the corpus.

- loader: images per second of the data loader alone (read, decode, transform, collate), with so many worker processes;
  with `cached`, after a first pass with `--cache_images true`. Median of the rounds, a round being a pass.
- step: images per second of a training step (forward, backward, AdamW) on one batch in memory, with the objective of
  each preset on the same model, in turns. On CUDA also the peak of allocated memory. With --beside_plain also in
  float32, and compiled also without it: rows for `--bf16 true`, `--torch_compile true`, both and neither.
- with --profile, what a step of each preset spends its time on, by PyTorch's profiler: `loss_and_gradient` is the
  co-occurrence term, forward and gradient in one (on CUDA its kernel, `_loss_kernel`).
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch.profiler import ProfilerActivity, profile

# The recipes import each other by bare names, and Python looks beside this file only.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from side_by_side import machine, markdown_table, seconds_side_by_side, training_steps

from commandline import parse_args, said
from modeling_glcm_mae import GLCMMAEConfig
from training.arguments import PRETRAINING
from training.feeding import EpochSampler, PretrainDataset, collate
from training.models import build_model
from training.pretraining_data import load_data


def loader_rates(dataset: PretrainDataset, batch_size: int, workers: int, rounds: int) -> list[float]:
    """Images per second of each pass but the first, which starts the workers and fills the cache."""
    sampler = EpochSampler(len(dataset), batch_size, seed=0)
    loader = torch.utils.data.DataLoader(
        dataset,
        batch_size,
        sampler=sampler,
        num_workers=workers,
        collate_fn=collate,
        persistent_workers=workers > 0,
    )
    rates = []
    for epoch in range(rounds + 1):
        sampler.set_epoch(epoch)
        start = time.perf_counter()
        for _ in loader:
            pass
        rates.append(len(sampler) / (time.perf_counter() - start))
    return rates[1:]


def step_rates(
    config: GLCMMAEConfig, batch: dict[str, torch.Tensor], options: argparse.Namespace, bf16: bool, compiled: bool
) -> dict[str, dict[str, Any]]:
    """Images per second of each preset, round by round, and the peak of memory on CUDA; plainly, and as asked for."""
    device = batch["noise"].device
    kinds = [(bf16, compiled)]
    if options.beside_plain:
        kinds = list(dict.fromkeys([(False, False), (bf16, False), (False, compiled), (bf16, compiled)]))
    steps = {}
    for half, whole in kinds:
        made = training_steps(config, options.presets, batch, bf16=half, compiled=whole)
        kind = (", bf16" * half + ", compiled" * whole) if options.beside_plain else ""
        steps |= {preset + kind: step for preset, step in made.items()}
    results = {}
    for preset, step in steps.items():
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        losses = [step() for _ in range(options.steps)]
        if not all(map(math.isfinite, losses)):
            raise FloatingPointError(f"{preset}: a loss of the first {options.steps} steps is not finite: {losses}")
        results[preset] = {"finite_steps": options.steps}
        if device.type == "cuda":
            results[preset]["peak_mib"] = torch.cuda.max_memory_allocated() / 2**20
    seconds = seconds_side_by_side(steps, repeats=options.rounds, device=device)
    for preset in steps:
        results[preset]["images_per_second"] = [len(batch["noise"]) / value for value in seconds[preset]]
        if options.profile:
            print(f"A step, {preset}\n{profile_table(steps[preset], device)}")
    return results


def profile_table(step: Callable[[], torch.Tensor], device: torch.device) -> str:
    """The operators of a step, and the kernels on CUDA, with their shares of its time, the largest first."""
    on_cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_cuda) as profiler:
        step()
    unit = "device" if on_cuda else "cpu"
    return profiler.key_averages().table(sort_by=f"self_{unit}_time_total", max_name_column_width=70)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--presets", nargs="+", default=["mse", "texture", "paper"], help="objectives to compare")
    parser.add_argument("--workers", nargs="+", type=int, default=[0, 2], help="worker processes of the loader")
    parser.add_argument("--num_images", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="steps of each preset before the clock runs")
    parser.add_argument("--beside_plain", action="store_true", help="also without --bf16 and --torch_compile")
    parser.add_argument("--profile", action="store_true", help="also print what a step of each preset is spent on")
    parser.add_argument("--threads", type=int, help="CPU threads of PyTorch")
    parser.add_argument("--json", type=Path, help="results, settings and machine")
    options, extra = parser.parse_known_args(argv)
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        model_args, data_args, args = parse_args(PRETRAINING, extra)
        config = build_model(model_args, data_args).config
        data = load_data(data_args, config, args.seed)
    except (ValueError, OSError, StrictDataclassError) as error:
        sys.exit(f"error: {said(error)}")
    images = data.train.dataset
    images = images.select(range(min(options.num_images, len(images))))
    batch_size = args.per_device_train_batch_size
    reading = {"patch_size": config.patch_size, "num_channels": config.num_channels}
    rows = [["what", "images/s", "lowest", "highest", "peak MiB"]]
    loader = []
    for cached in (False, True):
        if cached and data_args.random_resized_crop:
            continue
        for workers in options.workers:
            dataset = PretrainDataset(
                images, data.transform, white_level=data_args.white_level, cache=cached, **reading
            )
            rates = loader_rates(dataset, batch_size, workers, options.rounds)
            loader.append({"workers": workers, "cached": cached, "images_per_second": rates})
            name = f"loader, {workers} workers" + ", cached" * cached
            rows.append([name, f"{median(rates):.4g}", f"{min(rates):.4g}", f"{max(rates):.4g}", ""])
    batch = collate([dataset[index % len(dataset)] for index in range(batch_size)])
    batch = {name: batch[name].to(args.device) for name in ("pixel_values", "noise")}
    steps = step_rates(config, batch, options, args.bf16, args.torch_compile)
    for preset, found in steps.items():
        rates, peak = found["images_per_second"], found.get("peak_mib")
        rows.append(
            [
                f"step, {preset}",
                *(f"{value:.4g}" for value in (median(rates), min(rates), max(rates))),
                "" if peak is None else f"{peak:.0f}",
            ]
        )
    print(markdown_table(rows))
    if options.json:
        settings = {
            "corpus": Path(data_args.corpus).name,
            "model": config.to_dict(),
            "batch_size": batch_size,
            "bf16": args.bf16,
            "torch_compile": args.torch_compile,
            "num_images": len(images),
        }
        report = {"settings": settings, "machine": machine(args.device), "loader": loader, "step": steps}
        options.json.write_text(json.dumps(report, indent=2, default=str) + "\n")


if __name__ == "__main__":
    main()
