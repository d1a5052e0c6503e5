"""Several processes and nodes: what is drawn in each, what is refused, how SLURM starts them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import encode, grey, write
from test_finetune import corpus, exported, run, texture  # noqa: F401 - fixtures
from transformers import TrainingArguments

from commandline import UsageError, parse_args
from training.arguments import FINETUNING, PRETRAINING
from training.models import StochasticDepth

ROOT = Path(__file__).resolve().parents[1]
RECIPES = ROOT / "recipes"


def test_fsdp_is_refused_in_one_line(corpus, exported, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(SystemExit, match=r"error: finetune.py does not shard a classifier \(FSDP\).*multi_gpu.yaml"):
        run(corpus, tmp_path / "out", "--model_name_or_path", str(exported))


@pytest.mark.parametrize("classes", [PRETRAINING, FINETUNING])
@pytest.mark.parametrize(
    ("native", "launched", "given", "bf16"),
    [
        (True, None, [], True),
        (True, "no", [], True),  # accelerate launch without a configuration
        (False, None, [], False),
        (True, None, ["--bf16=false"], False),
        (False, None, ["--bf16=true"], True),
        (True, None, ["--fp16=true"], False),
        (True, None, ["--use_cpu=true"], False),
        (True, "fp16", [], False),
        (True, "bf16", [], False),  # the launcher's own does it
        (True, None, ["--bf16"], True),
        (False, None, ["--bf16", "--seed=1"], True),
    ],
)
def test_a_gpu_that_computes_in_bfloat16_does_so_unless_a_precision_was_chosen(
    classes, native, launched, given, bf16, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native and not including_emulation)
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    if launched:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    monkeypatch.setattr(TrainingArguments, "__post_init__", lambda args: None)  # it would look for the GPU
    *_, args = parse_args(classes, ["--corpus=any", "--eval_strategy=no", *given])
    assert args.bf16 is bf16


@pytest.mark.parametrize("classes", [PRETRAINING, FINETUNING])
def test_a_launcher_that_leaves_the_gpu_alone_or_says_bf16_is_heeded(classes, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr(TrainingArguments, "__post_init__", lambda args: None)
    given = ["--corpus=any", "--eval_strategy=no"]
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    *_, args = parse_args(classes, given)
    assert args.bf16 is False
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(UsageError, match="bf16 false, where the launcher says mixed_precision bf16: give it"):
        parse_args(classes, [*given, "--bf16=false"])


DRAWS = """
import sys, torch
from pathlib import Path
sys.path.insert(0, {recipes!r})
from accelerate import PartialState
from transformers import set_seed
from training.models import StochasticDepth
from training.run import seed_this_process
PartialState(cpu=True)
set_seed(7)
seed_this_process(7)
kept = StochasticDepth(0.5)(torch.ones(64, 1))
Path(sys.argv[1], str(PartialState().process_index)).write_text("".join(str(int(value > 0)) for value in kept))
"""


def test_each_process_loses_layers_of_its_own(tmp_path):
    script = tmp_path / "draws.py"
    script.write_text(DRAWS.format(recipes=str(RECIPES)))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", str(script)]
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    torch.manual_seed(7)
    alone = "".join(str(int(value > 0)) for value in StochasticDepth(0.5)(torch.ones(64, 1)))
    assert (tmp_path / "0").read_text() == alone != (tmp_path / "1").read_text()


CACHES = """
import sys
from pathlib import Path
sys.path[:0] = {paths!r}
import datasets
datasets.config.HF_DATASETS_CACHE = sys.argv[1] + "/cache"
from accelerate import PartialState
state = PartialState(cpu=True)
from corpora.load import load_corpus
from images.transform import ImageTransform
from training.feeding import PretrainDataset, _ItemMaker
decoded, decode = [], _ItemMaker.decode
_ItemMaker.decode = lambda self, row: (decoded.append(row), decode(self, row))[1]
images = load_corpus(sys.argv[1] + "/raw")
dataset = PretrainDataset(images, ImageTransform(16), patch_size=8, num_channels=3, cache=True)
known = (len(decoded), dataset._cache.file, [float(dataset[index]["pixel_values"].sum()) for index in range(6)])
Path(sys.argv[1], str(state.process_index)).write_text(repr(known))
"""


@pytest.mark.slow
def test_two_processes_share_one_file_of_decoded_images(tmp_path):
    for index in range(6):
        write(tmp_path / "raw" / f"{index}.png", encode(grey(40, 48, seed=index)))
    script = tmp_path / "caches.py"
    script.write_text(CACHES.format(paths=[str(RECIPES), str(ROOT)]))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", str(script)]
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    waited, wrote = sorted((tmp_path / name).read_text() for name in "01")
    assert wrote.startswith("(6, ") and waited.startswith("(0, "), "one decodes, the other waits"
    assert wrote.removeprefix("(6") == waited.removeprefix("(0")
    assert len(list((tmp_path / "cache" / "glcm_mae_images").glob("*.npy"))) == 1


# What SLURM would do, on one machine: the hosts of a job, and a command once on each of them.
SCONTROL = '#!/bin/sh\n[ "$1 $2" = "show hostnames" ] && printf "localhost\\nlocalhost\\n"\n'
SRUN = """#!/bin/bash
for node in $(seq "$SLURM_JOB_NUM_NODES"); do "$@" & pids="$pids $!"; done
for pid in $pids; do wait "$pid" || exit 1; done
"""


@pytest.mark.slow
@pytest.mark.parametrize("nodes", [1, 2])
def test_a_job_of_slurm_trains_on_all_its_nodes(nodes, tmp_path):
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, text in (("scontrol", SCONTROL), ("srun", SRUN)):
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    environment = os.environ | {
        "PATH": f"{commands}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "SLURM_JOB_NODELIST": "localhost",
        "SLURM_JOB_NUM_NODES": str(nodes),
        "SLURM_JOB_ID": str(os.getpid()),
        "PROCESSES_PER_NODE": "1",
        "OMP_NUM_THREADS": "1",
    }
    output = tmp_path / "out"
    options = {
        "config": RECIPES / "configs" / "quickstart.yaml",
        "speckle_images": 32,
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "probe_labels": 0,
        "held_out": 4,
        "num_pictures": 1,
        "use_cpu": "true",
        "logging_steps": 1,
        "output_dir": output,
    }
    command = ["bash", str(RECIPES / "configs" / "slurm" / "pretrain.sbatch")]
    command += [f"--{name}={value}" for name, value in options.items()]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    settings = (output / "config.yaml").read_text()
    assert f"effective_batch_size: {4 * nodes}\n" in settings
    losses = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert any("loss" in row for row in losses) and (output / "export" / "model.safetensors").exists()
