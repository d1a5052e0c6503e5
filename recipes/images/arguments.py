"""What can be asked of prepare_corpus.py: a field is an option and a key of a YAML file."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from commandline import UsageError, check_repo_id, option
from corpora import CORPORA, covid_ct_md, resolved
from corpora.facts import FACTS, facts_of
from corpora.record import is_hub_id

MIN_SALT = 16  # characters
UNLABELLED = ("error", "keep", "leave_out")
NEAR_IDENTICAL = ("join", "copies", "patients")


@dataclass
class PrepareArguments:
    """Which download, and how it is split."""

    corpus: str = option(
        "folder", "busi, pneumonia, covid_ct, gbcu, bus_uclm, medmnist, speckle, folder, or the Hub id OWNER/NAME."
    )
    data_dir: str | None = option(None, "Folder of the download; for medmnist also its .npz file.")
    output_dir: str | None = option(None, "Receives the data set; new or empty.")
    overwrite_output_dir: bool = option(False, "Replace the data set in output_dir.")
    table: str | None = option(
        None, "For folder: CSV or TSV with the columns file, and if known label, patient, split."
    )
    image_column: str | None = option(None, "Column of the images, if a data set has several.")
    label_column: str | None = option(
        None, "Column of the labels, if a table (CSV, Parquet, Hub) has another name for it; none: without labels."
    )
    group_column: str | None = option(
        None, "Column of the patients, if a table has another name for it; none: without patients."
    )
    bad_images: str = option("error", "error: stop at an unreadable file; skip: leave it out, named and counted.")
    unlabelled: str = option(
        "error",
        "Images without a label among others that have one (an empty cell, a file beside the class folders, a folder "
        "`unlabelled`). error: stop; keep: pretraining takes them too, no part of a fold that is judged has any; "
        "leave_out: named and counted. A corpus without any label needs label_column none, if it has folders.",
    )
    white_level: float | None = option(None, "Grey value of white; 255 for 8-bit files and 65535 for 16-bit ones.")
    num_folds: int = option(5, "Folds for cross-validation (GBCU in the paper: 10).")
    seed: int = option(0, "Of the splits.")
    window: list[float] | None = field(
        default=None, metadata={"help": "Centre and width of the grey window of DICOM files, instead of their own."}
    )
    slices: str = option(
        "all", "For COVID-CT-MD: all, or infected: of patients with a pneumonia only slices marked as infected."
    )
    near_identical: str = option(
        "join",
        "Which images that look alike are kept in one part of every fold, whoever's they are. join: all; copies: the "
        "same picture only; patients: patients as they are given, images without one by their likeness.",
    )
    keep_file_names: bool | None = option(
        None,
        "Write file names and a table's patients as they are. Left out: for the public corpora only; else they are "
        "hashed, and private/names.csv knows the originals.",
    )
    salt: str | None = option(
        None,
        "Secret that file names and patient ids are hashed with; the same one gives the same names. Drawn at random "
        "and forgotten if left out.",
    )
    speckle_images: int = option(2560, "Images to generate, for speckle.")
    speckle_classes: str = option("easy", "Class set, for speckle: easy or hard.")
    image_size: int = option(96, "Side of the generated images in pixels, for speckle.")
    num_workers: int = option(0, "Processes that decode images; 0: threads of this one.")
    push_to_hub: str | None = option(None, "Publish the data set under this id, OWNER/NAME.")
    private: bool = option(False, "Publish to a private repository.")

    def __post_init__(self):
        allowed = (*CORPORA, "speckle")
        if self.corpus not in allowed and self.data_dir is None and Path(self.corpus).expanduser().is_dir():
            self.corpus, self.data_dir = "folder", self.corpus  # as the other recipes take it
        self.corpus = resolved(self.corpus, self.data_dir)
        on_hub = self.corpus not in allowed and is_hub_id(self.corpus)
        if self.corpus not in allowed and not on_hub:
            raise UsageError(f"corpus must be one of {', '.join(allowed)}, or OWNER/NAME, got {self.corpus!r}")
        if self.bad_images not in ("error", "skip"):
            raise UsageError(f"bad_images must be error or skip, got {self.bad_images!r}")
        if self.unlabelled not in UNLABELLED:
            raise UsageError(f"unlabelled must be one of {', '.join(UNLABELLED)}, got {self.unlabelled!r}")
        if self.near_identical not in NEAR_IDENTICAL:
            raise UsageError(f"near_identical must be one of {', '.join(NEAR_IDENTICAL)}, got {self.near_identical!r}")
        if self.output_dir is None:
            raise UsageError("output_dir is needed: the folder that receives the data set")
        if (self.data_dir is None) != (self.corpus == "speckle" or on_hub):
            raise UsageError(
                "data_dir, the folder of the download, is needed for every corpus but speckle and a data set on the "
                f"Hub, got {self.data_dir!r}"
            )
        if self.table is not None and self.corpus != "folder":
            raise UsageError(f"table is for corpus folder, got corpus {self.corpus}")
        if self.slices not in covid_ct_md.SLICES or (self.slices != "all" and self.corpus != "covid_ct_md"):
            raise UsageError(
                f"slices must be one of {', '.join(covid_ct_md.SLICES)}, and all for every corpus but COVID-CT-MD, got "
                f"{self.slices!r} for {self.corpus}"
            )
        if self.keep_file_names is None:
            self.keep_file_names = self.corpus in FACTS
        if self.salt is None:
            self.salt = os.urandom(16).hex()
        elif not self.salt:
            raise UsageError("salt must not be empty: anyone could find the hash of a name")
        if self.num_workers < 0:
            raise UsageError(f"num_workers must be at least 0, got {self.num_workers}")
        if self.num_folds < 2:
            raise UsageError(f"num_folds must be at least 2, got {self.num_folds}")
        if self.window is not None and (len(self.window) != 2 or self.window[1] < 1):
            raise UsageError(f"window must be a centre and a width of at least 1, got {self.window}")
        if self.push_to_hub:
            check_repo_id(self.push_to_hub, "push_to_hub")
        facts = facts_of(self.corpus, self.data_dir)
        if self.push_to_hub and facts and facts.no_copies and not self.private:
            raise UsageError(
                f"push_to_hub: {facts.no_copies} Publish the splits and your models instead, or keep a copy for "
                "yourself with --private"
            )
