"""Where the images of a corpus lie in the space of their features: components, and nearest neighbours."""

from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

from judging.summary import COLOURS

MAX_QUERIES, MAX_SHOWN = 12, 8  # rows of the picture, and neighbours in a row
AGREES, DIFFERS = COLOURS[2], COLOURS[1]


@matplotlib.rc_context({"text.parse_math": False})  # a $ in a name is a dollar
def draw_pca(values: np.ndarray, labels: np.ndarray | None, class_names: Sequence[str], file: Path) -> None:
    """First two principal components of standardised features `(n, d)`, a point an image, coloured by label `(n,)`."""
    varying = values[:, values.std(axis=0) > 0]
    pca = PCA(min(2, *varying.shape), svd_solver="full").fit(scaled := StandardScaler().fit_transform(varying))
    points = np.pad(pca.transform(scaled), ((0, 0), (0, 2)))[:, :2]
    share = [*pca.explained_variance_ratio_, 0.0][:2]
    figure = Figure(figsize=(7, 6), layout="constrained")
    axis = figure.subplots()
    for index, name in enumerate(class_names or ["images"]):
        chosen = points if labels is None else points[labels == index]
        colour = COLOURS[index % len(COLOURS)]
        axis.scatter(*chosen.T, s=12, alpha=0.6, color=colour, label=f"{name} ({len(chosen)})", linewidths=0)
    axis.set(xlabel=f"component 1 ({share[0]:.0%} of the variance)", ylabel=f"component 2 ({share[1]:.0%})")
    axis.legend()
    figure.savefig(file, dpi=110)


def nearest_images(values: np.ndarray, images: pd.DataFrame, neighbours: int) -> pd.DataFrame:
    """The nearest images of each image, by cosine similarity.

    Args:
        values: features `(n, d)`.
        images: in the order of `values`: `file_name` and `sha256`, and where known `group` and `label_name`.
        neighbours: how many of each, at most n - 1.

    Returns:
        `n * neighbours` rows, in the order of the images and then of `rank` (1 is the nearest): `file_name`, `rank`,
        `neighbour` (its file name), `similarity` (1 at most), `identical` (of the same bytes), `same_group` (null where
        a group is unknown), and where labels are known `label_name` and `neighbour_label_name`. An image is not its own
        neighbour; its copies are.
    """
    found = NearestNeighbors(n_neighbors=neighbours, metric="cosine").fit(values.astype(np.float64))
    distances, indices = found.kneighbors()  # without an argument, no image is its own neighbour
    query = images.iloc[np.repeat(np.arange(len(images)), neighbours)].reset_index(drop=True)
    other = images.iloc[indices.ravel()].reset_index(drop=True)
    table = pd.DataFrame(
        {
            "file_name": query["file_name"],
            "rank": np.tile(np.arange(1, neighbours + 1), len(images)),
            "neighbour": other["file_name"],
            "similarity": 1 - distances.ravel(),
            "identical": query["sha256"] == other["sha256"],
        }
    )
    table["same_group"] = pd.Series(pd.NA, table.index, "boolean")
    if "group" in images:
        known = query["group"].notna() & other["group"].notna()
        table["same_group"] = (query["group"] == other["group"]).astype("boolean").where(known)
    if "label_name" in images:
        table["label_name"], table["neighbour_label_name"] = query["label_name"], other["label_name"]
    return table


@matplotlib.rc_context({"text.parse_math": False})
def draw_neighbours(table: pd.DataFrame, picture_of: Callable[[str], np.ndarray], file: Path) -> None:
    """A row for each of at most 12 images, drawn with a fixed seed: the image, then up to 8 of its nearest ones.

    Above each neighbour stands its similarity, its label where known, green if it is that of the image and red if not,
    and whether it is of the same bytes or the same group.

    Args:
        table: of `nearest_images`.
        picture_of: told a file name, gives `(height, width, 3)` in [0, 1].
        file: PNG to write.
    """
    names = table["file_name"].unique()
    chosen = np.sort(np.random.default_rng(0).permutation(len(names))[:MAX_QUERIES])
    shown = min(int(table["rank"].max()), MAX_SHOWN)
    figure = Figure(figsize=(1.7 * (1 + shown), 2.1 * len(chosen)), layout="constrained")
    axes = figure.subplots(len(chosen), 1 + shown, squeeze=False)
    rows_of = dict(iter(table[table["rank"] <= shown].groupby("file_name", sort=False)))
    for row, name in zip(axes, names[chosen], strict=True):
        found = rows_of[name].sort_values("rank").to_dict("records")
        label = found[0].get("label_name")
        short = name if len(name) <= 20 else f"…{name[-19:]}"  # the end tells images apart
        _draw(row[0], picture_of(name), f"{short}\n{label if pd.notna(label) else ''}")
        for axis, near in zip(row[1:], found, strict=True):
            title, colour = f"{near['similarity']:.3f}", "black"
            if near["identical"]:
                title += ", same bytes"
            elif pd.notna(near["same_group"]) and near["same_group"]:
                title += ", same group"
            other = near.get("neighbour_label_name")
            if pd.notna(other):
                title += f"\n{other}"
                if pd.notna(label):
                    colour = AGREES if other == label else DIFFERS
            _draw(axis, picture_of(near["neighbour"]), title, color=colour)
    figure.savefig(file, dpi=80)


def _draw(axis: matplotlib.axes.Axes, picture: np.ndarray, title: str, **style: str) -> None:
    axis.imshow(picture)
    axis.set_title(title, fontsize=7, **style)
    axis.set_axis_off()
