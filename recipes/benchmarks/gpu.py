"""What a GPU makes of it: is the loss right there, what does it cost there, how near does training come to the chip?

    python recipes/benchmarks/gpu.py --json gpu.json
    python recipes/benchmarks/gpu.py --train data/busi --json gpu.json

Minutes on one GPU; nothing but torch, transformers, PyYAML, NumPy and pytest is needed, and what --train needs: the
recipes, and a corpus that prepare_corpus.py made. Without CUDA all but the tests run on the CPU at toy size, to try the
script. Each part is a process of its own: one that fails or takes too long is reported, and the others go on. Images
are random, smoothed like an ultrasound image; patches 16x16, three quarters masked.

- tests: `pytest -m gpu`: the compiled kernel beside the definition.
- loss: the table of loss.py; `auto` is the Triton kernel, "plain PyTorch" the sparse backend.
- eager, compiled: training steps (forward, backward, AdamW) of a ViT-B/16 at 224 pixels, bfloat16 autocast, with the
  objective of each preset, without and (`mse` and `texture`) with torch.compile: images per second, median of the
  rounds, a round being so many steps of each preset in turn; how many times as long as `mse` a step takes, and how many
  times its peak memory; the share of the steps' limit, that is of the time that their floating-point operations take at
  the rate of a matrix product of 8,192 x 8,192, measured beside them. A loss that is no number is an error.
- precision: how many times as long as in bfloat16 a step with `mse` takes in float32, which the recipes avoid there.
- profile: what a step of each preset spends its time on, and the share of the objective's own operators.
- train: cross_validate.py with the configurations of the paper's size for BUSI, presets `mse` and `texture`, one fold.
"""

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

# The recipes import each other by bare names, and Python looks beside this file only.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
# A machine that is lent for minutes has the package beside this file, and not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from side_by_side import TINY, machine, markdown_table, ratio, seconds_side_by_side, training_steps

from modeling_glcm_mae import GLCMMAEConfig
from output_folder import replaced_file

ROOT = Path(__file__).resolve().parents[2]
PRESETS = ("mse", "texture", "paper")
COMPILED = ("mse", "texture")  # each is compiled on its own, which takes longer than all of its steps
PATCH_SIZE = 16
# Operators of the objective: the pixels' matrices, and the targets of the heads.
OPERATORS = ("::loss_and_gradient", "::pair_distribution")
TOY = TINY | {"image_size": 32}  # where there is no GPU
# At most, of a part: on an H100 with 16 cores the tests take 65, the steps 80 and 150.
SECONDS = {"tests": 150, "loss": 150, "eager": 150, "compiled": 240, "precision": 60, "profile": 90, "train": 600}
TRAINED = ("mse", "texture")
SHOWN_KERNELS = 15


def smooth_images(count: int, size: int, device: torch.device) -> torch.Tensor:
    """Grey images `(count, 3, size, size)`, mean 0 and standard deviation 1, with speckle of two pixels."""
    made = torch.randn(count, 1, size, size, generator=torch.Generator().manual_seed(0))
    made = torch.nn.functional.avg_pool2d(made, 3, stride=1, padding=1)
    return (made / made.std()).expand(-1, 3, -1, -1).contiguous().to(device)


def steps_of(
    options: argparse.Namespace, compiled: bool = False, bf16: bool = True
) -> dict[str, Callable[[], torch.Tensor]]:
    """A training step with each preset, on one batch."""
    device = torch.device(options.device)
    torch.manual_seed(0)
    config = GLCMMAEConfig.from_preset("texture", **(TOY if options.toy else {}))
    batch = {
        "pixel_values": smooth_images(options.batch_size, config.image_size, device),
        "noise": torch.rand(options.batch_size, (config.image_size // PATCH_SIZE) ** 2).to(device),
    }
    if compiled:  # a model each: to change its objective would have it compiled anew
        made = (training_steps(config, [preset], batch, bf16=bf16, compiled=True) for preset in COMPILED)
        return {preset: step for steps in made for preset, step in steps.items()}
    return training_steps(config, PRESETS, batch, bf16=bf16)


def matrix_rate(device: torch.device, toy: bool) -> float:
    """Floating-point operations a second of a bfloat16 matrix product on random values."""
    size = 256 if toy else 8192
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    (seconds,) = seconds_side_by_side({"product": lambda: a @ b}, repeats=5, device=device).values()
    return 2 * size**3 / median(seconds)


def measure_steps(options: argparse.Namespace, compiled: bool) -> dict[str, Any]:
    """Rate, peak memory and share of the limit of each preset."""
    device = torch.device(options.device)
    steps = steps_of(options, compiled)
    found: dict[str, Any] = {preset: {} for preset in steps}
    started = time.perf_counter()
    for preset, step in steps.items():
        for _ in range(3):
            step()
        if device.type == "cuda" and not compiled:  # compiled, the models of all presets are there
            torch.cuda.reset_peak_memory_stats()
            step()
            found[preset]["peak_mib"] = torch.cuda.max_memory_allocated() / 2**20
    warm_up = time.perf_counter() - started
    seconds: dict[str, list[float]] = {preset: [] for preset in steps}
    for _ in range(options.rounds):
        for preset, step in steps.items():
            started = time.perf_counter()
            losses = [step() for _ in range(options.steps)]
            # Read once all steps are queued, as a training does: to ask for each would make the host wait.
            losses = torch.stack(losses).tolist()
            seconds[preset].append((time.perf_counter() - started) / options.steps)
            if not all(map(math.isfinite, losses)):
                raise FloatingPointError(f"{preset}: a loss is not finite: {losses}")
    rate = matrix_rate(device, options.toy)
    operations = _operations(options)
    for preset in steps:
        found[preset] |= {
            "images_per_second": [options.batch_size / value for value in seconds[preset]],
            "step_over_mse": ratio(seconds, preset, "mse"),
            "share_of_limit": operations / rate / median(seconds[preset]),
        }
        if "peak_mib" in found[preset]:
            found[preset]["peak_over_mse"] = found[preset]["peak_mib"] / found["mse"]["peak_mib"]
    return {"presets": found, "warm_up_seconds": warm_up, "flop_per_step": operations, "matrix_flop_per_second": rate}


def _operations(options: argparse.Namespace) -> int:
    """Floating-point operations of the matrix products of a step with plain mean squared error."""
    step = steps_of(options)["mse"]
    # The fused attention kernels are counted too, by their formulas.
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def measure_precision(options: argparse.Namespace) -> dict[str, Any]:
    """A step with plain mean squared error in float32 beside one in bfloat16."""
    steps = {name: steps_of(options, bf16=name == "bfloat16")["mse"] for name in ("bfloat16", "float32")}
    seconds = seconds_side_by_side(steps, repeats=options.rounds, device=options.device)
    return {"float32_over_bfloat16": ratio(seconds, "float32", "bfloat16")}


def measure_profile(options: argparse.Namespace) -> dict[str, Any]:
    """Share of the objective's operators, and the kernels that take longest."""
    on_cuda = torch.device(options.device).type == "cuda"
    found = {}
    for preset, step in steps_of(options).items():
        for _ in range(3):
            step()
        with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_cuda) as profiler:
            step()
            if on_cuda:
                torch.cuda.synchronize()
        averages = profiler.key_averages()
        unit = "device" if on_cuda else "cpu"
        whole = sum(getattr(event, f"self_{unit}_time_total") for event in averages)
        of_operators = {
            name: sum(getattr(event, f"{unit}_time_total") for event in averages if event.key.endswith(name))
            for name in OPERATORS
        }
        found[preset] = {"step_us": whole, "shares": {name: took / whole for name, took in of_operators.items()}}
        table = averages.table(sort_by=f"self_{unit}_time_total", row_limit=SHOWN_KERNELS, max_name_column_width=70)
        print(f"A step, {preset}\n{table}")
    return found


def run_tests(options: argparse.Namespace) -> dict[str, Any]:
    """How many of the tests that need a GPU passed, failed or were skipped; which failed."""
    if options.toy:
        return {"skipped": "no CUDA device"}
    report = options.work / "tests.xml"
    # Only the files that hold such tests: others may need packages that are not there.
    files = [str(file) for file in sorted((ROOT / "tests").glob("test_*.py")) if "mark.gpu" in file.read_text()]
    words = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", f"--junitxml={report}", *files]
    try:
        import xdist  # noqa: F401 - each test compiles a kernel of its own, which takes seconds

        words += ["-n", str(min(12, os.cpu_count() or 1))]
    except ImportError:
        pass
    subprocess.run(words, cwd=ROOT)
    suite = ElementTree.parse(report).getroot().find("testsuite")
    count = {name: int(suite.get(name)) for name in ("tests", "failures", "errors", "skipped")}
    failed = [case.get("name") for case in suite.iter("testcase") if case.find("failure") is not None]
    return count | {"seconds": float(suite.get("time")), "failed": failed}


def run_loss(options: argparse.Namespace) -> dict[str, Any]:
    """The report of loss.py."""
    report = options.work / "loss.json"
    words = [sys.executable, str(Path(__file__).with_name("loss.py")), "--bf16", "--device", options.device]
    words += ["--batch_size", str(options.batch_size), "--repeats", "3", "--json", str(report)]
    subprocess.run([*words, *(["--tiny", "--image_size", "32"] if options.toy else [])], check=True)
    return {name: entry["settings"] for name, entry in json.loads(report.read_text()).items()}


def run_train(options: argparse.Namespace) -> dict[str, Any]:
    """Figures of the test part of the first fold, by preset."""
    import yaml

    first = next(iter(json.loads((options.train / "splits.json").read_text())["folds"]))
    found = {}
    for preset in TRAINED:
        output = options.work / preset
        config = ROOT / "recipes" / "configs" / ("laptop" if options.toy else "busi")
        words = [sys.executable, str(ROOT / "recipes" / "cross_validate.py"), "--corpus", str(options.train)]
        words += ["--output_dir", str(output), "--folds", first]
        words += ["--pretrain_config", str(config / ("pretrain.yaml" if options.toy else "pretrain_texture.yaml"))]
        words += ["--pretrain_options", f"preset={preset}", *options.pretrain_options]
        words += ["--finetune_config", str(config / "finetune.yaml")]
        words += ["--finetune_options", *options.finetune_options] if options.finetune_options else []
        started = time.monotonic()
        subprocess.run(words, check=True, cwd=ROOT)
        summary = json.loads((output / "summary.json").read_text())
        found[preset] = {"minutes": (time.monotonic() - started) / 60, "figures": summary["figures"]}
        found[preset]["config"] = yaml.safe_load((output / "config.yaml").read_text())
    return found


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "tests": run_tests,
    "loss": run_loss,
    "eager": lambda options: measure_steps(options, compiled=False),
    "precision": measure_precision,
    "profile": measure_profile,
    "compiled": lambda options: measure_steps(options, compiled=True),  # late, since it takes longest
    "train": run_train,
}


def table_of(report: dict[str, Any]) -> str:
    """What was found, part by part, one line each."""
    rows = [["part", "what", "found"]]
    for part, found in report["parts"].items():
        if "error" in found:
            rows.append([part, "failed", found["error"]])
        elif part == "tests":
            counts = {name: count for name, count in found.items() if name != "failed"}
            rows.append([part, "pytest -m gpu", ", ".join(f"{count} {name}" for name, count in counts.items())])
        elif part == "loss":
            for name, settings in found.items():
                rows += [[part, f"{name}, {setting}", f"{entry['value']:.4g}"] for setting, entry in settings.items()]
        elif part in ("eager", "compiled"):
            for preset, entry in found["presets"].items():
                over, peak = entry["step_over_mse"], entry.get("peak_over_mse")
                text = f"{median(entry['images_per_second']):.4g} images/s"
                text += f", {100 * entry['share_of_limit']:.1f} % of the limit"
                text += f", step_over_mse {over['value']:.3f} ({over['lowest']:.3f} to {over['highest']:.3f})"
                text += f", peak {entry['peak_mib']:.0f} MiB ({peak:.3f} of mse)" if peak else ""
                rows.append([part, preset, text])
        elif part == "precision":
            over = found["float32_over_bfloat16"]
            text = f"{over['value']:.2f} ({over['lowest']:.2f} to {over['highest']:.2f})"
            rows.append([part, "float32 over bfloat16, mse", text])
        elif part == "profile":
            for preset, entry in found.items():
                shares = ", ".join(f"{name.lstrip(':')} {100 * share:.1f} %" for name, share in entry["shares"].items())
                rows.append([part, preset, f"{entry['step_us'] / 1e3:.3g} ms: {shares}"])
        else:
            for preset, entry in found.items():
                figures = ", ".join(f"{name} {figure['value']:.3f}" for name, figure in entry["figures"].items())
                rows.append([part, preset, f"{entry['minutes']:.1f} min: {figures}"])
    return markdown_table(rows)


def run_part(name: str, argv: Sequence[str], work: Path, seconds: float) -> dict[str, Any]:
    """What a part found, in a process of its own; of one that did not end well, an `error` that says how it ended."""
    result = work / f"{name}.json"
    words = [sys.executable, __file__, *argv, "--part", name, "--work", str(work)]
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    started = time.monotonic()
    process = subprocess.Popen(words, env=os.environ | {"PYTHONPATH": paths}, start_new_session=True)
    try:
        ended = process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"error": f"not ready after {seconds:.0f} s"}
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # with its children, which would disturb the parts that follow
            process.wait()
    if ended or not result.exists():
        return {"error": f"exit code {ended} after {time.monotonic() - started:.0f} s: see above"}
    return json.loads(result.read_text())


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--json", type=Path, default=Path("gpu.json"), help="results, written after each part")
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="all but train, if left out")
    parser.add_argument("--train", type=Path, help="BUSI as prepare_corpus.py made it; adds the part train")
    parser.add_argument("--pretrain_options", nargs="+", default=[], help="of --train, as NAME=VALUE")
    parser.add_argument("--finetune_options", nargs="+", default=[], help="of --train, as NAME=VALUE")
    parser.add_argument("--batch_size", type=int, help="images of a step: 256, at toy size 2")
    parser.add_argument("--steps", type=int, help="of a round: 50, at toy size 1")
    parser.add_argument("--rounds", type=int, help="of all presets: 4, at toy size 2")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    argv = list(sys.argv[1:] if argv is None else argv)
    options = parser.parse_args(argv)
    options.toy = torch.device(options.device).type != "cuda"
    for name, (usual, toy) in {"batch_size": (256, 2), "steps": (50, 1), "rounds": (4, 2)}.items():
        if getattr(options, name) is None:
            setattr(options, name, toy if options.toy else usual)
    if options.part:
        found = PARTS[options.part](options)
        (options.work / f"{options.part}.json").write_text(json.dumps(found))
        return
    if options.toy:
        print("No CUDA device: everything but the tests of the kernel runs on the CPU at toy size.", flush=True)
    parts = options.parts or [name for name in PARTS if name != "train"]
    parts += ["train"] if options.train and "train" not in parts else []
    if "train" in parts and not options.train:
        parser.error("the part train needs --train FOLDER, BUSI as prepare_corpus.py made it")
    described = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    done = subprocess.run(described, cwd=ROOT, capture_output=True, text=True)
    report: dict[str, Any] = {
        "commit": done.stdout.strip() or None,
        "machine": machine(options.device),
        "sizes": {name: getattr(options, name) for name in ("batch_size", "steps", "rounds", "toy")},
        "parts": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        for name in parts:
            print(f"\n==== {name}", flush=True)
            report["parts"][name] = run_part(name, argv, Path(folder), SECONDS[name])
            options.json.parent.mkdir(parents=True, exist_ok=True)
            with replaced_file(options.json) as new:
                new.write_text(json.dumps(report, indent=1) + "\n")
    print("\n" + table_of(report))
    if any("error" in found or found.get("failed") for found in report["parts"].values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
