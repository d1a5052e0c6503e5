"""Parts of whole groups, with the classes in proportion: StratifiedGroupKFold of scikit-learn, for many groups."""

import datasets
import numpy as np
import pandas as pd
import torch
from sklearn.model_selection import StratifiedGroupKFold

from commandline import UsageError
from images.randomness import FEW_GROUPS, keyed_generator


class _Folds(StratifiedGroupKFold):
    """The folds of scikit-learn to the last group, in an eighth of the time: the rule at its heart, for all at once.

    Should scikit-learn call that by another name one day, its own takes over.
    """

    def _find_best_fold(self, y_counts_per_fold: np.ndarray, y_cnt: np.ndarray, group_y_counts: np.ndarray) -> int:
        # (which fold would get the group, fold, class)
        proposed = np.repeat(y_counts_per_fold[None], self.n_splits, axis=0)
        proposed[np.diag_indices(self.n_splits)] += group_y_counts
        spreads = (proposed / y_cnt).std(axis=1).mean(axis=1).tolist()
        sizes = y_counts_per_fold.sum(axis=1).tolist()
        best = 0
        for fold in range(1, self.n_splits):
            spread, least = spreads[fold], spreads[best]
            # np.isclose, which takes longer than the rest
            close = abs(spread - least) <= 1e-8 + 1e-5 * least
            if spread < least or (close and sizes[fold] < sizes[best]):
                best = fold
        return best


def grouped_parts(labels: np.ndarray, groups: np.ndarray, num_parts: int, seed: int) -> list[np.ndarray]:
    """Positions of each of `num_parts` parts: images of each class in proportion, no group in two of them."""
    divide = _Folds(num_parts, shuffle=True, random_state=seed)
    return [np.sort(test) for _, test in divide.split(np.zeros(len(labels)), labels, groups)]


def few_groups(train: datasets.Dataset, count: int) -> datasets.Dataset:
    """The images of `count` of the groups, drawn class by class: the same for every run, fewer among more.

    Classes get groups in proportion (Sainte-Laguë), each at least one; a group is of its commonest class.

    Args:
        train: columns `label` and `group`.
        count: from the number of classes to that of groups.

    Raises:
        UsageError: `count` is not.
    """
    table = pd.DataFrame({"group": train["group"][:], "label": train["label"][:]})
    commonest = table.groupby("group")["label"].agg(lambda labels: labels.mode()[0])
    groups = {label: sorted(part.index) for label, part in commonest.groupby(commonest)}
    if not len(groups) <= count <= len(commonest):
        raise UsageError(
            f"labelled_groups must be from {len(groups)}, the classes, to {len(commonest)}, the groups (patients, "
            f"where they are known) of the training part, got {count}"
        )
    taken = dict.fromkeys(groups, 1)
    for _ in range(count - len(groups)):
        open_ = [label for label, names in groups.items() if taken[label] < len(names)]
        taken[max(open_, key=lambda label: len(groups[label]) / (2 * taken[label] + 1))] += 1
    chosen = set()
    for label, names in groups.items():
        order = torch.randperm(len(names), generator=keyed_generator(FEW_GROUPS, int(label))).tolist()
        chosen |= {names[position] for position in order[: taken[label]]}
    return train.select(np.flatnonzero(table["group"].isin(chosen)))
