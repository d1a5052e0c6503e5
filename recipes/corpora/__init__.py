"""One module per corpus: each knows the folder layout in which people download that corpus, and nothing else."""

from collections.abc import Iterable
from pathlib import Path

from corpora import bus_uclm, busi, covid_ct, covid_ct_md, folder, gbcu, medmnist, pneumonia

CORPORA = {
    "busi": busi,
    "pneumonia": pneumonia,
    "covid_ct": covid_ct,
    "covid_ct_md": covid_ct_md,
    "gbcu": gbcu,
    "bus_uclm": bus_uclm,
    "medmnist": medmnist,
    "folder": folder,
}


def recognised(root: Path) -> str:
    """Name of the corpus in whose layout a folder lies; "folder" if it is in none."""
    return next(name for name, module in CORPORA.items() if module.find_root(root) is not None)


def resolved(corpus: str, data_dir: str | Path | None) -> str:
    """`covid_ct` means any of three downloads: `covid_ct_md` where that is what lies in `data_dir`."""
    if corpus == "covid_ct" and data_dir is not None and covid_ct_md.find_root(Path(data_dir).expanduser()):
        return "covid_ct_md"
    return corpus


def class_names(corpus: str, data_dir: str | Path, labels: Iterable[str]) -> list[str]:
    """The classes of a download, label 0 first: for "folder" the labels of its images, in the order of the alphabet."""
    module = CORPORA[corpus]
    if corpus == "medmnist":
        return list(medmnist.class_names(data_dir))
    return list(getattr(module, "CLASS_NAMES", sorted(labels)))
