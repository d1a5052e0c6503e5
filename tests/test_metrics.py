"""The metric module against scikit-learn; statistics and summaries against independent calculations."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import evaluate
import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
    recall_score,
    roc_auc_score,
)

from judging import summary
from judging.statistics import bootstrap, delong_test, mcnemar_test
from judging.summary import compare, draw_curves, summarise
from judging.tables import comparison_markdown, summary_markdown

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
METRIC = RECIPES / "metrics" / "medical_classification"


@pytest.fixture(scope="module")
def metric():
    return evaluate.load(str(METRIC))


@pytest.fixture
def answers():
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 200)
    probabilities = random.dirichlet([1, 1, 1], 200) + 0.5 * np.eye(3)[labels]
    return probabilities / probabilities.sum(axis=1, keepdims=True), labels


def test_figures_equal_scikit_learn(metric, answers):
    probabilities, labels = answers
    names = ["normal", "benign", "malignant"]
    found = metric.compute(predictions=probabilities, references=labels, positive=[2], class_names=names)
    answer = probabilities.argmax(1)
    expected = {
        "accuracy": accuracy_score(labels, answer),
        "balanced_accuracy": balanced_accuracy_score(labels, answer),
        "macro_sensitivity": recall_score(labels, answer, average="macro"),
        "macro_specificity": np.mean([recall_score(labels != k, answer != k) for k in range(3)]),
        "macro_f1": f1_score(labels, answer, average="macro"),
        "macro_auroc": roc_auc_score(labels, probabilities, multi_class="ovr", average="macro"),
        "sensitivity_benign": recall_score(labels == 1, answer == 1),
        "specificity_benign": recall_score(labels != 1, answer != 1),
        "auroc_malignant": roc_auc_score(labels == 2, probabilities[:, 2]),
        "binary_auroc": roc_auc_score(labels == 2, probabilities[:, 2]),
        "binary_accuracy": accuracy_score(labels == 2, probabilities[:, 2] >= 0.5),
        "binary_sensitivity": recall_score(labels == 2, probabilities[:, 2] >= 0.5),
        "binary_specificity": recall_score(labels != 2, probabilities[:, 2] < 0.5),
        "binary_f1": f1_score(labels == 2, probabilities[:, 2] >= 0.5),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    assert found["confusion_matrix"] == confusion_matrix(labels, answer).tolist()
    assert not {"sensitivity", "specificity", "auroc", "f1"} & set(found)  # a mean goes by no name of one class


def test_an_absent_class_is_nan_and_not_counted(metric, answers):
    probabilities, labels = answers
    kept = labels != 2
    found = metric.compute(predictions=probabilities[kept], references=labels[kept])
    assert np.isnan(found["auroc_2"]) and np.isnan(found["sensitivity_2"])
    assert found["macro_sensitivity"] == pytest.approx((found["sensitivity_0"] + found["sensitivity_1"]) / 2)
    assert found["macro_auroc"] == pytest.approx((found["auroc_0"] + found["auroc_1"]) / 2)


@pytest.mark.parametrize(("positive", "index"), [(None, 1), ([1], 1), ([0], 0)])
def test_of_two_classes_the_figures_are_those_of_the_positive_one(metric, positive, index):
    # 16 of the first class, all found; 64 of the second, 30 found.
    labels = np.repeat([0, 1], [16, 64])
    score = np.concatenate([np.linspace(0.05, 0.45, 16), np.linspace(0.1, 0.4, 34), np.linspace(0.6, 0.9, 30)])
    probabilities = np.stack([1 - score, score], axis=1)
    found = metric.compute(predictions=probabilities, references=labels, positive=positive, class_names=["no", "yes"])
    hit = {0: 1.0, 1: 30 / 64}
    expected = {
        "accuracy": 46 / 80,
        "balanced_accuracy": (1 + 30 / 64) / 2,
        "sensitivity": hit[index],
        "specificity": hit[1 - index],
        "auroc": roc_auc_score(labels, score),
        "f1": f1_score(labels, score > 0.5, pos_label=index),
        "sensitivity_yes": 30 / 64,
        "specificity_yes": 1.0,
        "sensitivity_no": 1.0,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    assert not [name for name in found if name.startswith("macro_")]
    assert any(name.startswith("binary_") for name in found) == (positive is not None)


def test_an_auroc_of_folds_compares_images_within_a_fold_only(metric):
    labels = np.array([0, 0, 1, 1, 0, 0, 1, 1])
    score = np.array([0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8, 0.9])
    given = {"predictions": np.stack([1 - score, score], axis=1), "references": labels}
    assert metric.compute(**given)["auroc"] == 0.75
    apart = metric.compute(**given, folds=list("aaaabbbb"))
    assert (apart["auroc"], apart["auroc_0"], apart["auroc_1"]) == (1, 1, 1)
    assert apart["sensitivity"] == 0.5  # answers have one scale
    # A fold without images of one side does not count.
    assert metric.compute(**given, folds=list("aabbcccc"))["auroc"] == 1
    assert np.isnan(metric.compute(**given, folds=list("aabbccdd"))["auroc"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"predictions": [[0.5, 0.2]] * 2}, "summing to 1"),
        ({"positive": [0, 1]}, "some, not all"),
        ({"references": [0, 2]}, "0 to 1"),
        ({"folds": ["a"]}, "the fold of each of the 2 images, got 1"),
    ],
)
def test_what_is_not_allowed(metric, options, message):
    given = {"predictions": [[0.5, 0.5], [0.1, 0.9]], "references": [0, 1]} | options
    with pytest.raises(ValueError, match=message):
        metric.compute(**given)


def test_it_loads_offline_from_its_folder_alone(tmp_path):
    folder = shutil.copytree(METRIC, tmp_path / METRIC.name)
    code = (
        f"import evaluate; m = evaluate.load({str(folder)!r}); "
        "print(m.compute(predictions=[[.9, .1], [.2, .8]], references=[0, 1])['accuracy']); print(m.inputs_description)"
    )
    offline = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    offline |= {"HF_HUB_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=offline, cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    accuracy, _, description = done.stdout.partition("\n")
    assert accuracy == "1.0", done.stderr
    assert "folds: `(n,)`" in description


@pytest.mark.slow
def test_figures_need_no_evaluate():
    code = "import sys, judging.summary, training.finetuning; print('evaluate' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (RECIPES.parent, RECIPES)))}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "False", done.stderr


def brute_force_delong(scores: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AUROCs and their covariance from all pairs, as the paper defines them. `scores`: (2, n)."""
    wins = [
        (s[truth][:, None] > s[~truth][None]) + 0.5 * (s[truth][:, None] == s[~truth][None]) for s in scores
    ]  # (m, n) each
    v10, v01 = np.array([w.mean(1) for w in wins]), np.array([w.mean(0) for w in wins])
    s10, s01 = np.cov(v10), np.cov(v01)
    return np.array([w.mean() for w in wins]), s10 / truth.sum() + s01 / (~truth).sum()


def test_delong_equals_all_pairs():
    random = np.random.default_rng(1)
    truth = random.random(60) < 0.4
    scores = np.round(random.random((2, 60)) + 0.4 * truth, 1)  # with ties
    aurocs, covariance = brute_force_delong(scores, truth)
    found = delong_test(*scores, truth)
    error = np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    assert (found["auroc_a"], found["auroc_b"]) == pytest.approx(aurocs)
    assert found["auroc_a"] == pytest.approx(roc_auc_score(truth, scores[0]))
    assert found["p_value"] == pytest.approx(2 * norm.sf(abs(aurocs[0] - aurocs[1]) / error))
    assert found["high"] - found["low"] == pytest.approx(2 * 1.959964 * error, rel=1e-6)


def test_delong_of_equal_scores_and_of_one_class():
    truth = np.arange(10) < 5
    assert delong_test(truth * 1.0, truth * 1.0, truth)["p_value"] == 1
    with pytest.raises(ValueError, match="positive and negative"):
        delong_test(np.ones(3), np.ones(3), np.ones(3))


def test_mcnemar_worked_by_hand():
    # 9 that only a got right, 1 only b: 2 * (C(10, 0) + C(10, 1)) / 2 ** 10
    a = np.array([True] * 9 + [False] + [True] * 5)
    b = np.array([False] * 9 + [True] + [True] * 5)
    assert mcnemar_test(a, b) == {"only_a": 9, "only_b": 1, "p_value": pytest.approx(22 / 1024)}


def test_bootstrap_draws_whole_groups():
    random = np.random.default_rng(0)
    values = random.normal(0.3, 1, 400)
    alone = bootstrap(lambda at: {"mean": values[at].mean()}, [str(i) for i in range(400)])["mean"]
    error = values.std() / 20
    assert alone["high"] - alone["low"] == pytest.approx(2 * 1.96 * error, rel=0.12)
    # each value four times in one group: as uncertain as 100 values, not as 400
    copied = np.repeat(values[:100], 4)
    grouped = bootstrap(lambda at: {"mean": copied[at].mean()}, [str(i // 4) for i in range(400)])["mean"]
    assert grouped["high"] - grouped["low"] == pytest.approx(2 * 1.96 * values[:100].std() / 10, rel=0.12)
    assert bootstrap(lambda at: {"x": np.nan}, ["a", "b"])["x"]["undefined"] == 1


def test_delong_on_the_example_of_its_authors():
    # DeLong, DeLong and Clarke-Pearson 1988, as in SAS/STAT's LOGISTIC, "Comparing Receiver Operating Characteristic
    # Curves": albumin, total protein, K-G score (which falls), and 1 for patients who did well after the operation.
    data = """
   3.0 5.8 10 0  3.2 6.3  5 1  3.9 6.8  3 1  2.8 4.8  6 0  3.2 5.8  3 1  0.9 4.0  5 0  2.5 5.7  8 0  1.6 5.6  5 1
   3.8 5.7  5 1  3.7 6.7  6 1  3.2 5.4  4 1  3.8 6.6  6 1  4.1 6.6  5 1  3.6 5.7  5 1  4.3 7.0  4 1  3.6 6.7  4 0
   2.3 4.4  6 1  4.2 7.6  4 0  4.0 6.6  6 0  3.5 5.8  6 1  3.8 6.8  7 1  3.0 4.7  8 0  4.5 7.4  5 1  3.7 7.4  5 1
   3.1 6.6  6 1  4.1 8.2  6 1  4.3 7.0  5 1  4.3 6.5  4 1  3.2 5.1  5 1  2.6 4.7  6 1  3.3 6.8  6 0  1.7 4.0  7 0
   3.7 6.1  5 1  3.3 6.3  7 1  4.2 7.7  6 1  3.5 6.2  5 1  2.9 5.7  9 0  2.1 4.8  7 1  2.8 6.2  8 0  4.0 7.0  7 1
   3.3 5.7  6 1  3.7 6.9  5 1  3.6 6.6  5 1
    """
    albumin, protein, score, truth = np.array(data.split(), dtype=float).reshape(-1, 4).T
    first = delong_test(albumin, -score, truth == 1)
    second = delong_test(protein, -score, truth == 1)
    expected = {"auroc_a": 0.7366, "auroc_b": 0.7258, "difference": 0.0108, "low": -0.1761, "high": 0.1976}
    assert {name: round(first[name], 4) for name in expected} == expected
    assert round(first["p_value"], 4) == 0.9102
    expected = {"auroc_a": 0.6478, "difference": -0.0780, "low": -0.2830, "high": 0.1271, "p_value": 0.4561}
    assert {name: round(second[name], 4) for name in expected} == expected


def test_delong_over_folds_is_the_mean_of_what_the_folds_say():
    random = np.random.default_rng(2)
    truth = random.random(90) < 0.4
    folds = np.repeat(["a", "b", "c"], [20, 30, 40])
    scores = np.round(random.random((2, 90)) + np.array([[0.5], [0.2]]) * truth, 2)
    each = [brute_force_delong(scores[:, folds == fold], truth[folds == fold]) for fold in "abc"]
    aurocs = np.mean([auroc for auroc, _ in each], axis=0)
    error = np.sqrt(sum(v[0, 0] + v[1, 1] - 2 * v[0, 1] for _, v in each)) / 3
    found = delong_test(*scores, truth, folds)
    assert (found["auroc_a"], found["auroc_b"]) == pytest.approx(aurocs)
    assert found["high"] - found["low"] == pytest.approx(2 * 1.959964 * error, rel=1e-6)
    assert found["p_value"] == pytest.approx(2 * norm.sf(abs(aurocs[0] - aurocs[1]) / error))
    # Each model has a scale of its own.
    moved = scores + np.array([[0, 10, 20], [30, 7, 0]])[:, np.searchsorted(["a", "b", "c"], folds)]
    assert delong_test(*moved, truth, folds) == pytest.approx(found)
    with pytest.raises(ValueError, match=r"at least two positive and negative images each, got 1 and 29 in fold b"):
        delong_test(*scores, np.where(folds == "b", np.arange(90) == 25, truth), folds)


def drawn_by(groups, strata=None, **options) -> tuple[np.ndarray, dict]:
    """How often each draw took each position `(draws, n)`, and the intervals of the mean position."""
    counts = []

    def figures(at: np.ndarray) -> dict[str, float]:
        counts.append(np.bincount(at, minlength=len(groups)))
        return {"mean": at.mean()}

    found = bootstrap(figures, groups, strata=strata, **options)
    return np.array(counts[:-1]), found["mean"]


def test_bootstrap_draws_every_group_as_often_and_whole():
    groups = np.array(list("abcdefgh"))[[7, 0, 1, 1, 2, 3, 4, 5, 6, 7, 7]]  # of other sizes, not in their order
    counts, found = drawn_by(groups, num_resamples=2000)
    assert found["value"] == 5  # of all images, not of a draw
    for group in set(groups):
        members = counts[:, groups == group]
        assert (members == members[:, :1]).all()  # with all its images or not at all
        assert members[:, 0].mean() == pytest.approx(1, abs=0.1) and members[:, 0].max() > 2
    assert (np.stack([counts[:, groups == g][:, 0] for g in "abcdefgh"]).sum(axis=0) == 8).all()
    again, other = drawn_by(groups, num_resamples=2000)[0], drawn_by(groups, num_resamples=2000, seed=1)[0]
    assert (again == counts).all() and (other != counts).any()


def test_bootstrap_keeps_the_number_of_groups_of_every_fold():
    groups, folds = np.array(list("aabcddefgh")), np.repeat(["0", "1", "2"], [4, 3, 3])
    counts, _ = drawn_by(groups, folds, num_resamples=50)
    of_group = np.stack([counts[:, groups == g][:, 0] for g in "abcdefgh"], axis=1)
    for fold, at in (("0", slice(0, 3)), ("1", slice(3, 5)), ("2", slice(5, 8))):
        assert (of_group[:, at].sum(axis=1) == at.stop - at.start).all(), fold
    assert len(np.unique(of_group, axis=0)) > 20


def test_an_interval_of_several_trainings_holds_their_luck_and_that_of_the_images():
    groups, trainings = np.tile(np.arange(10), 3), np.repeat(["a", "b", "c"], 10)
    of_training, of_group = np.repeat([0.0, 3.0, 6.0], 10), np.random.default_rng(0).normal(size=10)

    def interval(values: np.ndarray, **options) -> dict[str, float]:
        found = bootstrap(lambda at: {"mean": values[at].mean()}, groups[: len(values)], **options)["mean"]
        return {key: found[key] for key in ("value", "low", "high")}

    # Two of three, so that the variance is that of the mean of three: the same outer one twice in 1 of 9 draws each.
    found = interval(of_training, trainings=trainings, num_resamples=2000)
    assert (found["value"], found["low"], found["high"]) == (3, 0, 6)
    draws = bootstrap(lambda at: {"x": of_training[at].mean()}, groups, trainings=trainings)["x"]["draws"]
    assert draws.std() == pytest.approx(np.std([0, 3, 6], ddof=1) / np.sqrt(3), rel=0.1)
    # In every stratum the trainings are drawn anew: of two folds, one from each in half of the draws.
    folds, two = groups[:20] // 5, (groups[:20], trainings[:20])
    draws = bootstrap(lambda at: {"x": of_training[at].mean()}, two[0], strata=folds, trainings=two[1])["x"]["draws"]
    assert [np.mean(draws == value) for value in (0, 1.5, 3)] == pytest.approx([0.25, 0.5, 0.25], abs=0.06)
    # Three trainings that answer alike are judged on the same groups in every draw, so they are as good as one.
    alike, one = interval(np.tile(of_group, 3), trainings=trainings), interval(of_group)
    assert alike == pytest.approx(one) and one["low"] < -0.2 < 0.2 < one["high"]


def test_the_interval_holds_95_percent_and_p_is_two_sided():
    random = np.random.default_rng(3)
    values = random.normal(0, 1, 300)
    values += 2.0 / np.sqrt(300) * values.std() - values.mean()  # two standard errors from 0
    found = bootstrap(lambda at: {"mean": values[at].mean()}, [str(i) for i in range(300)], num_resamples=4000)["mean"]
    error = values.std() / np.sqrt(300)
    assert (found["low"], found["high"]) == pytest.approx((0.04 * error, 3.96 * error), abs=0.12 * error)
    assert found["p_value"] == pytest.approx(2 * norm.sf(2), rel=0.2)
    below = bootstrap(lambda at: {"mean": -values[at].mean()}, [str(i) for i in range(300)], num_resamples=4000)["mean"]
    assert below["p_value"] == pytest.approx(2 * norm.sf(2), rel=0.2)


def test_draws_that_leave_a_figure_undefined_are_counted_and_left_out():
    def second(at: np.ndarray) -> dict[str, float]:
        return {"x": 1.0 if (at == 1).any() else np.nan}

    found = bootstrap(second, ["a", "b"], num_resamples=400)["x"]
    assert (found["value"], found["low"], found["high"]) == (1, 1, 1)
    assert found["undefined"] == pytest.approx(0.25, abs=0.07)


# ---------------------------------------------------------------------------------------------- summaries of folds


def answers_of(scores: np.ndarray, labels: np.ndarray, folds: np.ndarray, names=("healthy", "ill")) -> pd.DataFrame:
    """A table of predictions; `scores`: `(n,)` of the second class, or `(n, classes)`."""
    scores = np.stack([1 - scores, scores], axis=1) if scores.ndim == 1 else scores
    table = pd.DataFrame({"fold": folds, "file_name": [f"{i:04d}.png" for i in range(len(labels))]})
    table["group"], table["label"], table["prediction"] = table["file_name"], labels, scores.argmax(axis=1)
    return table.assign(**{f"probability_{name}": scores[:, i] for i, name in enumerate(names)})


@pytest.fixture
def quick(monkeypatch):
    """Few draws, for tests that look at values."""
    monkeypatch.setattr("judging.summary.bootstrap", lambda *a, **k: bootstrap(*a, **k, num_resamples=40))


def two_perfect_folds() -> pd.DataFrame:
    """Each fold tells its images apart, on scales that do not overlap: 0.75 if they are mixed."""
    scores = np.concatenate([np.linspace(0.1, 0.2, 10), np.linspace(0.7, 0.8, 10)])
    scores += np.where(np.arange(20) % 10 >= 5, 0.1, 0)
    return answers_of(scores, np.tile(np.repeat([0, 1], 5), 2), np.repeat(["0", "1"], 10))


def test_two_folds_that_tell_all_images_apart_have_an_auroc_of_1(quick):
    table = two_perfect_folds()
    assert roc_auc_score(table["label"], table["probability_ill"]) == 0.75
    summary = summarise(table)
    for name in ("auroc", "auroc_ill", "auroc_healthy"):
        assert summary["figures"][name]["mean"] == 1
        pooled = summary["figures"][name]["pooled"]
        assert [pooled[key] for key in ("value", "low", "high")] == [1, 1, 1]
    assert summary["figures"]["sensitivity"]["pooled"]["value"] == 0.5
    text = summary_markdown(summary)
    assert "| auroc | 1.000 | 0.000 | 1.000 | 1.000 to 1.000 |" in text and "no common scale" in text
    alone = summary_markdown(summarise(table[table["fold"] == table["fold"].iloc[0]]))
    assert "| auroc | 1.000 | 1.000 to 1.000 |" in alone and "deviation" not in alone and "All folds" not in alone


def test_a_draw_without_the_auroc_of_a_fold_is_left_out(quick):
    # One positive in each of five folds, the last of four images; the first fold is all wrong.
    labels = np.tile([0, 0, 0, 1], 5)
    scores = np.where(labels == 1, 0.9, 0.1)
    scores[:4] = 1 - scores[:4]
    summary = summarise(answers_of(scores, labels, np.repeat(list("01234"), 4)))
    found = summary["figures"]["auroc"]["pooled"]
    assert found["value"] == pytest.approx(0.8)
    # Every draw that counts has the five values of the five folds.
    assert found["low"] == found["high"] == pytest.approx(0.8)
    # A fold keeps its positive with probability 1 - (3/4)^4, and loses its negatives with (1/4)^4.
    defined = (1 - 0.75**4 - 0.25**4) ** 5
    assert found["undefined"] == pytest.approx(1 - defined, abs=0.15)
    assert f"up to {found['undefined']:.0%} of them" in summary_markdown(summary)


def test_a_summary_counts_answers_together_and_takes_the_mean_of_aurocs(quick):
    random = np.random.default_rng(5)
    folds = np.repeat(["0", "1", "2"], [30, 60, 90])
    labels = random.integers(0, 3, 180)
    scores = random.dirichlet([1] * 3, 180) + 0.3 * np.eye(3)[labels]
    table = answers_of(scores / scores.sum(axis=1, keepdims=True), labels, folds, names=("a", "b", "c"))
    summary = summarise(table, ["b", "c"])
    figures = summary["figures"]
    answer = table["prediction"]
    of_folds = [
        np.mean([roc_auc_score(part["label"] == k, part[f"probability_{'abc'[k]}"]) for k in range(3)])
        for _, part in table.groupby("fold")
    ]
    assert list(figures["macro_auroc"]["folds"].values()) == pytest.approx(of_folds)
    assert figures["macro_auroc"]["mean"] == pytest.approx(np.mean(of_folds))
    assert figures["macro_auroc"]["pooled"]["value"] == pytest.approx(np.mean(of_folds))
    assert figures["macro_auroc"]["std"] == pytest.approx(np.std(of_folds, ddof=1))
    assert figures["accuracy"]["pooled"]["value"] == accuracy_score(labels, answer) != figures["accuracy"]["mean"]
    assert figures["macro_f1"]["pooled"]["value"] == pytest.approx(f1_score(labels, answer, average="macro"))
    binary = table["probability_b"] + table["probability_c"]
    means = [roc_auc_score(labels[folds == fold] > 0, binary[folds == fold]) for fold in "012"]
    assert figures["binary_auroc"]["pooled"]["value"] == pytest.approx(np.mean(means))
    assert summary["positive_class"] is None
    text = summary_markdown(summary)
    assert "under `macro_` are means over the classes" in text and "`binary_` are of b + c against the rest" in text
    assert "| sensitivity |" not in text


@pytest.mark.parametrize(
    ("positive", "stated"),
    [
        (None, "positive class, ill (the second of the two; `positive_classes`"),
        (["healthy"], "positive class, healthy."),
    ],
)
def test_a_summary_of_two_classes_says_which_is_the_positive_one(quick, positive, stated):
    table = two_perfect_folds()
    table.loc[table["fold"] == "1", "prediction"] = 1
    summary = summarise(table, positive)
    assert summary["positive_class"] == (positive or ["ill"])[0] and stated in summary_markdown(summary)
    of_class = {name: summary["figures"][f"{name}_{summary['positive_class']}"]["pooled"] for name in ("f1", "auroc")}
    assert {name: summary["figures"][name]["pooled"] for name in of_class} == of_class
    del summary["positive_class"]  # as an earlier version wrote it
    with pytest.raises(ValueError, match="summary.json is of an earlier version"):
        summary_markdown(summary)


def test_runs_are_compared_fold_by_fold(quick):
    random = np.random.default_rng(6)
    folds, labels = np.repeat(["0", "1"], [30, 60]), np.tile([0, 0, 1], 30)
    scores = 0.3 + 0.15 * random.random((2, 90)) + np.array([[0.06], [0.02]]) * labels
    first, second = (answers_of(values, labels, folds) for values in scores)
    found = compare(first, second)
    of_folds = [
        roc_auc_score(labels[folds == fold], scores[0][folds == fold])
        - roc_auc_score(labels[folds == fold], scores[1][folds == fold])
        for fold in "01"
    ]
    assert found["differences"]["auroc"]["value"] == pytest.approx(np.mean(of_folds))
    assert found["delong"]["ill"]["difference"] == pytest.approx(np.mean(of_folds))
    # The scores of one model may lie higher in one fold: no figure of the comparison changes.
    moved = scores + np.array([[0, 0.02], [0.01, 0]])[:, (folds == "1").astype(int)]
    again = compare(*(answers_of(values, labels, folds) for values in moved))
    assert again["differences"]["auroc"] == pytest.approx(found["differences"]["auroc"])
    assert again["delong"]["ill"] == pytest.approx(found["delong"]["ill"])
    text = comparison_markdown(found, ("one", "two"))
    assert "positive class, ill" in text and "| DeLong, AUROC ill |" in text and "No DeLong" not in text


def test_delong_is_left_out_and_named_where_a_fold_has_too_few_images(quick):
    folds, labels = np.repeat(["0", "1"], 10), np.array([0, 1] * 5 + [0] * 9 + [1])
    table = answers_of(np.linspace(0.1, 0.9, 20), labels, folds)
    found = compare(table, table, ["healthy"])
    assert found["delong"] == {} and found["without_delong"] == ["healthy", "binary"]
    assert "No DeLong test of healthy, binary: a fold has fewer than two" in comparison_markdown(found, ("a", "b"))


def test_answers_of_several_trainings_to_one_image_are_not_tested_as_if_they_were_independent(quick):
    labels = np.tile([0, 1], 20)
    table = answers_of(np.linspace(0.1, 0.9, 40), labels, np.repeat(["0", "1"], 20))
    again = table.assign(seed=1, test_part=table["fold"], fold=table["fold"] + " seed 1")
    again["file_name"] += " seed 1"
    both = pd.concat([table.assign(seed=0, test_part=table["fold"]), again], ignore_index=True)
    assert {"delong", "mcnemar"} <= set(compare(table, table))
    found = compare(both, both)
    assert set(found) == {"num_images", "classes", "positive_classes", "differences"}
    assert found["differences"]["auroc"]["value"] == 0


def test_curves_are_drawn_fold_by_fold(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(summary.Figure, "savefig", lambda figure, *args, **options: drawn.append(figure))
    draw_curves(two_perfect_folds(), tmp_path / "curves.png")
    roc, recall = drawn[0].axes[:2]
    assert [text.get_text() for text in roc.get_legend().get_texts()] == ["ill: area 1.00"]
    assert [text.get_text() for text in recall.get_legend().get_texts()] == ["ill: area 1.00"]
    curves = [line.get_xydata() for line in roc.get_lines() if line.get_linestyle() == "-" and len(line.get_xydata())]
    assert len(curves) == 2 and all([0, 1] in curve.tolist() for curve in curves)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_intervals_of_a_cross_validated_auroc_cover_the_truth():
    """Five folds of 24 patients with one to three similar images each, scores of each fold on another scale."""
    random = np.random.default_rng(0)
    truth = norm.cdf(1 / np.sqrt(2))  # scores of patients of the two sides are 1 apart, each with variance 1
    covered, differing = [], []
    for _ in range(150):
        patient = np.repeat(np.arange(120), random.integers(1, 4, 120))
        labels, folds = (np.arange(120) % 2)[patient], (np.arange(120) // 24)[patient]
        scale = random.normal(0, 2, (2, 5))
        runs = []
        for run in range(2):  # equally good, and independent
            own, common = random.normal(size=len(patient)), random.normal(size=120)[patient]
            score = labels + np.sqrt(0.5) * (own + common) + scale[run][folds]
            runs.append(answers_of(1 / (1 + np.exp(-score)), labels, folds.astype(str)).assign(group=patient))
        at = [summary._figures_at(table, None) for table in runs]
        first = bootstrap(lambda chosen, f=at[0]: f(chosen), patient, strata=folds, num_resamples=200)["auroc"]
        covered.append(first["low"] <= truth <= first["high"])
        both = bootstrap(
            lambda chosen, f=at: {"auroc": f[0](chosen)["auroc"] - f[1](chosen)["auroc"]},
            patient,
            strata=folds,
            num_resamples=200,
        )["auroc"]
        differing.append(both["p_value"] < 0.05)
    assert 0.89 < np.mean(covered) < 0.99, np.mean(covered)
    assert np.mean(differing) < 0.11, np.mean(differing)
