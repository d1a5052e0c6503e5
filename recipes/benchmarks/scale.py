"""Does the way from a download to the first batch take time in proportion to the number of images?

    python recipes/benchmarks/scale.py --sizes 1000 10000 100000

Of each size, images of 64 pixels are drawn in a temporary folder, five of them with a copy as a JPEG file of another
name and class folder, which must all be found. Then, each step in a process of its own:

- prepare: `prepare_corpus.py`, with --num_workers.
- load: fold 0 of the corpus for the first time, which `datasets` converts for that.
- load again: as every later process does.
- start: what `pretrain.py --fold 0` does before its first step: load, check, and the first batch of 64 images.
- epoch: what an epoch costs beside its images: the order of all of them.

Seconds are without Python's imports, but for `prepare`. The peak is that of resident memory, with them; of `prepare`
that of its largest process. The last columns: by which power of the number of images the seconds grow from one size to
the next. No GPU is used.
"""

import argparse
import itertools
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

# The recipes import each other by bare names, and Python looks beside this file only.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from side_by_side import machine, markdown_table

SIDE, COPIES, BATCH = 64, 5, 64
STEPS = ("prepare", "load", "load again", "start", "epoch")


def draw(folder: Path, count: int) -> list[set[str]]:
    """Write the images; returns the names of each that is planted, and of its copy."""
    planted = []
    for index in tqdm(range(count - COPIES), desc="drawing", leave=False):
        coarse = np.random.default_rng(index).integers(0, 256, (8, 8), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        name = f"{'ab'[index % 2]}/{index // 1000:03d}/{index:06d}.png"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(folder / name, compress_level=1)
        if index < COPIES:
            copy = f"{'ab'[index % 2]}/000/copy_{index}.jpg"
            image.save(folder / copy, quality=90)
            planted.append({name, copy})
    return planted


def step_prepare(folder: Path, workers: int) -> Callable[[], Any]:
    script = Path(__file__).resolve().parents[1] / "prepare_corpus.py"
    given = {"data_dir": folder / "raw", "output_dir": folder / "corpus", "keep_file_names": True}
    options = [text for name, value in given.items() for text in (f"--{name}", str(value))]
    command = [sys.executable, str(script), *options, "--num_workers", str(workers)]
    return lambda: subprocess.run(command, stdout=subprocess.DEVNULL, check=True)


def step_load(folder: Path, workers: int) -> Callable[[], Any]:
    from images.splits import load_prepared

    return lambda: load_prepared(str(folder / "corpus"), None, "0")


def step_start(folder: Path, workers: int) -> Callable[[], Any]:
    from commandline import parse_args
    from training.arguments import PRETRAINING
    from training.feeding import collate
    from training.models import build_model
    from training.pretraining_data import load_data

    given = {"corpus": folder / "corpus", "fold": 0, "output_dir": folder / "run", "use_cpu": True}
    given |= {"image_size": SIDE, "patch_size": 8, "hidden_size": 32, "intermediate_size": 64}
    given |= {"num_hidden_layers": 1, "num_attention_heads": 2, "held_out": 0}
    options = [text for name, value in given.items() for text in (f"--{name}", str(value))]
    model_args, data_args, args = parse_args(PRETRAINING, options)
    config = build_model(model_args, data_args).config

    def start() -> Any:
        train = load_data(data_args, config, args.seed).train
        return collate([train[index] for index in range(min(BATCH, len(train)))])

    return start


def step_epoch(folder: Path, workers: int) -> Callable[[], Any]:
    from training.feeding import EpochSampler

    count = json.loads((folder / "corpus" / "report.json").read_text())["images_written"]
    sampler = EpochSampler(count, BATCH, seed=0)
    return lambda: (sampler.set_epoch(1), sum(1 for _ in sampler))


OF_STEP = {"prepare": step_prepare, "start": step_start, "epoch": step_epoch}


def measure(step: str, folder: Path, workers: int) -> None:
    """A step in this process; prints what it took as JSON."""
    run = OF_STEP.get(step, step_load)(folder, workers)
    start = time.perf_counter()
    run()
    seconds = time.perf_counter() - start
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    whose = resource.RUSAGE_CHILDREN if step == "prepare" else resource.RUSAGE_SELF
    peak = resource.getrusage(whose).ru_maxrss * unit / 2**20
    print(json.dumps({"seconds": seconds, "peak_mib": peak}))


def of_size(count: int, workers: int) -> dict[str, dict[str, float]]:
    """What each step took with so many images.

    Raises:
        RuntimeError: a planted copy was not found.
    """
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        planted = draw(folder / "raw", count)
        found = {}
        for step in tqdm(STEPS, desc=f"{count} images", leave=False):
            command = [sys.executable, __file__, "--step", step, "--folder", place, "--num_workers", str(workers)]
            own_cache = os.environ | {"HF_HOME": str(folder / "hf")}
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=own_cache)
            found[step] = json.loads(done.stdout.splitlines()[-1])
        findings = json.loads((folder / "corpus" / "report.json").read_text())["findings"]
    pairs = [set(pair["files"]) for kind in ("identical_pairs", "near_identical_pairs") for pair in findings[kind]]
    missed = [names for names in planted if names not in pairs]
    if missed or len(pairs) != len(planted):
        raise RuntimeError(f"{count} images: {len(pairs)} pairs were found, {len(planted)} planted, missed: {missed}")
    return found


def table(results: dict[int, dict[str, dict[str, float]]]) -> str:
    """Seconds and peak memory of each size, and the powers by which seconds grow."""
    sizes = list(results)
    steps = list(itertools.pairwise(sizes))
    rows = [["step", *(f"{size:,}" for size in sizes), *(f"power, {small:,} to {large:,}" for small, large in steps)]]
    for step in STEPS:
        taken = {size: results[size][step] for size in sizes}
        cells = [f"{value['seconds']:.3g} s, {value['peak_mib'] / 1024:.2f} GiB" for value in taken.values()]
        for small, large in steps:
            growth = taken[large]["seconds"] / taken[small]["seconds"]
            cells.append(f"{math.log(growth) / math.log(large / small):.2f}")
        rows.append([step, *cells])
    return markdown_table(rows)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--sizes", nargs="+", type=int, default=[1_000, 10_000, 100_000], help="numbers of images")
    parser.add_argument("--num_workers", type=int, default=0, help="of prepare_corpus.py")
    parser.add_argument("--json", type=Path, help="results and machine")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.step:
        measure(options.step, options.folder, options.num_workers)
        return
    if min(options.sizes) < 50 or sorted(set(options.sizes)) != options.sizes:
        sys.exit(f"error: sizes must be different numbers from 50, the smallest first, got {options.sizes}")
    results = {}
    # Load of other programs, one for each busy core: times are of the clock.
    where = machine("cpu") | {"load_before": round(os.getloadavg()[0], 1)}
    for size in options.sizes:
        results[size] = of_size(size, options.num_workers)
        print(table(results), flush=True)
    if options.json:
        found = {"num_workers": options.num_workers, "machine": where, "sizes": results}
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
