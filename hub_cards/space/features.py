"""The texture features of a patch and of what was rebuilt in its place, in words."""

from collections.abc import Mapping

WORDS = {
    "joint_max": "Share of the commonest pair of grey levels",
    "joint_avg": "Mean grey level",
    "joint_var": "Spread of the grey levels",
    "joint_entr": "Disorder of the pairs",
    "diff_avg": "Mean step between neighbours",
    "diff_var": "Spread of the steps",
    "diff_entr": "Disorder of the steps",
    "sum_avg": "Mean sum of neighbours",
    "sum_var": "Spread of the sums",
    "sum_entr": "Disorder of the sums",
    "energy": "Uniformity (angular second moment)",
    "contrast": "Contrast (squared steps)",
    "dissimilarity": "Dissimilarity (steps)",
    "inv_diff": "Homogeneity",
    "inv_diff_norm": "Homogeneity, normalised",
    "inv_diff_mom": "Homogeneity, squared steps",
    "inv_diff_mom_norm": "Homogeneity, squared steps, normalised",
    "inv_var": "Smallness of the steps, equal pixels left out",
    "corr": "Correlation of neighbours",
    "auto_corr": "Mean product of neighbours",
    "clust_tend": "Tendency to clusters of light and dark",
    "clust_shade": "Skewness of the clusters",
    "clust_prom": "Prominence of the clusters",
    "info_corr1": "Information shared by neighbours, first measure",
    "info_corr2": "Information shared by neighbours, second measure",
}


def compared(original: Mapping[str, float], rebuilt: Mapping[str, float]) -> list[list[str]]:
    """Rows of name, value of the original, of what was rebuilt, and the change, the most changed first.

    The change is in per cent of the larger of both without their signs, so that no small number makes a large one: at
    most 100, or 200 where the sign turns.
    """
    changes = {
        name: 100 * (rebuilt[name] - value) / (max(abs(value), abs(rebuilt[name])) or 1)
        for name, value in original.items()
    }
    return [
        [
            f"{WORDS[name]} ({name})",
            f"{original[name] + 0.0:.3g}",  # no "-0"
            f"{rebuilt[name] + 0.0:.3g}",
            f"{round(change):+d} %",
        ]
        for name, change in sorted(changes.items(), key=lambda row: -abs(row[1]))
    ]
