"""Uncertainty of the figures of a classifier, and paired tests between two."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.stats import binomtest, norm, rankdata
from tqdm.auto import tqdm

LEVEL = 0.95


def delong_test(
    scores_a: np.ndarray, scores_b: np.ndarray, truth: np.ndarray, folds: Sequence[str] | None = None
) -> dict[str, float]:
    """Difference of two AUROCs on the same images (DeLong, DeLong, Clarke-Pearson 1988; midranks as Sun and Xu 2014).

    Over folds, the AUROCs are means of those of the folds, and the variance of their difference is the sum of the
    variances over the square of the number of folds, since each fold has models and images of its own. Images are taken
    as independent, so several of one patient make the test too sure of itself.

    Args:
        scores_a, scores_b: `(n,)`, larger for positive.
        truth: `(n,)` bool, each value at least twice in every fold: of one image no variance can be estimated.
        folds: `(n,)`, where the scores are of several models each; their scales are not compared.

    Returns:
        `auroc_a`, `auroc_b`, `difference` (a - b), `low` and `high` (its 95 % interval), `p_value` (two-sided; NaN
        where the AUROCs differ without any estimated variance, as one of 1 and one of 0 do).

    Raises:
        ValueError: if a fold has fewer than two positive or negative images.
    """
    scores, truth = np.array([scores_a, scores_b], dtype=np.float64), np.asarray(truth, dtype=bool)
    folds = np.zeros(len(truth), dtype=int) if folds is None else np.asarray(folds)
    names = np.unique(folds)
    found = [_delong_parts(scores[:, folds == name], truth[folds == name], name) for name in names]
    aurocs = np.mean([of_fold for of_fold, _ in found], axis=0)
    error = float(np.sqrt(sum(variance for _, variance in found))) / len(names)
    difference = aurocs[0] - aurocs[1]
    half = norm.ppf((1 + LEVEL) / 2) * error
    without_variance = 1.0 if difference == 0 else np.nan
    p_value = 2 * norm.sf(abs(difference) / error) if error > 0 else without_variance
    return {
        "auroc_a": float(aurocs[0]),
        "auroc_b": float(aurocs[1]),
        "difference": float(difference),
        "low": float(difference - half),
        "high": float(difference + half),
        "p_value": float(p_value),
    }


def _delong_parts(scores: np.ndarray, truth: np.ndarray, fold: str) -> tuple[np.ndarray, float]:
    """The two AUROCs of `(2, n)` scores, and the variance of their difference."""
    positives, negatives = int(truth.sum()), int((~truth).sum())
    if min(positives, negatives) < 2:
        raise ValueError(
            f"the test needs at least two positive and negative images each, got {positives} and {negatives} in fold "
            f"{fold}"
        )
    among_all = rankdata(scores, axis=1)
    # Share of the other class that an image beats, ties counting half: the structural components of the paper.
    of_positives = (among_all[:, truth] - rankdata(scores[:, truth], axis=1)) / negatives
    of_negatives = 1 - (among_all[:, ~truth] - rankdata(scores[:, ~truth], axis=1)) / positives
    covariance = np.cov(of_positives) / positives + np.cov(of_negatives) / negatives
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    return of_positives.mean(axis=1), max(float(variance), 0.0)


def mcnemar_test(correct_a: np.ndarray, correct_b: np.ndarray) -> dict[str, float]:
    """Exact test of two accuracies on the same images (McNemar 1947): are those that only one got right balanced?

    Args:
        correct_a, correct_b: `(n,)` bool.

    Returns:
        `only_a`, `only_b` (how many), `p_value` (two-sided; 1 if they never differ).
    """
    correct_a, correct_b = np.asarray(correct_a, dtype=bool), np.asarray(correct_b, dtype=bool)
    only_a, only_b = int((correct_a & ~correct_b).sum()), int((~correct_a & correct_b).sum())
    p_value = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    return {"only_a": only_a, "only_b": only_b, "p_value": float(p_value)}


def bootstrap(
    figures: Callable[[np.ndarray], dict[str, float]],
    groups: Sequence[str],
    *,
    strata: Sequence[str] | None = None,
    trainings: Sequence[str] | None = None,
    num_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Percentile intervals of figures, by drawing whole groups (patients) with replacement (Efron 1979).

    Args:
        figures: of positions into the images, some of them several times; NaN where these leave one undefined (a class
            is absent).
        groups: of each image.
        strata: of each image (the fold that tests it): each keeps its number of groups in every draw. What a stratum of
            g groups adds to a variance comes out as (g - 1) / g of it, so that intervals are narrow where g is small.
        trainings: of each image the training that answers, where the same images have the answers of several: then a
            figure is the mean over these, and the intervals hold the luck of a training too. Of n trainings a draw has
            n - 1, all judged on the groups of the draw, with replacement and in each stratum anew, since each fold has
            trainings of its own: so the variance of their mean comes out whole (McCarthy and Snowden 1985). But all of
            n trainings lie on one side of the truth in 1 of 2^(n - 1) cases, so intervals of few trainings in one
            stratum are too narrow.
        num_resamples: draws.
        seed: of the draws.

    Returns:
        For each figure what `interval` says, and its `draws`, which are of the same images for the same groups, strata,
        trainings and seed: their differences are those of a paired bootstrap.
    """
    strata = np.zeros(len(groups), dtype=int) if strata is None else np.asarray(strata)
    _, stratum_of = np.unique(strata, return_inverse=True)
    members = []  # of each stratum, the positions of each of its groups
    for stratum in range(stratum_of.max() + 1):
        at = np.flatnonzero(stratum_of == stratum)
        _, group_of = np.unique(np.asarray(groups)[at], return_inverse=True)
        members.append([at[group_of == group] for group in range(group_of.max() + 1)])
    _, training = np.unique(np.zeros(len(groups)) if trainings is None else np.asarray(trainings), return_inverse=True)
    number = training.max() + 1

    def mean_over(chosen: np.ndarray, at: np.ndarray) -> dict[str, float]:
        """Figures of these trainings, a row for each of them, with a training for each stratum."""
        found = [figures(at[training[at] == of_strata[stratum_of[at]]]) for of_strata in chosen]
        return {name: float(np.mean([one[name] for one in found])) for name in found[0]}

    # Two, so that the same groups are drawn however many trainings there are.
    random, of_trainings = np.random.default_rng(seed), np.random.default_rng([seed, 1])
    draws = []
    for _ in tqdm(range(num_resamples), desc="bootstrap", leave=False):
        drawn = [part[i] for part in members for i in random.integers(0, len(part), len(part))]
        chosen = of_trainings.integers(0, number, (max(number - 1, 1), len(members)))
        draws.append(mean_over(chosen, np.concatenate(drawn)))
    whole = mean_over(np.tile(np.arange(number)[:, None], len(members)), np.arange(len(groups)))
    of_each = {name: np.array([draw[name] for draw in draws]) for name in whole}
    return {name: interval(value, of_each[name]) | {"draws": of_each[name]} for name, value in whole.items()}


def interval(value: float, draws: np.ndarray) -> dict[str, float]:
    """The percentile interval of a figure.

    Args:
        value: of all images.
        draws: of each draw; NaN where that leaves the figure undefined.

    Returns:
        `value`, `low`, `high` (95 %), `undefined` (share of the draws that were left out), and `p_value` (two-sided,
        that the figure is 0: for differences).
    """
    defined = draws[~np.isnan(draws)]
    found = {"value": float(value), "low": np.nan, "high": np.nan, "undefined": float(np.isnan(draws).mean())}
    if not len(defined):
        return found | {"p_value": np.nan}
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    # The share of the draws on the far side of 0, counting one more, so that no finite number of draws gives 0.
    tail = min((defined <= 0).sum(), (defined >= 0).sum()) + 1
    return found | {"low": float(low), "high": float(high), "p_value": float(min(1, 2 * tail / (len(defined) + 1)))}
