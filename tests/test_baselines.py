"""What a network is held against: texture features without a network, other runs, and always the commonest class."""

import json
import math
import shutil
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from helpers import encode, grey, write
from skimage.feature import graycomatrix, graycoprops
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score, log_loss, roc_auc_score
from sklearn.preprocessing import StandardScaler
from test_cross_validate import pretended  # noqa: F401 - fixtures
from test_finetune import corpus, exported, few_resamples, finished, texture  # noqa: F401 - fixtures
from test_finetune import run as finetuned

import cross_validate
from commandline import UsageError
from images.arguments import PrepareArguments
from images.folds import few_groups
from images.splits import load_prepared
from judging import summary, tables
from prepare_corpus import prepare
from training import classical, cross_validation

FEATURES = 25
THREE = {"file_name": [f"{i}.png" for i in range(60)], "group": [f"{i}" for i in range(60)], "label": [0, 1, 2] * 20}


@pytest.fixture(scope="module")
def hard_corpus(tmp_path_factory) -> Path:
    """Two classes of 60 and 30 images that are not quite told apart by their texture."""
    root = tmp_path_factory.mktemp("hard")
    for index in range(90):
        label = int(index % 3 == 0)
        share = 0.3 + 0.03 * label + 0.1 * np.random.default_rng(index).random()
        grain = texture(index, 1) * share + texture(1000 + index, 0) * (0.9 - share)
        write(root / "raw" / ("fine", "coarse")[label] / f"{index:02d}.png", encode(grain.astype(np.uint8)))
    return prepare(
        PrepareArguments(data_dir=str(root / "raw"), output_dir=str(root / "data"), num_folds=3, keep_file_names=True)
    )


def validate(corpus: Path, output: Path, *options: str) -> Path:  # noqa: F811
    given = ["--corpus", str(corpus), "--output_dir", str(output), "--mode", "texture_features"]
    cross_validate.main([*given, *options])
    return output


@pytest.fixture(scope="module")
def classified(hard_corpus, tmp_path_factory) -> Path:
    return validate(hard_corpus, tmp_path_factory.mktemp("classical") / "out")


# ---------------------------------------------------------------------------------- texture features without a network


def test_features_are_those_of_scikit_image_for_the_image_and_every_tile():
    image = grey(41, 58)
    found = classical.features_of_image(torch.from_numpy(image / np.float32(255)))
    whole, tiles = found[: FEATURES * 3].reshape(FEATURES, 3), found[FEATURES * 3 :].reshape(FEATURES, 16, 3)
    names = list(classical.features_by_direction(torch.rand(8, 8), 4, [1]))
    levels = np.minimum(image / np.float32(255) * 32, 31).astype(np.uint8)
    angles = [0, math.pi / 4, math.pi / 2, 3 * math.pi / 4]
    for part, pixels in (
        (whole, levels),
        (tiles[:, 4 * 2 + 1], levels[20:30, 14:28]),
        (tiles[:, 15], levels[30:40, 42:56]),
    ):
        matrices = graycomatrix(pixels, [1, 2, 4], angles, levels=32, symmetric=True, normed=True)
        for name, other in (("contrast", "contrast"), ("energy", "ASM"), ("corr", "correlation")):
            assert part[names.index(name)] == pytest.approx(graycoprops(matrices, other).mean(axis=1), rel=1e-5), name
    with pytest.raises(ValueError, match="19 x 40 pixels are too few, 20 x 20 are needed"):
        classical.features_of_image(torch.rand(19, 40))


@pytest.mark.parametrize("weights", ["none", "balanced"])
def test_every_fold_is_a_logistic_regression_chosen_on_its_validation_part(hard_corpus, classified, tmp_path, weights):
    run = classified if weights == "none" else validate(hard_corpus, tmp_path, "--class_weights", weights)
    table, chosen = pd.read_parquet(run / "predictions.parquet"), []
    for fold in ("0", "1", "2"):
        parts, names = load_prepared(str(hard_corpus), None, fold)
        assert names == ["coarse", "fine"]
        x, y = {}, {}
        for part, images in parts.items():
            pixels = [
                np.asarray(row["image"], dtype=np.float32) / 255
                for row in images.cast_column("image", datasets.Image())
            ]
            x[part] = np.stack([classical.features_of_image(torch.from_numpy(image)) for image in pixels])
            y[part] = np.array(images["label"])
        scaler, tried = StandardScaler().fit(x["train"]), {}
        for strength in (1e-3, 1e-2, 1e-1, 1.0, 10.0):
            regression = LogisticRegression(
                C=strength, max_iter=5000, class_weight=None if weights == "none" else "balanced"
            )
            regression.fit(scaler.transform(x["train"]), y["train"])
            answers = [regression.predict_proba(scaler.transform(x[part]))[:, 1] for part in ("validation", "test")]
            figure = roc_auc_score(y["validation"], answers[0]), -log_loss(y["validation"], answers[0])
            tried[strength] = (figure, answers)
        best = max(tried, key=lambda strength: tried[strength][0])
        of_fold = table[table["fold"] == fold]
        assert of_fold["file_name"].tolist() == parts["test"]["file_name"]
        assert of_fold["probability_fine"].to_numpy() == pytest.approx(tried[best][1][1], abs=1e-6)
        folder = run / f"fold_{fold}" / "texture_features"
        results = json.loads((folder / "all_results.json").read_text())
        assert results["C"] == best and results["validation_auroc"] == pytest.approx(tried[best][0][0])
        assert results["test_auroc"] == pytest.approx(roc_auc_score(y["test"], tried[best][1][1]))
        validation = pd.read_parquet(folder / "validation_predictions.parquet")
        assert validation["probability_fine"].to_numpy() == pytest.approx(tried[best][1][0], abs=1e-6)
        chosen.append(best)
    assert len(set(chosen)) > 1


def labelled(groups: list[str], labels: list[int]) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"group": groups, "label": labels})


def test_few_groups_are_whole_in_proportion_and_among_more():
    # 60 groups of class 0, 25 of class 1 and 5 of class 2, of one to three images; one image of a group is of another.
    sizes = {f"p{index:02d}": 1 + index % 3 for index in range(90)}
    of_class = {name: 0 if index < 60 else 1 if index < 85 else 2 for index, name in enumerate(sizes)}
    rows = [(name, of_class[name]) for name, size in sizes.items() for _ in range(size)]
    rows[rows.index(("p02", 0))] = ("p02", 1)
    train, before = labelled(*map(list, zip(*rows, strict=True))), set()
    for count in (3, 9, 18, 45, 90):
        found = few_groups(train, count)
        names = found["group"][:]
        assert len(set(names)) == count and before <= set(names)
        assert all(names.count(name) == sizes[name] for name in set(names))
        counts = np.bincount([of_class[name] for name in set(names)], minlength=3)
        assert (abs(counts - np.array([60, 25, 5]) * count / 90) <= 1).all() and counts.min() > 0
        before = set(names)
    shuffled = labelled(*map(list, zip(*rows[::-1], strict=True)))
    assert set(few_groups(shuffled, 18)["group"]) == set(few_groups(train, 18)["group"])
    for count in (2, 91):
        with pytest.raises(UsageError, match=f"labelled_groups must be from 3, the classes, to 90, .* got {count}"):
            few_groups(train, count)


def test_few_labelled_groups_are_those_of_a_fine_tuning(corpus, exported, hard_corpus, classified, tmp_path):  # noqa: F811
    kinds = {"probe": "linear_probe", "neighbours": "knn"}
    runs = {
        name: finetuned(corpus, tmp_path / name, "--model_name_or_path", str(exported), mode=mode, labelled_groups="6")
        for name, mode in kinds.items()
    }
    settings = [yaml.safe_load((folder / "config.yaml").read_text()) for folder in runs.values()]
    train = few_groups(load_prepared(str(corpus), None, "0")[0]["train"], 6)
    assert [found["derived"]["num_train_images"] for found in settings] == [len(train)] * 2
    few = validate(hard_corpus, tmp_path / "few", "--folds", "0", "--labelled_groups", "6")
    answers = [
        pd.read_parquet(out / "fold_0" / "texture_features" / "predictions.parquet") for out in (classified, few)
    ]
    assert (answers[0]["probability_fine"] - answers[1]["probability_fine"]).abs().max() > 0.01
    with pytest.raises(SystemExit, match="labelled_groups must be from 2, the classes, to"):
        validate(corpus, tmp_path / "none", "--folds", "0", "--labelled_groups", "1")


def test_predictions_are_of_the_format_of_a_fine_tuning(corpus, finished, tmp_path):  # noqa: F811
    out = validate(corpus, tmp_path, "--folds", "0")
    for file in ("predictions.parquet", "validation_predictions.parquet"):
        ours = pd.read_parquet(out / "fold_0" / "texture_features" / file)
        theirs = pd.read_parquet(finished / file)
        assert ours.dtypes.to_dict() == theirs.dtypes.to_dict() and list(ours) == list(theirs)
        keys = ["fold", "file_name", "group", "label"]
        assert ours[keys].equals(theirs[keys])
    text = (out / "summary.md").read_text()
    assert text.startswith("# Cross-validation of data, texture features without a network\n")
    assert "| accuracy | 1.000 |" in text and (out / "curves.png").is_file()


def test_each_image_is_measured_once_and_a_finished_fold_is_left_alone(hard_corpus, classified, tmp_path, monkeypatch):
    measured = []

    def count(image):
        measured.append(image)
        return features(image)

    features = classical.features_of_image
    monkeypatch.setattr(classical, "features_of_image", count)
    monkeypatch.setattr(cross_validation.subprocess, "run", lambda *_, **__: pytest.fail("a network"))
    out = validate(hard_corpus, tmp_path / "out")
    assert len(measured) == 90
    files = sorted(out.glob("fold_*/*/*"))
    assert len(files) == 9
    (out / "fold_1" / "texture_features" / "all_results.json").unlink()
    before = {file: file.stat().st_mtime_ns for file in files if file.exists()}
    validate(hard_corpus, out)
    again = {file for file, time in before.items() if file.stat().st_mtime_ns != time}
    assert {file.parent.parent.name for file in again} == {"fold_1"} and len(measured) == 180
    validate(hard_corpus, out)
    assert len(measured) == 180
    assert (out / "summary.json").read_text() == (classified / "summary.json").read_text()


def test_folds_of_other_settings_are_not_mixed(hard_corpus, classified, tmp_path, pretended):  # noqa: F811
    shutil.copytree(classified, tmp_path / "out")
    with pytest.raises(SystemExit, match=r"with another class_weights \(none there, balanced here\): take"):
        validate(hard_corpus, tmp_path / "out", "--class_weights", "balanced")
    with pytest.raises(SystemExit, match=r"another positive_classes \(not given there, coarse here\): take"):
        validate(hard_corpus, tmp_path / "out", "--positive_classes", "coarse")
    with pytest.raises(
        SystemExit, match=r"run with another mode \(texture_features there, finetune here\): take another one"
    ):
        cross_validate.main(["--corpus", str(hard_corpus), "--output_dir", str(tmp_path / "out")])
    # a run of before there were modes goes on
    given = ["--corpus", str(hard_corpus), "--output_dir", str(tmp_path / "networks")]
    cross_validate.main([*given, "--folds", "0"])
    settings = yaml.safe_load((tmp_path / "networks" / "config.yaml").read_text())
    del settings["mode"], settings["class_weights"]
    (tmp_path / "networks" / "config.yaml").write_text(yaml.safe_dump(settings))
    cross_validate.main(given)
    assert len(pretended) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            "--pretrain_config=a --pretrain_options b=1 --checkpoint=c --finetune_config=d --finetune_options e=1 "
            "--jobs=2",
            "trains no network: leave out pretrain_config, pretrain_options, checkpoint, finetune_config, "
            "finetune_options, jobs$",
        ),
        ("--push_to_hub true --hub_model_id=a/b", "push_to_hub: there is no model to publish in mode texture_features"),
        ("--class_weights=some", "class_weights must be none or balanced, got 'some'"),
        ("--mode=finetune --class_weights=balanced", "give it as finetune_options: class_weights=balanced"),
        ("--mode=finetune --labelled_groups=9", "give it as finetune_options: labelled_groups=9"),
        ("--mode=knn", "mode must be one of finetune, texture_features, got 'knn'.*finetune_options: mode="),
    ],
)
def test_options_that_make_no_sense_are_one_error(options, message, tmp_path):
    with pytest.raises(SystemExit, match=message):
        validate(tmp_path, tmp_path / "out", *options.split())
    assert not (tmp_path / "out").exists()


# --------------------------------------------------------------------------------------------- the commonest class


def test_the_commonest_class_is_that_of_the_training_part(hard_corpus, tmp_path):
    stored = pd.read_parquet(next(hard_corpus.glob("data/*.parquet")), columns=["file_name", "label"])
    coarse, fine = (stored["file_name"][stored["label"] == label].tolist() for label in (0, 1))
    splits = json.loads((hard_corpus / "splits.json").read_text()) | {"num_folds": 2}
    # training: 12 and 8, then 6 and 14; test: 2 and 9, then 7 and 4
    splits["folds"] = [
        {
            "train": coarse[:12] + fine[:8],
            "validation": coarse[12:15] + fine[8:11],
            "test": coarse[15:17] + fine[11:20],
        },
        {
            "train": coarse[:6] + fine[:8] + fine[30:36],
            "validation": coarse[6:9] + fine[8:11],
            "test": coarse[17:24] + fine[20:24],
        },
    ]
    file = write(tmp_path / "splits.json", json.dumps(splits).encode())
    out = validate(hard_corpus, tmp_path / "out", "--splits_file", str(file))
    table = pd.read_parquet(out / "predictions.parquet")
    answers = table["fold"].map({"0": 0, "1": 1})
    found = json.loads((out / "summary.json").read_text())["always_commonest"]
    assert found["answers"] == {"0": "coarse", "1": "fine"}
    assert found["accuracy"] == accuracy_score(table["label"], answers) == pytest.approx((2 + 4) / 22)
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(table["label"], answers))
    text = (out / "summary.md").read_text()
    assert (
        "always answering the commonest class of the training part (coarse, fine) gives accuracy 0.273, balanced "
        "accuracy 0.265 and AUROC 0.5." in text
    )


# ----------------------------------------------------------------------------------------------- nothing learned


@pytest.fixture
def poor(hard_corpus, tmp_path, pretended, monkeypatch) -> Path:  # noqa: F811
    """A cross-validation that answers fine for all test images of fold 1, and for all validation images of fold 2."""
    monkeypatch.setattr("judging.summary.FEWEST", 5)  # its parts are small
    pretend = cross_validation.subprocess.run

    def answer(command, **given):
        done = pretend(command, **given)
        fold, out = command[command.index("--fold") + 1], Path(command[command.index("--output_dir") + 1])
        parts, names = load_prepared(str(hard_corpus), None, fold)
        for name, part, all_fine in (("", "test", fold == "1"), ("validation_", "validation", fold == "2")):
            random = np.random.default_rng(int(fold)).dirichlet([1, 1], len(parts[part]))
            answers = np.tile([0.4, 0.6], (len(parts[part]), 1)) if all_fine else random
            table = summary.predictions_table(answers, parts[part], names, fold)
            table.to_parquet(out / f"{name}predictions.parquet")
        return done

    monkeypatch.setattr(cross_validation.subprocess, "run", answer)
    cross_validate.main(["--corpus", str(hard_corpus), "--output_dir", str(tmp_path / "poor")])
    return tmp_path / "poor"


def test_a_run_that_has_learned_nothing_says_so_first_and_what_may_help(poor, hard_corpus, capsys, caplog):
    capsys.readouterr()
    cross_validate.main(["--corpus", str(hard_corpus), "--output_dir", str(poor)])  # all folds are finished
    text = (poor / "summary.md").read_text()
    first, _, second, _, third, _, advice = text.splitlines()[:7]
    assert first == "# Cross-validation of data: nothing learned in folds 1, 2"
    assert second == "**Fold 1 answers fine for every test image**: it has learned nothing."
    assert third == "**Fold 2 answers fine for every validation image**: it has learned nothing."
    for name in ("base_learning_rate", "num_train_epochs", "class_weights` balanced"):
        assert name in advice
    assert capsys.readouterr().out.startswith(f"{first}\n")
    assert "fold 2 answers fine for every validation image: it has learned nothing" in caplog.messages


def test_of_few_images_with_one_answer_nothing_is_said_but_their_intervals(few_resamples):  # noqa: F811
    for count, said in ((19, {}), (20, {"0": "a"})):
        table = pd.DataFrame({"fold": "0", "group": map(str, range(count)), "label": np.arange(count) % 2})
        table = table.assign(file_name=table["group"], prediction=0, probability_a=0.6, probability_b=0.4)
        assert summary.collapsed_folds(table) == said
        assert ("nothing learned" in tables.summary_markdown(summary.summarise(table), "T").splitlines()[0]) == bool(
            said
        )


def test_what_is_shown_to_be_above_the_commonest_class_is_said(few_resamples):  # noqa: F811
    """Eight images of the rare class are found, and eight others taken for it: better in the mean over the classes."""
    label = np.array([0] * 40 + [1] * 160)
    answers = np.ones(200, dtype=int)
    answers[[*range(0, 40, 5), *range(50, 130, 10)]] = 0
    table = pd.DataFrame({"fold": "0", "group": map(str, range(200)), "label": label, "prediction": answers})
    table = table.assign(file_name=table["group"], probability_a=1.0 - answers, probability_b=answers.astype(float))
    text = tables.summary_markdown(summary.summarise(table, commonest={"0": 1}))
    assert "gives accuracy 0.800, balanced accuracy 0.500 and AUROC 0.5. Above that by their whole interval: " in text
    assert "interval: balanced_accuracy, auroc; not shown to be above it: accuracy." in text


def test_a_comparison_repeats_who_has_learned_nothing(poor, classified, tmp_path, capsys):
    capsys.readouterr()
    cross_validate.main(["compare", str(poor), str(classified), "--output_dir", str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert said.splitlines()[0] == f"# {poor} against {classified} ({poor}: nothing learned in folds 1, 2)"
    assert f"**{poor}: fold 2 answers fine for every validation image**" in said and "class_weights" in said
    shutil.copytree(classified, tmp_path / "copy")
    cross_validate.main(["compare", str(tmp_path / "copy"), str(classified), "--output_dir", str(tmp_path / "out")])
    assert "nothing" not in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------ several runs


@pytest.fixture(scope="module")
def runs(hard_corpus, classified, tmp_path_factory) -> list[str]:
    """Three runs on the same images."""
    folder = tmp_path_factory.mktemp("runs")
    shutil.copytree(classified, folder / "plain")
    validate(hard_corpus, folder / "balanced", "--class_weights", "balanced")
    table = pd.read_parquet(classified / "predictions.parquet").sample(frac=1, random_state=0)  # in another order
    chance = np.random.default_rng(0).dirichlet([1, 1], len(table))
    table = table.assign(prediction=chance.argmax(1), probability_coarse=chance[:, 0], probability_fine=chance[:, 1])
    (folder / "chance").mkdir()
    table.to_parquet(folder / "chance" / "predictions.parquet")
    return [str(folder / name) for name in ("plain", "balanced", "chance")]


def compared(runs: list[str], output: Path, *options: str) -> tuple[dict, str]:
    cross_validate.main(["compare", *runs, "--output_dir", str(output), *options])
    return json.loads((output / "comparison.json").read_text()), (output / "comparison.md").read_text()


def test_two_runs_are_compared_as_before(runs, tmp_path):
    found, text = compared(runs[:2], tmp_path)
    tables_of = [pd.read_parquet(Path(run) / "predictions.parquet") for run in runs[:2]]
    before = summary.compare(*tables_of)  # the first minus the second
    assert {name: found[name] for name in before} == before
    assert found["baseline"] == runs[1] and list(found["against_baseline"]) == runs[:1]
    assert tables.comparison_markdown(before, tuple(runs[:2])) in text
    first, second = (roc_auc_score_of_folds(table) for table in tables_of)
    assert before["differences"]["auroc"]["value"] == pytest.approx(first - second) and first != second


def roc_auc_score_of_folds(table: pd.DataFrame) -> float:
    return np.mean([roc_auc_score(part["label"], part["probability_fine"]) for _, part in table.groupby("fold")])


def test_three_runs_are_each_compared_with_the_baseline(runs, tmp_path):
    found, text = compared(runs, tmp_path / "last")
    assert found["baseline"] == runs[2] and "differences" not in found
    other, _ = compared(runs, tmp_path / "chosen", "--baseline", runs[1] + "/")
    assert other["baseline"] == runs[1] and list(other["against_baseline"]) == [runs[0], runs[2]]
    for several, baseline in ((found, runs[2]), (other, runs[1])):
        for run, pair in several["against_baseline"].items():
            alone, _ = compared([run, baseline], tmp_path / "pair")
            assert pair == {name: alone[name] for name in pair} and {"differences", "delong", "mcnemar"} <= set(pair)
    # Each run has the figures and intervals of its own summary.
    own = json.loads((Path(runs[1]) / "summary.json").read_text())
    figures = found["runs"][runs[1]]["figures"]
    assert figures == {name: figure["pooled"] for name, figure in own["figures"].items()}
    assert found["main_figures"] == ["accuracy", "balanced_accuracy", "sensitivity", "specificity", "auroc", "f1"]
    accuracy = figures["accuracy"]
    shown = f"{accuracy['value']:.3f} ({accuracy['low']:.3f} to {accuracy['high']:.3f})"
    lines = [line for line in text.splitlines() if line.startswith(f"| {runs[1]} |")]
    assert lines[0].split(" | ")[1] == shown and len(lines) == 2
    difference = found["against_baseline"][runs[1]]["differences"]["accuracy"]
    assert lines[1].split(" | ")[1].startswith(f"{difference['value']:+.3f} ({difference['low']:+.3f} to ")
    assert f"| {runs[2]} (baseline) |" in text and "| always the commonest class |" not in text
    assert (
        "| always the commonest class | 0.667 | 0.500 |  |  | 0.500 |  |"
        in (tmp_path / "chosen" / "comparison.md").read_text()
    )
    for run in runs[:2]:
        assert f"## {run} against {runs[2]}\n" in text
    assert "No patients are known" in text


def test_patients_are_known_where_a_group_is_one():
    table = pd.DataFrame(THREE).assign(fold="0", prediction=0, probability_a=0.5, probability_b=0.3, probability_c=0.2)
    said = {}
    for groups in ([f"content-{i}" for i in range(60)], ["SMITH", *(f"content-{i}" for i in range(59))]):
        found = summary.summarise(table.assign(group=groups))
        said[found["patients_known"]] = "No patients are known" in tables.summary_markdown(found)
    assert said == {False: True, True: False}


def test_collapsed_classes_are_those_of_the_runs_that_have_any(runs, hard_corpus, tmp_path):
    for name in "ab":
        shutil.copytree(runs[0], tmp_path / name)
        settings = yaml.safe_load((tmp_path / name / "config.yaml").read_text())
        settings["positive_classes"] = {"a": ["coarse"], "b": ["fine"]}[name]
        (tmp_path / name / "config.yaml").write_text(yaml.safe_dump(settings))
    found, _ = compared([str(tmp_path / "a"), *runs[1:]], tmp_path)
    assert found["positive_classes"] == ["coarse"]
    with pytest.raises(SystemExit, match=r"\['coarse'\] and \['fine'\]: give positive_classes"):
        compared([str(tmp_path / "a"), runs[1], str(tmp_path / "b")], tmp_path)


def test_a_run_of_other_images_is_named_with_the_first_of_them(runs, tmp_path):
    table = pd.read_parquet(Path(runs[0]) / "predictions.parquet")
    table.loc[[3, 7], "file_name"] = ["a/else.png", "b/else.png"]
    (tmp_path / "other").mkdir()
    table.to_parquet(tmp_path / "other" / "predictions.parquet")
    with pytest.raises(
        SystemExit, match=f"{tmp_path}/other against {runs[2]}: the runs are not .*: a/else.png, b/else"
    ):
        compared([runs[0], str(tmp_path / "other"), runs[2]], tmp_path / "out")
    with pytest.raises(SystemExit, match="baseline must be one of .*, got 'nowhere'"):
        compared(runs, tmp_path / "out", "--baseline", "nowhere")
    with pytest.raises(SystemExit, match="a run twice"):
        compared([runs[0], runs[1], runs[0] + "/"], tmp_path / "out")
    with pytest.raises(SystemExit, match="compare needs two folders or more"):
        compared(runs[:1], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_roc_curves_of_all_runs_are_in_one_picture(runs, tmp_path, monkeypatch):
    drawn, save = [], summary.Figure.savefig
    monkeypatch.setattr(
        summary.Figure, "savefig", lambda figure, *a, **k: (drawn.append(figure), save(figure, *a, **k))
    )
    compared(runs, tmp_path)
    assert (tmp_path / "comparison.png").stat().st_size > 0
    (axis,) = drawn[0].axes
    areas = [roc_auc_score_of_folds(pd.read_parquet(Path(run) / "predictions.parquet")) for run in runs]
    labels = [text.get_text() for text in axis.get_legend().get_texts()]
    assert labels == [f"{run}: area {area:.3f}" for run, area in zip(runs, areas, strict=True)]
    strong = [line for line in axis.get_lines() if line.get_label() in labels]
    assert len(axis.get_lines()) == 3 * (3 + 1) + 1
    for line, area in zip(strong, areas, strict=True):
        x, y = line.get_xydata().T
        assert np.trapezoid(y, x) == pytest.approx(area, abs=0.005)
    three = summary.predictions_table(np.random.default_rng(0).dirichlet([1] * 3, 60), THREE, ["a", "b", "c"], "0")
    summary.draw_comparison({"x": three, "y": three}, tmp_path / "three.png")
    assert [axis.get_title() for axis in drawn[1].axes] == ["ROC, a", "ROC, b", "ROC, c"]
