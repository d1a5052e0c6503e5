"""One module per corpus: each knows the folder layout in which people download that corpus, and nothing else."""

from collections.abc import Iterable
from pathlib import Path

from corpora import bus_uclm, busi, covid_ct, folder, gbcu, medmnist, pneumonia

CORPORA = {
    "busi": busi,
    "pneumonia": pneumonia,
    "covid_ct": covid_ct,
    "gbcu": gbcu,
    "bus_uclm": bus_uclm,
    "medmnist": medmnist,
    "folder": folder,
}


def recognised(root: Path) -> str:
    """Name of the corpus in whose layout a folder lies; "folder" if it is in none."""
    return next(name for name, module in CORPORA.items() if module.find_root(root) is not None)


def class_names(corpus: str, data_dir: str | Path, labels: Iterable[str]) -> list[str]:
    """The classes of a download, label 0 first: for "folder" the labels of its images, in the order of the alphabet."""
    module = CORPORA[corpus]
    if corpus == "medmnist":
        return list(medmnist.class_names(data_dir))
    return list(getattr(module, "CLASS_NAMES", sorted(labels)))
