"""The benchmark of fine-tuned classifiers: what it runs, keeps, and makes tables of."""

import argparse
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from helpers import encode, grey, write
from test_benchmarks import BENCHMARKS, SMALL, TINY_RUN, ends, load, own_cache  # noqa: F401 - fixtures
from test_finetune import few_resamples  # noqa: F401 - fixtures

from images.arguments import PrepareArguments
from judging.summary import compare, summarise
from modeling_glcm_mae import GLCMMAEConfig
from prepare_corpus import prepare
from training import cross_validation

BUSI, XRAY = ("normal", "benign", "malignant"), ("NORMAL", "PNEUMONIA")


def predicted(seed: int, skill: float, names: tuple[str, ...] = BUSI) -> pd.DataFrame:
    """Answers to 120 images of 60 patients in five folds."""
    random = np.random.default_rng(seed)
    label = np.arange(120) % len(names)
    scores = random.normal(size=(120, len(names))) + skill * np.eye(len(names))[label]
    probabilities = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    table = pd.DataFrame({"file_name": [f"{i:03d}.png" for i in range(120)], "label": label})
    table["group"], table["fold"] = [f"p{i // 2}" for i in range(120)], [str(i // 2 % 5) for i in range(120)]
    for index, name in enumerate(names):
        table[f"probability_{name}"] = probabilities[:, index]
    table["prediction"] = probabilities.argmax(1)
    return table


BUSI_ROW = [
    *"recipes/cross_validate.py --corpus data/busi --pretrain_config recipes/configs/laptop/pretrain.yaml".split(),
    *"--pretrain_options preset=mse num_train_epochs=60 seed=0".split(),
    *"--finetune_config recipes/configs/laptop/finetune.yaml --finetune_options num_train_epochs=30 seed=0".split(),
]


def kept(finetuned, folder: Path, table: pd.DataFrame, words: list[str] = BUSI_ROW) -> dict:
    """The record of a run of these words with these predictions."""
    folder.mkdir(parents=True)
    table.sample(frac=1, random_state=0).to_parquet(folder / "predictions.parquet")
    settings = {"mode": "finetune", "corpus": "data_of_somebody/busi"} | finetuned.asked(words)
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    for step, seconds in (("pretrain", 90.0), ("finetune", 30.0)):
        write(folder / "fold_0" / step / "all_results.json", json.dumps({"train_runtime": seconds}).encode())
    return json.loads(json.dumps(finetuned.record(words, folder)))


def test_what_is_kept_of_a_run_gives_its_figures(tmp_path, few_resamples):  # noqa: F811
    finetuned, table_of = load("finetuned"), load("row_tables").table_of
    table = predicted(0, 1.0)
    run = kept(finetuned, tmp_path / "run", table)
    assert run["minutes"] == 2 and run["command"].startswith("python recipes/cross_validate.py --corpus data/busi")
    assert "somebody" not in json.dumps(run)
    expected, found = (summarise(one, ["malignant"])["figures"] for one in (table, table_of([run])))
    for name in ("accuracy", "balanced_accuracy", "macro_auroc", "binary_auroc"):
        assert found[name]["pooled"]["value"] == pytest.approx(expected[name]["pooled"]["value"], abs=1e-3), name
    # Several trainings on the same images are no more images.
    one, three = (
        summarise(table_of([run | {"folds": " ".join(["official"] * 120)}] * count))["figures"]["accuracy"]
        for count in (1, 3)
    )
    assert three["pooled"] == one["pooled"]


def test_an_interval_of_several_seeds_holds_their_luck_and_keeps_the_folds(tmp_path, few_resamples):  # noqa: F811
    finetuned, table_of = load("finetuned"), load("row_tables").table_of
    table = predicted(0, 1.0)
    right = {f"probability_{name}": (table["label"] == index).astype(float) for index, name in enumerate(BUSI)}
    wrong = {name: 1 - value for name, value in right.items()}
    half = {name: value.where(table["fold"].isin(["0", "1"]), wrong[name]) for name, value in right.items()}
    runs = [kept(finetuned, tmp_path / str(i), table.assign(**given)) for i, given in enumerate((right, wrong, half))]

    def interval(figure: str, *seeds: int) -> tuple[float, float, float]:
        found = summarise(table_of([runs[seed] for seed in seeds]))["figures"][figure]["pooled"]
        return found["value"], found["low"], found["high"]

    for figure in ("accuracy", "macro_auroc"):
        value, low, high = interval(figure, 0, 1)
        assert value == 0.5 and low < 0.3 and high > 0.7, "each fold has trainings of its own"
        # All right in two folds, all wrong in three: as many of each in every draw.
        assert interval(figure, 2) == interval(figure, 2, 2) == pytest.approx((0.4, 0.4, 0.4))
    # Paired: the same groups and trainings of both, in whatever order they are.
    several = table_of([kept(finetuned, tmp_path / f"{i}", predicted(i, 1.0)) for i in (3, 4, 5)])
    itself = compare(several, several.sample(frac=1, random_state=0))["differences"]
    for figure in ("accuracy", "macro_auroc"):
        assert (itself[figure]["low"], itself[figure]["high"]) == pytest.approx((0, 0)), figure
    against = compare(*(table_of([runs[one] for one in seeds]) for seeds in ((0, 1), (1, 1))))["differences"]
    found = against["accuracy"]
    assert found["value"] == 0.5 and found["low"] < 0.3 and found["high"] > 0.7


@pytest.mark.parametrize("row", ["classical", "texture"])
def test_a_row_that_is_repeated_alone_has_its_table(row, tmp_path, few_resamples, capsys):  # noqa: F811
    finetuned = load("finetuned")
    table = predicted(0, 1.0)
    found = {"busi": {row: {"0": kept(finetuned, tmp_path / row, table)}}}
    finetuned.main(["--tables", str(write(tmp_path / "one.json", json.dumps(found).encode()))])
    accuracy = f"{(table['prediction'] == table['label']).mean():.3f}"
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and lines[0].startswith("| BUSI |") and lines[2].startswith(f"| `{row}` | 1 | {accuracy} (")


def test_a_row_that_is_in_the_file_is_named_and_nothing_is_run_unasked(tmp_path, few_resamples, capsys):  # noqa: F811
    finetuned = load("finetuned")
    run = kept(finetuned, tmp_path / "run", predicted(0, 1.0), BUSI_ROW)
    file = write(tmp_path / "one.json", json.dumps({"busi": {"mse": {"0": run}}}).encode())
    given = ["--corpora", "busi", "--rows", "mse", "--seeds", "0", "--json", str(file)]
    finetuned.main(given)
    said = f"busi, mse, seed 0: is in {file} already, of commit {run['commit'][:12]}: not run"
    assert capsys.readouterr().out.splitlines()[0] == said
    finetuned.main([*given, "--pretrain_options", "learning_rate=0.001", "image_size=96"])
    other = f"{said}, though it ran with other settings: pretrain image_size 160 there, 96 here\n"
    assert capsys.readouterr().out.startswith(other), "whether by an option or by the YAML file"
    finetuned.main([*given, "--finetune_options", "num_train_epochs=60", "--pretrain_options", "num_train_epochs=30"])
    other = "pretrain num_train_epochs 60 there, 30 here; finetune num_train_epochs 30 there, 60 here\n"
    assert capsys.readouterr().out.startswith(f"{said}, though it ran with other settings: {other}")
    with pytest.raises(SystemExit):
        finetuned.main(["--corpora", "busi", "--json", str(file)])
    assert "error: give --corpora and --rows to run, or --tables FILE to show" in capsys.readouterr().err


def test_rows_of_all_corpora_tell_how_their_encoder_was_made(tmp_path, few_resamples, capsys, monkeypatch):  # noqa: F811
    finetuned = load("finetuned")
    monkeypatch.setattr(finetuned, "ROOT", tmp_path)
    shutil.copytree(BENCHMARKS.parent / "configs" / "laptop", tmp_path / "recipes" / "configs" / "laptop")
    given = ["--corpora", "covid_ct", "--rows", "mse_all", "--output_dir", "runs", "--json", str(tmp_path / "all.json")]
    with pytest.raises(SystemExit, match="error: run --corpora busi --rows mse_all first: there is no "):
        finetuned.main(given)
    options = argparse.Namespace(
        data_dir="data", output_dir="runs", pretrain_options=[], finetune_options=[], jobs=1, json=tmp_path / "all.json"
    )
    first = finetuned.asked(finetuned.command("busi", "mse_all", 0, options))
    settings = {"pretrain_config": "laptop.yaml", **first, "finetune_config_content": None, "finetune_options": None}
    write(tmp_path / "runs" / "busi" / "mse_all" / "seed_0" / "config.yaml", yaml.safe_dump(settings).encode())
    with pytest.raises(SystemExit, match="were trained with other settings: pretrain image_size 160 there, 96 her"):
        finetuned.main([*given, "--pretrain_options", "image_size=96"])
    # As if the fine-tuning had run.
    words = finetuned.command("covid_ct", "mse_all", 0, options)
    kept(finetuned, tmp_path / "runs" / "covid_ct" / "mse_all" / "seed_0", predicted(0, 1.0, XRAY), words)
    monkeypatch.setattr(finetuned.subprocess, "run", lambda *args, **more: subprocess.CompletedProcess(args, 0, "", ""))
    finetuned.main(given)
    run = json.loads((tmp_path / "all.json").read_text())["covid_ct"]["mse_all"]["0"]
    assert run["settings"]["pretrain_options"] == first["pretrain_options"] and "num_train_epochs=20" in run["command"]
    capsys.readouterr()
    finetuned.main([*given, "--pretrain_options", "image_size=96"])
    assert "though it ran with other settings: pretrain image_size 160 there, 96 her" in capsys.readouterr().out


def test_what_the_benchmark_started_ends_with_it(tmp_path):
    script = f"""
import sys
sys.path.insert(0, {str(BENCHMARKS)!r})
import finetuned
started = "import os, time; open('pid', 'w').write(f'{{os.getpid()}}.'); time.sleep(600)"
finetuned.command = lambda *_: ["-c", started]
finetuned.ROOT = {str(tmp_path)!r}
finetuned.main(["--corpora", "busi", "--rows", "mse", "--json", {str(tmp_path / "found.json")!r}])
"""
    with subprocess.Popen([sys.executable, "-c", script]) as running:
        try:
            while not ((tmp_path / "pid").exists() and (tmp_path / "pid").read_text().endswith(".")):
                assert running.poll() is None
                time.sleep(0.05)
            running.terminate()
            assert running.wait(60) == 128 + signal.SIGTERM
            assert ends(int((tmp_path / "pid").read_text()[:-1]))
        finally:
            running.kill()


def test_the_tables_hold_every_finished_row_and_its_difference(tmp_path, few_resamples, capsys):  # noqa: F811
    finetuned, table_of = load("finetuned"), load("row_tables").table_of
    skills = {"classical": 1.5, "mse": 1.0, "texture": 1.2}
    answers = {row: predicted(index, skill) for index, (row, skill) in enumerate(skills.items())}
    busi = {row: {"0": kept(finetuned, tmp_path / row, table)} for row, table in answers.items()}
    run = kept(finetuned, tmp_path / "xray", predicted(7, 1.0, XRAY))
    other = kept(finetuned, tmp_path / "other", predicted(8, 2.0, XRAY))
    # Nothing in the classical row is random; a row with one of two seeds is held against the same one.
    classical = run | {"minutes": 3}
    xray = {"classical": {"0": classical}, "none": {"0": run, "2": run}, "mse": {"0": run, "1": other}}
    xray |= {"texture": {"0": other}, "paper": {"2": run}}
    text = finetuned.tables({"busi": busi, "pneumonia": xray})
    compared = compare(answers["texture"], answers["mse"], ["malignant"])["differences"]
    row = next(line for line in text.splitlines() if line.startswith("| `texture` |") and "+" in line)
    points = [100 * compared[name]["value"] for name in ("accuracy", "balanced_accuracy", "binary_auroc")]
    for point, cell in zip(points, row.split("|")[2:5], strict=True):
        assert float(cell.split()[0]) == pytest.approx(point, abs=0.11)
    of_busi, of_xray = text.split("| Chest X-ray |")[0], text.split("| Chest X-ray |")[1]
    said = capsys.readouterr().err
    assert "`paper`" not in text and "pneumonia, paper: seed 2 is left out, which is not of mse\n" in said
    assert "| `none` | 1 | " in of_xray and "pneumonia, none: seed 2 is left out, which is not of mse\n" in said
    assert re.search(r"\| `classical` \| 1 \| .* \| 3 \|$", of_xray, re.MULTILINE), "of one run"
    right = [100 * (predicted(*how, XRAY).eval("prediction == label").mean()) for how in ((7, 1.0), (8, 2.0))]
    assert f"| `texture` | 1 | {right[1] / 100:.3f} (" in of_xray
    assert f"| `texture`, seed 0 | {right[1] - right[0]:+.1f} (" in of_xray and f"{right[1] - right[0]:.1f}" != "0.0"
    of_one = finetuned.tables({"pneumonia": xray}, "texture")
    assert f"| `mse` | 1 | {right[0] / 100:.3f} (" in of_one and f"| `mse` | {right[0] - right[1]:+.1f} (" in of_one
    accuracy = f"{(answers['mse']['prediction'] == answers['mse']['label']).mean():.3f}"
    assert f"| `mse` | 1 | {accuracy} (" in of_busi and "| `mse` | 2 | " in of_xray
    assert f"| `mse` | 2 | {sum(right) / 200:.3f} (" in of_xray
    assert f"| `classical` | 1 | {right[0] / 100:.3f} (" in of_xray
    assert f"| `classical` | {(right[0] - right[1]) / 2:+.1f} (" in of_xray, "beside both seeds"
    text = finetuned.tables({"busi": busi, "pneumonia": xray}, "classical")
    less = text.split("| BUSI: points above `classical` |")[1].split("\n\n")[0]
    point = 100 * (table_of([busi["mse"]["0"]]).eval("prediction == label").mean())
    point -= 100 * (table_of([busi["classical"]["0"]]).eval("prediction == label").mean())
    assert f"| `mse` | {point:+.1f} (" in less and "| `texture` |" in less and "| `classical` |" not in less
    less = text.split("| Chest X-ray: points above `classical` |")[1]
    assert (
        f"| `mse` | {(right[1] - right[0]) / 2:+.1f} (" in less
        and f"| `texture`, seed 0 | {right[1] - right[0]:+.1f} (" in less
    )
    text = finetuned.tables({"busi": busi}, "classical", beside="classical")
    both = [f"probability_{name}" for name in BUSI]
    means = (answers["classical"][both].to_numpy() + answers["texture"][both].to_numpy()) / 2
    accuracy, alone = (
        (choice == answers["texture"]["label"]).mean()
        for choice in (means.argmax(1), answers["classical"]["prediction"])
    )
    assert (
        f"| `classical` and `texture` | 1 | {accuracy:.3f} (" in text and f"| `classical` | 1 | {alone:.3f} (" in text
    )
    assert f"| `classical` and `texture` | {100 * (accuracy - alone):+.1f} (" in text and "| `texture` |" not in text
    both_seeds = finetuned.tables({"pneumonia": xray, "busi": {"mse": busi["mse"]}}, "classical", beside="classical")
    assert "| `classical` and `mse` | 2 | " in both_seeds and "BUSI" not in both_seeds
    assert "| `classical` and `texture` | 1 | " in both_seeds
    beside_one = finetuned.tables({"pneumonia": xray}, "mse", beside="texture")
    said = capsys.readouterr().err
    assert "pneumonia, paper: seed 2 is left out, which is not of mse and texture\n" in said
    assert "| `texture` and `mse` | 1 | " in beside_one and "| `texture` and `classical` | 1 | " in beside_one
    assert "busi is left out: it has no finished row classical\n" in said
    # Without the baseline and `mse`, the row with most seeds.
    assert "| `texture` | 2 |" in finetuned.tables(
        {"pneumonia": {"none": {"0": run}, "texture": {"0": run, "1": other}}}
    )
    file = write(tmp_path / "found.json", json.dumps({"pneumonia": xray}).encode())
    finetuned.main(["--tables", str(file), "--seeds", "1"])
    of_one = capsys.readouterr().out
    assert f"| `mse` | 1 | {right[1] / 100:.3f} (" in of_one and "`texture`" not in of_one
    assert f"| `classical` | {right[0] - right[1]:+.1f} (" in of_one
    file.write_text(json.dumps({"pneumonia": xray | {"mse@25": {"0": run}, "none@25": {"0": other}}, "busi": busi}))
    finetuned.main(["--tables", str(file), "--corpora", "pneumonia", "--rows", "mse", "none"])
    some = capsys.readouterr().out
    assert "BUSI" not in some and "`texture`" not in some and "`classical`" not in some
    assert "| `mse` | 2 |" in some and some.count("| `none` | ") == 3 and "25 groups" in some
    with pytest.raises(SystemExit, match="found.json has no row of these --corpora, --rows and --seeds"):
        finetuned.main(["--tables", str(file), "--rows", "mse", "--seeds", "7"])
    busi["texture"]["0"]["file_names_sha256"] = "of another preparation"
    with pytest.raises(SystemExit, match="the rows of busi are not of the same images"):
        finetuned.tables({"busi": busi})


def test_the_short_table_has_a_line_a_row_of_the_seeds_of_mse(tmp_path, few_resamples, capsys):  # noqa: F811
    finetuned = load("finetuned")
    table = predicted(0, 1.0)
    run, xray = kept(finetuned, tmp_path / "busi", table), kept(finetuned, tmp_path / "xray", predicted(7, 1.0, XRAY))
    found = {
        "pneumonia": {"mse": {"0": xray, "1": xray}, "texture": {"2": xray}, "classical": {"0": xray}},
        "busi": {"texture": {"0": run}, "texture@25": {"0": xray}},
    }
    file = tmp_path / "found.json"
    file.write_text(json.dumps(found))
    finetuned.main(["--tables", str(file), "--short"])
    head, _, *rows = capsys.readouterr().out.strip().splitlines()
    assert head == "| accuracy, AUROC | BUSI | Chest X-ray |"
    figures = summarise(table, ["malignant"])["figures"]
    accuracy, auroc = (figures[name]["pooled"]["value"] for name in ("accuracy", "binary_auroc"))
    assert rows[-1] == f"| `texture` | {accuracy:.3f}, {auroc:.3f} |  |"
    assert [row.split("|")[1:3] for row in rows[:-1]] == [[" `classical` ", "  "], [" `mse` ", "  "]]
    assert rows[0].split("|")[3] == rows[1].split("|")[3] and "0." in rows[0]
    other = kept(finetuned, tmp_path / "other", predicted(8, 2.0, XRAY))
    some = finetuned.short_table({"pneumonia": {"mse": {"0": xray, "1": other}, "texture": {"1": other, "2": xray}}})
    alone = finetuned.short_table({"pneumonia": {"mse": {"0": other}}})
    shown = {line.split("|")[1].strip(): line.split("|")[2] for line in some.splitlines()[2:]}
    assert shown["`texture`"] == alone.splitlines()[-1].split("|")[2] != shown["`mse`"], "the seed that both have"
    with pytest.raises(SystemExit, match="2"):
        finetuned.main(["--short", "--corpora", "busi", "--rows", "mse"])
    assert "--short, --together_with and --as_frequent go with --tables" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        finetuned.main(["--tables", str(file), "--short", "--baseline", "texture"])
    assert "--short has no intervals or baseline" in capsys.readouterr().err
    assert finetuned.short_table({"busi": {"texture@25": {"0": run}}}).splitlines()[0] == "| accuracy, AUROC |"
    found["pneumonia"]["mse"]["0"] = xray | {"file_names_sha256": "of another preparation"}
    with pytest.raises(SystemExit, match="the rows of pneumonia are not of the same images"):
        finetuned.short_table(found)


def test_networks_answer_for_classes_as_frequent_as_they_are(tmp_path, few_resamples, capsys):  # noqa: F811
    finetuned = load("finetuned")
    table = predicted(0, 0.5)
    table = table[(table["label"] == 1) | (table["fold"] == "4") | (table.index % 6 == 0)].reset_index(drop=True)
    run = kept(finetuned, tmp_path / "run", table)
    classical = kept(
        finetuned, tmp_path / "classical", table, ["recipes/cross_validate.py", "--mode", "texture_features"]
    )
    found = {"busi": {"classical": {"0": classical}, "mse": {"0": run, "1": run}, "mse@25": {"0": run, "1": run}}}
    corrected = kept(finetuned, tmp_path / "corrected", table, [*BUSI_ROW, "prior_correction=true"])
    found["busi"]["texture"] = {"0": corrected, "1": corrected}
    found |= {"pneumonia": {"mse": {"0": kept(finetuned, tmp_path / "xray", predicted(7, 1.0, XRAY))}}}
    file = write(tmp_path / "found.json", json.dumps(found).encode())
    finetuned.main(["--tables", str(file), "--as_frequent"])
    said = capsys.readouterr()
    right = 0
    for _, row in table.iterrows():
        others = table[table["fold"] != row["fold"]]["label"]
        weighed = [row[f"probability_{name}"] * (others == index).mean() for index, name in enumerate(BUSI)]
        right += int(np.argmax(weighed)) == row["label"]
    alike = (table["prediction"] == table["label"]).mean()
    # Of a second seed too, whose folds hold the same images.
    assert f"| `mse` | 2 | {right / len(table):.3f} (" in said.out and right / len(table) > alike
    assert said.out.startswith("| BUSI, classes as frequent as they are |") and "25 groups" not in said.out
    with_fewer = finetuned.tables({"busi": found["busi"] | {"none": {"0": run}}}, beside="classical", frequent=True)
    assert "| `classical` and `none` | 1 |" in with_fewer and "| `classical` and `mse` | 2 |" in with_fewer
    assert re.search(r"\| `classical` and `none`, seed 0 \| [+]0.0 \([+]0.0 to [+]0.0\)", with_fewer), (
        "of equal answers"
    )
    for row in ("| `classical` | 1 |", "| `texture` | 2 |"):
        assert f"{row} {alike:.3f} (" in said.out, "it has weighed them so by itself"
    assert "Chest X-ray" not in said.out and "pneumonia is left out: of one split the other images" in said.err
    with pytest.raises(SystemExit):
        finetuned.main(["--corpora", "busi", "--rows", "mse", "--as_frequent", "--json", str(file)])
    assert "--together_with and --as_frequent go with --tables" in capsys.readouterr().err


@pytest.mark.slow
def test_the_rows_are_run_kept_and_not_run_again(tmp_path):
    for index in range(72):
        name = ("normal", "benign", "malignant")[index % 3]
        values = encode(grey(40, 48, seed=index))
        write(tmp_path / "raw" / "Dataset_BUSI_with_GT" / name / f"{name} ({index + 1}).png", values)
    given = PrepareArguments("busi", str(tmp_path / "raw"), output_dir=str(tmp_path / "data" / "busi"), num_folds=2)
    prepare(given)
    sizes = {name: size for name, size in TINY_RUN.items() if name in ("image_size", "patch_size", *SMALL)}
    options = [f"--{name}={tmp_path / name.split('_')[0]}" for name in ("data_dir", "output_dir")]
    options += [f"--json={tmp_path / 'found.json'}", *"--corpora busi --seeds 0 --rows classical none mse".split()]
    options += ["--pretrain_options", "num_train_epochs=1", *(f"{name}={size}" for name, size in sizes.items())]
    options += ["--finetune_options", "num_train_epochs=1"]
    command = [sys.executable, str(BENCHMARKS / "finetuned.py"), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "found.json").read_text())["busi"]
    assert list(found) == ["classical", "none", "mse"]
    for row in found.values():
        assert row["0"]["labels"] == found["mse"]["0"]["labels"] and len(row["0"]["labels"].split()) == 72
    assert "preset=mse" in found["mse"]["0"]["command"] and "pretrain" not in found["none"]["0"]["command"]
    again = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert again.returncode == 0 and "cross_validate" not in again.stderr, "nothing is run again"
    named, shown = again.stdout.splitlines(keepends=True)[:3], again.stdout.splitlines(keepends=True)[3:]
    assert all(line.startswith("busi, ") and line.endswith(": not run\n") for line in named)
    tables = subprocess.run([*command[:2], "--tables", str(tmp_path / "found.json")], capture_output=True, text=True)
    assert tables.stdout == "".join(shown) and tables.stdout.count("| `none` |") == 2
    assert tables.stdout in done.stdout


def test_the_row_texture_is_the_preset_and_not_what_another_release_called_so():
    finetuned, rows = load("finetuned"), load("row_settings")
    given = dict(word.split("=") for word in finetuned.ROWS["texture"])
    preset = GLCMMAEConfig.from_preset(given.pop("preset"))
    assert {name: getattr(preset, name) for name in given} == {name: float(value) for name, value in given.items()}
    assert given.keys() == {"glcm_head_weight", "glcm_cls_weight"}
    before = {"pretrain_options": ["preset=texture", "num_train_epochs=60"]}
    now = {"pretrain_options": [*finetuned.ROWS["texture"], "num_train_epochs=60"]}
    assert "glcm_head_weight not given there, 8 here" in rows.differences(before, now)


def test_a_row_of_all_corpora_has_one_encoder_of_their_training_parts():
    finetuned = load("finetuned")
    options = argparse.Namespace(data_dir="data", output_dir="runs", pretrain_options=["image_size=64"], jobs=1)
    options.finetune_options = ["num_train_epochs=3"]
    words = finetuned.command("busi", "texture_all", 0, options)
    given = words[words.index("--pretrain_options") + 1 : words.index("--finetune_config")]
    others = ["unlabelled_corpus=data/covid_ct", "unlabelled_corpus=data/pneumonia"]
    others += ["unlabelled_folds=same", "unlabelled_folds=official"]
    assert given == [*finetuned.ROWS["texture"], *others, "num_train_epochs=24", "image_size=64", "seed=0"]
    of_finetuning = words[words.index("--finetune_options") + 1 : words.index("--jobs")]
    assert of_finetuning == ["num_train_epochs=3", "seed=0"]
    for corpus, seed, fold in (("covid_ct", 0, "{fold}"), ("pneumonia", 2, "2")):
        words = finetuned.command(corpus, "texture_all", seed, options)
        encoder = f"runs/busi/texture_all/seed_0/fold_{fold}/pretrain/export"
        assert words[words.index("--checkpoint") + 1] == encoder and "--pretrain_options" not in words
    alone = finetuned.command("covid_ct", "texture", 0, options)
    assert not any("unlabelled" in word for word in alone) and "num_train_epochs=30" in alone
    # As cross_validate.py hands them on.
    handed = ["--unlabelled_corpus", "data/covid_ct", "data/pneumonia", "--unlabelled_folds", "same", "official"]
    assert cross_validation._options(others) == handed
    assert cross_validation._options(["glcm_offsets=[[0, 1]]"]) == ["--glcm_offsets=[[0, 1]]"]
    assert cross_validation._options(["seed=1", "seed=2"]) == ["--seed=2"]


def test_a_learning_curve_has_the_encoders_and_the_updates_of_all_labels(tmp_path, few_resamples, capsys):  # noqa: F811
    finetuned = load("finetuned")
    folds = [{"train": list(range(size))} for size in (480, 500)]
    write(tmp_path / "busi" / "splits.json", json.dumps({"folds": folds}).encode())
    options = argparse.Namespace(data_dir=tmp_path, output_dir="runs", pretrain_options=[], finetune_options=[], jobs=1)
    words = finetuned.command("busi", "mse", 0, options, 25)
    assert words[words.index("--output_dir") + 1] == "runs/busi/mse@25/seed_0" and "--pretrain_config" not in words
    assert words[words.index("--checkpoint") + 1] == "runs/busi/mse/seed_0/fold_{fold}/pretrain/export"
    assert {"labelled_groups=25", "max_steps=919"} <= set(words), "30 epochs of 490 images by 16"
    assert finetuned.command("busi", "classical", 0, options, 25)[-2:] == ["--labelled_groups", "25"]
    answers = {"mse": predicted(0, 1.0), "mse@25": predicted(1, 0.5), "classical@50": predicted(2, 1.0)}
    answers |= {"texture": predicted(3, 1.2), "texture@25": predicted(4, 1.0)}
    rows = {row: {"0": kept(finetuned, tmp_path / row, table)} for row, table in answers.items()}
    text = finetuned.tables({"busi": rows | {"classical": rows["mse"]}})
    curve, less = [table for table in text.split("\n\n") if "25 groups" in table]
    head, _, classical, mse, _ = (line.strip("| ").split(" | ") for line in curve.splitlines())
    assert head[1:] == ["25 groups", "50 groups", "all"]
    assert classical[1] == "" and classical[2].count(" to ") == 2
    figures = summarise(answers["mse@25"], ["malignant"])["figures"]
    value = figures["balanced_accuracy"]["pooled"]["value"]
    assert mse[1].startswith(f"{value:.3f} (") and f"{figures['binary_auroc']['pooled']['value']:.3f}" in mse[1]
    assert less.startswith("| BUSI: points above `mse`, balanced accuracy, AUROC | 25 groups | 50 groups | all |")
    row = less.splitlines()[-1].split(" | ")
    compared = compare(answers["texture@25"], answers["mse@25"], ["malignant"])["differences"]
    for name, cell in zip(("balanced_accuracy", "binary_auroc"), row[1].split(", "), strict=True):
        assert row[0] == "| `texture`" and float(cell.split()[0]) == pytest.approx(
            100 * compared[name]["value"], abs=0.11
        )
    assert row[2] == "", "of 50 groups there is no row `mse`"
    # Seeds that only the whole rows have are not in the curve.
    other = {name: {"1": kept(finetuned, tmp_path / f"{name}_1", predicted(5, 0.2))} for name in rows}
    two = {name: runs | ({} if "classical" in name else other[name]) for name, runs in rows.items()}
    classical = {"classical": rows["mse"]}
    text = finetuned.tables({"busi": rows | {name: two[name] for name in ("mse", "texture")} | classical})
    assert curve in text and "| `mse` | 2 |" in text
    capsys.readouterr()
    lacking = {"mse": two["mse"], "mse@25": two["mse@25"], "texture": two["texture"], "texture@25": rows["texture@25"]}
    text = finetuned.tables({"busi": lacking})
    assert "| `texture` |" not in next(table for table in text.split("\n\n") if "25 groups" in table)
    said = capsys.readouterr().err
    assert "BUSI, texture@25: is left out of the learning curve, which is of seed 0, 1\n" in said
    others_only = finetuned.tables({"busi": {"mse": other["mse"], "mse@25": rows["mse@25"]}})
    curve_alone = next(table for table in others_only.split("\n\n") if "25 groups" in table).splitlines()[-1]
    assert curve_alone.startswith("| `mse` | 0.") and curve_alone.endswith(") |  |"), (
        "of all labels there is another seed"
    )
    # `classical` has one for all, also as the baseline.
    two |= classical | {"classical@25": rows["classical@50"]}
    told = [finetuned.tables({"busi": two}, name) for name in ("mse", "classical")]
    curves = [next(table for table in text.split("\n\n") if "25 groups" in table) for text in told]
    assert curves[0] == curves[1] != curve
