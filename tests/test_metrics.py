"""The metric module against scikit-learn, and the statistics against independent calculations."""

import os
import subprocess
import sys
from pathlib import Path

import evaluate
import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    f1_score,
    recall_score,
    roc_auc_score,
)

from recipe_statistics import bootstrap, delong_test, mcnemar_test

METRIC = Path(__file__).resolve().parent.parent / "recipes" / "metrics" / "medical_classification"


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
        "sensitivity": recall_score(labels, answer, average="macro"),
        "f1": f1_score(labels, answer, average="macro"),
        "auroc": roc_auc_score(labels, probabilities, multi_class="ovr", average="macro"),
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
    assert np.array(found["confusion_matrix"]).sum() == 200


def test_an_absent_class_is_nan_and_not_counted(metric, answers):
    probabilities, labels = answers
    kept = labels != 2
    found = metric.compute(predictions=probabilities[kept], references=labels[kept])
    assert np.isnan(found["auroc_2"]) and np.isnan(found["sensitivity_2"])
    assert found["sensitivity"] == pytest.approx((found["sensitivity_0"] + found["sensitivity_1"]) / 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"predictions": [[0.5, 0.2]] * 2}, "summing to 1"),
        ({"positive": [0, 1]}, "some, not all"),
        ({"references": [0, 2]}, "0 to 1"),
    ],
)
def test_what_is_not_allowed(metric, options, message):
    given = {"predictions": [[0.5, 0.5], [0.1, 0.9]], "references": [0, 1]} | options
    with pytest.raises(ValueError, match=message):
        metric.compute(**given)


def test_it_loads_offline():
    code = (
        f"import evaluate; m = evaluate.load({str(METRIC)!r}); "
        "print(m.compute(predictions=[[.9, .1], [.2, .8]], references=[0, 1])['accuracy'])"
    )
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=offline, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "1.0", done.stderr


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
