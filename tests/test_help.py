"""What --help says, and that neither it nor a mistyped option waits for the libraries of the work."""

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import finetune
import pretrain
from commandline import UsageError, parse_args
from images.arguments import PrepareArguments
from modeling_glcm_mae import GLCMMAEConfig
from training.arguments import FINETUNING, PRETRAINING
from training.classifier_options import FINETUNING_OPTIONS, ClassifierArguments
from training.options import PRETRAINING_OPTIONS, ModelArguments

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
TRAININGS = [(pretrain, PRETRAINING_OPTIONS), (finetune, FINETUNING_OPTIONS)]
SCRIPTS = sorted(file.stem for file in RECIPES.glob("*.py") if "def main(" in file.read_text())
HEAVY = ("torch", "datasets", "pandas", "sklearn", "matplotlib", "kornia", "accelerate")


def shown(script, option: str, capsys, monkeypatch) -> str:
    monkeypatch.setenv("COLUMNS", "500")  # an option a line
    with pytest.raises(SystemExit) as stopped:
        script.main([option])
    assert stopped.value.code == 0
    return capsys.readouterr().out


def listed(text: str) -> list[str]:
    return re.findall(r"^  --(\w+) (?:TEXT|N|X|true|\[)", text, re.MULTILINE)


def started(script: str, *options: str) -> subprocess.CompletedProcess:
    """What a script says in a process of its own, and last which of the heavy libraries it has imported."""
    code = (
        "import atexit, runpy, sys\n"
        f"atexit.register(lambda: print('imported', sorted(set({HEAVY}) & set(sys.modules))))\n"
        f"sys.argv = {[f'{script}.py', *options]}\n"
        f"runpy.run_path('{script}.py', run_name='__main__')\n"
    )
    environment = {"PYTHONPATH": f"{RECIPES}:{RECIPES.parent}"}
    return subprocess.run([sys.executable, "-c", code], cwd=RECIPES, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_does_not_import_what_the_work_needs(script):
    done = started(script, "--help")
    assert done.returncode == 0, done.stderr
    assert "--config FILE.yaml" in done.stdout
    assert done.stdout.endswith("imported []\n")


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_file_gets_a_state_of_a_bar_every_half_minute(script):
    """Whatever was imported first: in prepare_corpus.py and publish.py it is huggingface_hub, which imports tqdm."""
    code = f"import {script}\nfrom tqdm.auto import tqdm\nprint(float(tqdm(disable=False).mininterval))"
    given = {"cwd": RECIPES, "env": {"PYTHONPATH": f"{RECIPES}:{RECIPES.parent}"}, "capture_output": True, "text": True}
    assert subprocess.run([sys.executable, "-c", code], **given).stdout == "30.0\n"
    given["env"]["TQDM_MININTERVAL"] = "5"
    assert subprocess.run([sys.executable, "-c", code], **given).stdout == "5.0\n"


@pytest.mark.parametrize(
    "script",
    [name if name in ("pretrain", "publish") else pytest.param(name, marks=pytest.mark.slow) for name in SCRIPTS],
)
def test_a_mistyped_option_does_not_wait_for_what_the_work_needs(script):
    done = started(script, "--help_al", "x")
    assert done.returncode == 1 and "--help_al" in done.stderr.splitlines()[-1]
    assert done.stdout.endswith("imported []\n")


@pytest.mark.parametrize("config", [pytest.param("cpu", marks=pytest.mark.slow), "one_gpu"])
def test_the_launcher_adds_nothing_below_our_message(config, tmp_path):
    file = RECIPES / "configs" / "accelerate" / f"{config}.yaml"
    command = [
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(file),
        str(RECIPES / "pretrain.py"),
        "--presset=x",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # else it says how many it takes
    done = subprocess.run([sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert re.fullmatch(r"error: unknown option or value: --presset=x.*\n", done.stderr), done.stderr


@pytest.mark.parametrize(("script", "classes"), [(pretrain, PRETRAINING), (finetune, FINETUNING)])
def test_no_option_is_refused_early_that_is_one(script, classes, monkeypatch):
    began = []
    monkeypatch.setattr(script, "run_main", lambda *given: began.append(given))
    names = [field.name for dataclass in classes for field in dataclasses.fields(dataclass) if field.init]
    assert len(names) > 140
    words = [form.format(name) for name in names for form in ("--{}=1", "--no_{}")]
    script.main([*words, *(f"--{name.replace('_', '-')}" for name in names), "--config=c.yaml", "--help_all"])
    assert began
    with pytest.raises(
        SystemExit, match=r"^error: unknown option or value: --num-train-epoch=2; did you mean --num_train_epochs\?"
    ):
        script.main(["--num-train-epoch=2"])


@pytest.mark.parametrize(("script", "classes"), TRAININGS)
def test_help_lists_our_options_once_each_in_groups_and_names_the_way_to_the_others(
    script, classes, capsys, monkeypatch
):
    text = shown(script, "--help", capsys, monkeypatch)
    ours = [field.name for dataclass in classes for field in dataclasses.fields(dataclass)]
    assert sorted(listed(text.partition("--help_all")[0])) == sorted(ours)
    assert "more options" not in text  # each has a group
    for title in ("images:", "from an image to a tensor:", "schedule:", "optimiser:", "run:"):
        assert f"\n{title}\n" in text
    assert script.__doc__.strip() in text  # with its lines
    assert "(default: None)" not in text


@pytest.mark.parametrize(("script", "classes"), TRAININGS)
def test_help_all_lists_those_of_the_trainer_too_and_help_names_such_as_are_needed(
    script, classes, capsys, monkeypatch
):
    everything = listed(shown(script, "--help_all", capsys, monkeypatch))
    assert len(set(everything)) == len(everything) > 130
    named = re.findall(r"--(\w+)", shown(script, "--help", capsys, monkeypatch).partition("--help_all")[2])
    assert {"seed", "torch_compile", "resume_from_checkpoint", "push_to_hub", "hub_model_id"} <= set(named)
    assert set(named) - {"config"} <= set(everything)


@pytest.mark.parametrize("arguments", [ModelArguments, ClassifierArguments])
def test_what_help_says_of_an_option_that_is_left_out_is_what_the_model_has(arguments):
    config, said = GLCMMAEConfig(), 0
    for field in dataclasses.fields(arguments):
        found = re.search(r" \(default: (.*)\)$", field.metadata["help"])
        if found:
            said += 1
            assert found[1] == str(getattr(config, field.name)), field.name
    assert said >= 6


@pytest.mark.parametrize(
    ("classes", "given", "message"),
    [
        (PRETRAINING, ["--datadir", "x"], r"unknown option or value: --datadir x; did you mean --data_dir\?"),
        (PRETRAINING, ["--num-train-epoch=3"], r"--num-train-epoch=3; did you mean --num_train_epochs\?"),
        (PRETRAINING, ["--epocs", "3"], r"--epocs 3; did you mean --num_train_epochs\?"),
        (PRETRAINING, ["--num_epochs", "3"], r"--num_epochs 3; did you mean --num_train_epochs\?"),
        (PRETRAINING, ["--batch_size", "4"], r"--batch_size 4; did you mean --per_device_train_batch_size\?"),
        (PRETRAINING, ["--lr", "1"], r"--lr 1; did you mean --learning_rate\?"),
        ((PrepareArguments,), ["--datadir", "x"], r"unknown option or value: --datadir x; did you mean --data_dir\?"),
        ((PrepareArguments,), ["--zzz", "x"], r"unknown option or value: --zzz x \(--help"),
    ],
)
def test_a_mistyped_option_is_named_before_one_that_is_missing(classes, given, message):
    with pytest.raises(UsageError, match=message):
        parse_args(classes, given)


def test_an_option_that_has_an_opposite_can_be_a_key_of_a_config(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("eval_on_start: false\ncorpus: speckle\nuse_cpu: true\n")
    *_, args = parse_args(PRETRAINING, ["--config", str(config)])
    assert args.eval_on_start is False
