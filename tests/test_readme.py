"""What the documents tell people to type, and where they point."""

import importlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import encode, grey, write
from hub_server import HubServer
from huggingface_hub import HfApi
from test_dicom import save
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from hub.cards import ADDRESS
from hub.export import write_export
from images.transform import ImageTransform
from modeling_glcm_mae import GLCMMAEForPreTraining

BENCHMARKS = Path(__file__).parents[1] / "recipes" / "benchmarks"
ROOT = Path(__file__).resolve().parent.parent
DOCS = [
    ROOT / "README.md",
    *(ROOT / "recipes" / name for name in ("README.md", "benchmarks/README.md", "few_labels.md")),
]
CONTRIBUTING = ROOT / "CONTRIBUTING.md"


def blocks(file: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", file.read_text(), re.DOTALL | re.MULTILINE)


def typed(file: Path) -> list[str]:
    """Every command of a file's bash blocks on one line, without its comment."""
    found = []
    for block in blocks(file, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            command = " ".join(re.sub(r"(^|\s)#.*", "", line).split())
            if command:
                found.append(command)
    return found


def inline(file: Path, start: str) -> list[str]:
    """Commands between backticks within the text; they may go over the end of a line."""
    return [" ".join(code.split()) for code in re.findall(rf"(?<!`)`({start}[^`]*)`(?!`)", file.read_text())]


def test_every_block_of_code_is_of_a_kind_that_is_run():
    for file in DOCS:
        marks = re.findall(r"^```(.*)$", file.read_text(), re.MULTILINE)
        assert set(marks[::2]) <= {"python", "bash"} and set(marks[1::2]) <= {""}, f"{file}: {marks}"
    assert len(typed(DOCS[0])) >= 12
    assert [len(blocks(file, "python")) for file in DOCS[1:]] == [1, 0, 0]


def anchors(file: Path) -> set[str]:
    """Names of a file's headings, as GitHub links to them."""
    prose = re.sub(r"^```.*?^```$", "", file.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("file", [*DOCS, CONTRIBUTING], ids=lambda file: str(file.relative_to(ROOT)))
def test_links_lead_somewhere(file):
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", file.read_text()) if not link.startswith("http")]
    for link in links:
        path, _, anchor = link.partition("#")
        target = file.parent / path if path else file
        assert target.exists(), f"{link}: there is no {target}"
        assert not anchor or anchor in anchors(target), f"{link}: no such heading in {target}"
    assert links


def test_the_map_of_the_house_is_true():
    """What CONTRIBUTING.md names is there, and it names every room and every file of the package."""
    text = CONTRIBUTING.read_text()
    named = set(re.findall(r"`((?:modeling_glcm_mae|recipes|hub_cards|tests)/[^`<\s]*)`", text))
    assert not {name for name in named if not (ROOT / name).exists()}
    rooms = {f"recipes/{path.name}/" for path in (ROOT / "recipes").glob("[!_]*") if list(path.glob("[!_.]*"))}
    package = {path.relative_to(ROOT).as_posix() for path in (ROOT / "modeling_glcm_mae").glob("[!_]*.py")}
    assert rooms | package <= named

    section = text[text.index("## From the command line to the loss") :].split("\n## ")[0]
    code = "\n".join(
        path.read_text() for room in ("modeling_glcm_mae", "recipes") for path in (ROOT / room).rglob("*.py")
    )
    functions = re.findall(r"`(?:\w+\.)?([A-Za-z_]\w*)`", section)
    assert len(functions) >= 8
    for name in set(functions) - {"pixel_values"}:
        assert re.search(rf"(def|class) {name}\b", code), f"there is no {name}"


def test_python_of_the_readme_runs(tiny_config, tmp_path, monkeypatch):
    # Stands in for what `make quickstart` leaves: of the same kind, untrained.
    config = tiny_config("texture", num_channels=1)
    processor = ImageTransform(32, resize="squash", image_mean=(0.5,), image_std=(0.5,)).processor()
    folder = tmp_path / "runs" / "quickstart" / "export"
    folder.parent.mkdir(parents=True)
    facts = {"title": "Quickstart", "repo_id": ADDRESS, "corpus": "speckle"}
    write_export(folder, GLCMMAEForPreTraining(config), processor, {}, [], facts)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    found = blocks(DOCS[0], "python")
    assert len(found) >= 4
    for block in found:
        exec(compile(block, str(DOCS[0]), "exec"), names)
    assert names["features"].shape[:2] == (1, 1 + 16)
    assert names["rebuilt"].shape == (4, 1, 64, 64)


def test_a_trainer_of_ones_own_resumes_as_if_it_had_not_stopped(tmp_path, monkeypatch):
    """As recipes/README.md writes it; transformers' own ViTMAE goes on from random layers."""
    (code,) = blocks(ROOT / "recipes" / "README.md", "python")
    monkeypatch.chdir(tmp_path)
    whole: dict[str, object] = {}
    torch.manual_seed(0)
    exec(compile(code, "recipes/README.md", "exec"), whole)
    evaluated = [entry["eval_loss"] for entry in whole["trainer"].state.log_history if "eval_loss" in entry]
    assert len(evaluated) == 2

    shutil.rmtree("runs/own/checkpoint-4")
    resumed: dict[str, object] = {}
    torch.manual_seed(0)
    code = code.replace("trainer.train()", "trainer.train(resume_from_checkpoint=True)")
    exec(compile(code, "recipes/README.md", "exec"), resumed)
    assert resumed["trainer"].state.global_step == 4
    before, after = (names["trainer"].model.state_dict() for names in (whole, resumed))
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=0, atol=0, msg=name)


# What these do not know themselves goes to the parser of pretrain.py.
PASSES_ON = ("benchmarks/texture_learning", "benchmarks/throughput")
TAKE_MORE = ("pretrain", "finetune")  # options than --help lists


def commands() -> list[tuple[str, str]]:
    """Recipe and options of every command in the docs."""
    lines = [line for file in DOCS for line in [*typed(file), *inline(file, "python recipes/")]]
    return [match.groups() for line in lines if (match := re.search(r"recipes/((?:benchmarks/)?\w+)\.py(.*)", line))]


def options_of(recipe: str, monkeypatch, capsys) -> set[str]:
    folder, _, name = recipe.rpartition("/")
    if folder:
        monkeypatch.syspath_prepend(ROOT / "recipes" / folder)
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(name).main(["--help_all" if name in TAKE_MORE else "--help"])
    assert stopped.value.code == 0
    return set(re.findall(r"--\w+", capsys.readouterr().out))


@pytest.mark.parametrize("recipe", sorted({recipe for recipe, _ in commands()}))
def test_options_in_the_docs_exist(recipe, monkeypatch, capsys):
    known = options_of(recipe, monkeypatch, capsys) | {"--config", "--help"}
    if recipe in PASSES_ON:
        known |= options_of("pretrain", monkeypatch, capsys)
    used = {option for name, options in commands() if name == recipe for option in re.findall(r"--\w+", options)}
    assert used <= known, f"unknown in {recipe}.py: {sorted(used - known)}"


def outside() -> dict[str, str]:
    """Variables without those that this process has from its own `make`, from a login or from the tests."""
    ours = ("HF_", "PYTHONPATH", "MAKE", "MFLAGS", "TRITON_")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


def test_make_targets_in_the_docs_resolve():
    used = {command for file in DOCS for command in [*inline(file, "make "), *typed(file)] if command[:5] == "make "}
    assert {shlex.split(command)[1] for command in used} >= {"quickstart", "test", "demo", "serve"}
    for command in used:
        shown = subprocess.run([*shlex.split(command), "-n"], capture_output=True, text=True, cwd=ROOT, env=outside())
        assert shown.returncode == 0 and "/bin/" in shown.stdout, f"{command}: {shown.stderr}"


def benchmark_of_classifiers():
    """finetuned.py as a module."""
    spec = importlib.util.spec_from_file_location("finetuned", BENCHMARKS / "finetuned.py")
    finetuned = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        spec.loader.exec_module(finetuned)
    return finetuned


def test_the_short_table_of_the_readme_is_that_of_the_results():
    expected, finetuned = [], benchmark_of_classifiers()
    for name, size in (("finetuned", ""), ("finetuned_160", ", 160 pixels")):
        table = finetuned.short_table(json.loads((BENCHMARKS / "results" / f"{name}.json").read_text()))
        head, line, *rows = table.splitlines()
        sized = [re.sub(r"^[|] (`[^`]+`)", rf"| \1{size}", row) for row in rows if "`classical`" not in row]
        # The features are of images at their own size: the row is the same in both.
        expected += [row for row in (head, line, *rows[:1], *sized) if row not in expected]
    assert len(expected) > 8 and "\n\n" + "\n".join(expected) + "\n\n" in (ROOT / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_tables_of_the_documents_are_those_of_the_results():
    finetuned = benchmark_of_classifiers()
    found = json.loads((BENCHMARKS / "results" / "finetuned.json").read_text())
    documents = [file.read_text() for file in (BENCHMARKS / "README.md", ROOT / "README.md")]
    text = finetuned.tables(found)
    curves = sum("light@25" in rows for rows in found.values())
    assert curves and text.count("| `light` |") == 2 * len(found) + 2 * curves, "each with its differences"
    larger = finetuned.tables(json.loads((BENCHMARKS / "results" / "finetuned_160.json").read_text()))
    for table in [*text.split("\n\n"), *larger.split("\n\n")]:
        assert table.strip() in documents[0]
    rows = [line.split("|") for line in text.split("\n\n")[0].splitlines()[2:]]
    rows += [line.split("|") for line in larger.split("\n\n")[0].splitlines()[3:]]
    page = (ROOT / "recipes" / "few_labels.md").read_text()
    for row in rows:
        assert f"| {row[3].strip()} | {row[6].strip()} |" in page, row[1]
    shown = [
        table for table in text.split("\n\n") if re.match(r"[|] [^|]+: balanced accuracy, AUROC [|] 25 groups", table)
    ]
    for line in [line for curve in shown for line in curve.splitlines()[2:]]:
        assert f" | {' | '.join(re.findall(r', ([0-9.]+) [(]', line))} " in page, line
    told = " ".join(documents[1].split())
    for tables in (text, larger):
        (against,) = [table for table in tables.split("\n\n") if "BUSI: points above `mse` |" in table]
        (row,) = [line.split("|")[2:5] for line in against.splitlines() if line.startswith("| `light` |")]
        accuracy, _, auroc = (cell.strip().replace("+", "") for cell in row)
        assert f"by {accuracy.replace(' (', ' points of accuracy (')} and {auroc.replace(' (', ' of AUROC (')}" in told


def test_the_table_of_the_gpu_is_that_of_its_results():
    presets = json.loads((BENCHMARKS / "results" / "gpu.json").read_text())["parts"]["eager"]["presets"]
    document = (BENCHMARKS / "README.md").read_text()
    for preset, found in presets.items():
        over = "{value:.2f} ({lowest:.2f} to {highest:.2f})".format(**found["step_over_mse"])
        cells = (f"`{preset}`", f"{statistics.median(found['images_per_second']):.0f}", over)
        row = f"| {' | '.join(cells)} | {found['peak_mib'] / 1024:.1f} GiB | {100 * found['share_of_limit']:.0f} % |"
        assert row in document


# ---------------------------------------------------------------------------------------- every command, run for real


class Reader:
    """Somebody who types what the docs say: a copy of this repository, an account on the tests' Hub, no GPU."""

    def __init__(self, hub: HubServer, folder: Path):
        self.hub, self.work = hub, folder / "glcm-mae"
        beside = ("tests", "runs", "data", "outputs", "cache", "build", "dist", "venv", "*.egg-info", "__pycache__")
        shutil.copytree(ROOT, self.work, ignore=shutil.ignore_patterns(".*", *beside))
        hub.add_user("reader", "hf_reader_of_the_docs", orgs=("ORG",))
        # As `source .venv/bin/activate` leaves it, whichever environment the tests run in.
        environment = {"VIRTUAL_ENV": sys.prefix, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1"}
        # No token: that is for `hf auth login`.
        self.environment = outside() | environment | hub.environment(folder / "home", token=None)

    def run(self, command: str) -> str:
        """What it printed."""
        done = subprocess.run(
            ["bash", "-eu", "-o", "pipefail", "-c", command],
            **{"cwd": self.work, "env": self.environment, "timeout": 240},
            **{"capture_output": True, "text": True, "stdin": subprocess.DEVNULL},
        )
        assert done.returncode == 0, f"$ {command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    def images(self, name: str) -> None:
        for index in range(24):
            write(self.work / name / "ab"[index % 2] / f"{index:02d}.png", encode(grey(seed=index)))

    def busi(self, name: str) -> None:
        for label in ("normal", "benign", "malignant"):
            for index in range(1, 13):
                # Random blocks: no two images are near-identical, so each is a group of its own.
                random = np.random.default_rng([index, *label.encode()])
                image = np.kron(random.integers(0, 256, (8, 8), dtype=np.uint8), np.ones((6, 6), np.uint8))
                folder = self.work / name / "Dataset_BUSI_with_GT" / label
                write(folder / f"{label} ({index}).png", encode(image))
                write(folder / f"{label} ({index})_mask.png", encode(np.eye(48, dtype=np.uint8) * 255))

    def scans(self, name: str) -> None:
        for index in range(24):
            random = np.random.default_rng(index)
            stored = np.kron(random.integers(0, 4096, (8, 8), dtype=np.uint16), np.ones((6, 6), np.uint16))
            save(self.work / name / f"scan{index:03d}.dcm", stored)

    def labels(self, name: str) -> None:
        rows = [f"scan{index:03d}.dcm,{('benign', 'malignant', '')[index % 3]}\n" for index in range(24)]
        write(self.work / name, "".join(["file,label\n", *rows]).encode())

    def on_the_hub(self, name: str, folder: Path, repo_type: str) -> None:
        owner = name.split("/")[0]
        self.hub.add_user(owner, f"hf_{owner}")
        client = HfApi(endpoint=self.hub.endpoint, token=f"hf_{owner}")
        client.create_repo(name, repo_type=repo_type)
        client.upload_folder(repo_id=name, folder_path=folder, repo_type=repo_type)

    def data_set(self, name: str) -> None:
        self.images("../data_set")
        self.on_the_hub(name, self.work / "../data_set", "dataset")

    def vit_mae(self, name: str) -> None:
        sizes = {key: value for key, value in SIZES.items() if key in ViTMAEConfig.__dataclass_fields__}
        ViTMAEForPreTraining(ViTMAEConfig(**sizes)).save_pretrained(self.work / "../vit_mae")
        self.on_the_hub(name, self.work / "../vit_mae", "model")

    def another_cross_validation(self, name: str) -> None:
        shutil.copytree(self.work / "runs/busi/texture", self.work / name)


# What is the reader's own in the docs, and how the test comes by it, at that very place or under that very name.
STANDS_FOR: dict[str, Callable[[Reader, str], None]] = {
    "path/to/images": Reader.images,
    "path/to/busi": Reader.busi,
    "path/to/download": Reader.busi,
    "path/to/scans": Reader.scans,
    "path/to/labels.csv": Reader.labels,
    "OWNER/NAME": Reader.data_set,
    "facebook/vit-mae-base": Reader.vit_mae,
    "runs/busi/mse": Reader.another_cross_validation,
}
REPLACED = {  # text of the docs -> what is typed
    "--config ...": "--config recipes/configs/quickstart.yaml",
}
NEEDS_GPUS = ("multi_gpu.yaml", "fsdp.yaml", ".sbatch")  # what starts commands that cannot run here

# Options that make a command small. Those that the docs give themselves stay as they are.
SIZES = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
SIZES |= {"intermediate_size": 32, "decoder_hidden_size": 32, "decoder_num_hidden_layers": 1}
SIZES |= {"decoder_num_attention_heads": 2, "decoder_intermediate_size": 32, "resize_to": 36}
TRAINING = {"max_steps": 4, "per_device_train_batch_size": 4, "use_cpu": "true", "dataloader_num_workers": 0}
PRETRAINING = TRAINING | {"held_out": 4, "num_pictures": 2, "logging_steps": 1, "save_strategy": "steps"}
PRETRAINING |= {"save_steps": 2, "eval_strategy": "no", "cache_images": "false"}
# In two stages, which end with whole epochs.
STAGED = {name: value for name, value in PRETRAINING.items() if name != "max_steps"}
STAGED |= {"num_train_epochs": 2, "mse_images_per_update": 8}
SPECKLE = {"speckle_images": 80, "held_out": 20, "probe_labels": 20}
FINETUNING = {name: value for name, value in TRAINING.items() if name != "max_steps"} | {"num_train_epochs": 1}


def small(command: str) -> dict[str, object]:
    """Options to add to a command."""
    recipe = re.search(r"recipes/(\w+)\.py(?! compare)|$", command)[1]
    if command.startswith("hf auth login"):
        return {"token": "hf_reader_of_the_docs"}  # what it asks for at a terminal
    if command.startswith("make quickstart"):
        return PRETRAINING | SIZES | SPECKLE
    if recipe == "pretrain":
        # A run with a checkpoint has its sizes. Commands that write to one place are alternatives of each other.
        found = PRETRAINING | ({} if "--model_name_or_path" in command else SIZES)
        found |= SPECKLE if "quickstart.yaml" in command else {}
        return found | ({} if "--resume_from_checkpoint" in command else {"overwrite_output_dir": "true"})
    if recipe == "cross_validate" and "--mode texture_features" not in command:
        training = STAGED if "pretrain_paper.yaml" in command else PRETRAINING
        given = {"pretrain_options": training | SIZES, "finetune_options": FINETUNING}
        return {name: " ".join(f"{key}={value}" for key, value in values.items()) for name, values in given.items()}
    known = {"finetune": FINETUNING, "prepare_corpus": {"num_folds": 2}, "explain": {"max_images": 2}}
    return known.get(recipe, {})


def losses(run: Path) -> dict[int, float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_command_of_the_docs_runs(hub, tmp_path):
    """In the order of the docs, so that one takes up what another has left, as it does for a reader."""
    reader, done, made, whole_runs = Reader(hub, tmp_path), [], set(), {}
    for command in [line for file in DOCS for line in [*typed(file), *inline(file, r"python recipes/\w+\.py ")]]:
        if command in done or any(name in command for name in NEEDS_GPUS):
            continue
        done.append(command)
        for name, make in STANDS_FOR.items():
            if re.search(rf"(?<!\S){re.escape(name)}(?!\S)", command) and name not in made:
                made.add(name)
                make(reader, name)
        line = command
        for text, instead in REPLACED.items():
            line = line.replace(text, instead)
        added = {name: value for name, value in small(line).items() if f"--{name}" not in line.split()}
        options = " ".join(f"--{name} {value}" for name, value in added.items())

        if line.startswith("make quickstart"):
            # In the environment of the tests, and without installing it anew.
            line = f"{line} -o {sys.prefix}/.installed-recipes VENV={sys.prefix} ARGS='{options}'"
        elif line.startswith("make "):
            line = f"{line} -n"  # a test suite in a test, or an environment of its own: only that it resolves
        else:
            line = f"{line} {options}"
        output = re.search(r"--output_dir (\S+)|$", command)[1]
        run, before = reader.work / (output or "."), re.sub(" --resume_from_checkpoint last", "", command)
        if before != command:
            # Stopped half-way: a checkpoint of the same command, and what it had written by then.
            assert before in whole_runs, f"nothing to resume: {before} is not in the docs"
            shutil.rmtree(run)
            shutil.copytree(whole_runs[before], run)
            shutil.rmtree(run / "checkpoint-4")
            shutil.rmtree(run / "export")
            lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
            (run / "metrics.jsonl").write_text("".join(row for row in lines if json.loads(row)["step"] <= 2))
        said = reader.run(line)

        assert output is None or any(run.iterdir()), f"{command} left nothing"
        if before != command:
            assert losses(run) == losses(whole_runs[before]) and len(losses(run)) == 4
        elif "pretrain.py" in command and output:
            whole_runs[command] = shutil.copytree(run, tmp_path / "whole" / str(len(done)))
        if "--dry_run true" in command:
            assert "would publish to" in said and not any(name.startswith("ORG/") for _, name in hub.repos)

    assert made == set(STANDS_FOR), "a placeholder that the docs have no more"
    runs = reader.work / "runs"
    for name in ("reconstructions/last.png", "metrics.jsonl", "export/model.safetensors"):
        assert (runs / "quickstart" / name).is_file(), "the README says so"
    assert (runs / "features" / "features.parquet").is_file() and (runs / "busi/texture/summary.md").is_file()
    assert {"config.json", "model.safetensors", "curves.png"} <= set(hub.files("ORG/glcm-mae-busi"))
    assert "pretraining/model.safetensors" in hub.files("ORG/glcm-mae-mine")
    assert all(len(hub.commits(name)) == 2 for name in ("ORG/glcm-mae-busi", "ORG/glcm-mae-mine"))
    assert "app.py" in hub.files("ORG/glcm-mae-demo", repo_type="space")
