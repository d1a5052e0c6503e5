"""One module per corpus: each knows the folder layout in which people download that corpus, and nothing else."""

from pathlib import Path

from corpora import bus_uclm, busi, covid_ct, folder, gbcu, pneumonia

CORPORA = {
    "busi": busi,
    "pneumonia": pneumonia,
    "covid_ct": covid_ct,
    "gbcu": gbcu,
    "bus_uclm": bus_uclm,
    "folder": folder,
}


def recognised(root: Path) -> str:
    """Name of the corpus in whose layout a folder lies; "folder" if it is in none."""
    return next(name for name, module in CORPORA.items() if module.find_root(root) is not None)
