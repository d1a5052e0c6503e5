"""What the benchmarks share: fair timing, the machine, tables."""

import importlib.metadata
import importlib.util
import os
import platform
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
import transformers
from tqdm.auto import tqdm

from modeling_glcm_mae import GLCMMAEConfig, GLCMMAEForPreTraining
from modeling_glcm_mae.configuration_glcm_mae import PRESETS

SHORTEST = 0.2  # seconds that a time is taken over
TINY = {  # in place of a ViT-B, to try a script
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "decoder_hidden_size": 32,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 64,
}


def machine(device: torch.device | str) -> dict[str, Any]:
    """Where results were made."""
    device = torch.device(device)
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
        "numba": importlib.metadata.version("numba") if importlib.util.find_spec("numba") else None,
    }


def markdown_table(lines: Sequence[Sequence[str]]) -> str:
    """A header and its rows as Markdown."""
    header, *rows = lines
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows))


def seconds_side_by_side(
    calls: dict[str, Callable[[], Any]], *, repeats: int, device: torch.device | str
) -> dict[str, list[float]]:
    """Time calls in turns, so that whatever slows the machine down meets all of them.

    Args:
        calls: name -> what is timed, after a call that does not count. One that takes less than `SHORTEST` is called
            several times in a row.
        repeats: rounds.
        device: waited for before and after, if it works asynchronously.

    Returns:
        name -> seconds a call, of each round.
    """
    wait = torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda: None

    def seconds_of(call: Callable[[], Any], times: int) -> float:
        wait()
        start = time.perf_counter()
        for _ in range(times):
            call()
        wait()
        return (time.perf_counter() - start) / times

    for call in calls.values():
        call()
    times = {name: max(1, round(SHORTEST / seconds_of(call, 1))) for name, call in calls.items()}
    seconds = {name: [] for name in calls}
    for _ in tqdm(range(repeats), desc=", ".join(calls), unit=" rounds", leave=False):
        for name, call in calls.items():
            seconds[name].append(seconds_of(call, times[name]))
    return seconds


def ratio(seconds: dict[str, list[float]], over: str, under: str) -> dict[str, float]:
    """How many times as long as `under` the call `over` took, round by round: median, lowest and highest."""
    ratios = [a / b for a, b in zip(seconds[over], seconds[under], strict=True)]
    return {"value": median(ratios), "lowest": min(ratios), "highest": max(ratios)}


def training_steps(
    config: GLCMMAEConfig,
    presets: Sequence[str],
    batch: dict[str, torch.Tensor],
    *,
    bf16: bool,
    compiled: bool = False,
) -> dict[str, Callable[[], torch.Tensor]]:
    """A training step (forward, backward, AdamW) with the objective of each preset, on one new model.

    Args:
        config: sizes of the model; its objective, and which heads it has, are exchanged from call to call.
        presets: names of presets.
        batch: `pixel_values` `(B, C, H, W)` and `noise` `(B, N)`; the model is put on their device.
        bf16: forward under bfloat16 autocast.
        compiled: forward and backward by torch.compile.

    Returns:
        name of the preset -> a call that makes a step and returns its loss.
    """
    device = batch["pixel_values"].device
    model = GLCMMAEForPreTraining(GLCMMAEConfig.from_dict(config.to_dict() | PRESETS["texture"])).to(device).train()
    heads = {"glcm_head": model.decoder.glcm_head, "glcm_cls_head": model.decoder.glcm_cls_head}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    forward = torch.compile(model) if compiled else model

    def step(preset: str) -> torch.Tensor:
        for name, value in PRESETS[preset].items():
            setattr(model.config, name, value)
        model.decoder.glcm_head = heads["glcm_head"] if model.config.glcm_head_weight else None
        model.decoder.glcm_cls_head = heads["glcm_cls_head"] if model.config.glcm_cls_weight else None
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss = forward(batch["pixel_values"], noise=batch["noise"]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return {preset: lambda preset=preset: step(preset) for preset in presets}
