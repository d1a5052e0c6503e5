"""The rows of finetuned.py: what they are trained with, so that a row of other settings is not taken for the same."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from training.fold_settings import by_name

ROOT = Path(__file__).resolve().parents[2]
STEPS = ("pretrain", "finetune")
CONFIGS = "recipes/configs/laptop"
CLASSICAL, BASELINE = "classical", "mse"
# The weights of the heads are spelled out, so that a run by another release, whose preset of that name was another one,
# is not taken for a run of this row.
TEXTURE = ["preset=texture", "glcm_head_weight=8", "glcm_cls_weight=0.5"]
LIGHT = ["preset=texture", "glcm_head_weight=2", "glcm_cls_weight=0"]  # what the preset was
ROWS: dict[str, list[str] | None] = {  # options of the pretraining; None: there is none
    CLASSICAL: None,
    "none": None,
    BASELINE: ["preset=mse"],
    "paper": ["preset=paper", "mse_epochs=0.5"],
    "head": [*LIGHT, "glcm_weight=0"],
    "light": LIGHT,
    "cls": ["preset=texture", "glcm_head_weight=2", "glcm_cls_weight=4"],
    "texture": TEXTURE,
    "mse_all": ["preset=mse"],
    "head_all": [*LIGHT, "glcm_weight=0"],
    "light_all": LIGHT,
    "texture_all": TEXTURE,
}
ALL, FIRST = "_all", "busi"  # rows of one encoder for all corpora; where it is pretrained
# `epochs`: of the pretraining on this corpus, and of the fine-tuning.
CORPORA: dict[str, dict[str, Any]] = {
    "busi": {"title": "BUSI", "positive": ["malignant"], "folds": None, "seeds": [0, 1], "epochs": (60, 30)},
    "covid_ct": {"title": "SARS-CoV-2 CT", "positive": None, "folds": None, "seeds": [0], "epochs": (30, 20)},
    "pneumonia": {
        "title": "Chest X-ray",
        "positive": None,
        "folds": ["official"],
        "seeds": [0, 1, 2],
        "epochs": (15, 8),
    },
}
EPOCHS_OF_ALL = 24


def key_of(row: str, labelled: int | None) -> str:
    """What a row is called in the results."""
    return f"{row}@{labelled}" if labelled else row


def asked(words: Sequence[str]) -> dict[str, Any]:
    """The settings of the two trainings in a call of cross_validate.py, as the folder of a run keeps them."""
    found: dict[str, Any] = {}
    option = ""
    for word in words:
        if word.startswith("--"):
            option = word.removeprefix("--")
        elif option.endswith("_options"):
            found.setdefault(option, []).append(word)
        elif option.endswith("_config"):
            found[f"{option}_content"] = yaml.safe_load((ROOT / word).read_text())
    return found


def differences(there: dict[str, Any], here: dict[str, Any], steps: Sequence[str] = STEPS) -> str:
    """Settings of the trainings that differ between two runs, with both values; not where things lie."""
    known, now = (trained_by(settings, steps) for settings in (there, here))
    values = {name: [" ".join(run.get(name, ["not given"])) for run in (known, now)] for name in known | now}
    return "; ".join(f"{name} {one} there, {other} here" for name, (one, other) in values.items() if one != other)


def trained_by(settings: dict[str, Any], steps: Sequence[str]) -> dict[str, list[str]]:
    """What a run gives its trainings, whether by a YAML file or by an option."""
    found = {}
    for step in steps:
        content, options = settings.get(f"{step}_config_content") or {}, by_name(settings.get(f"{step}_options"))
        for name, value in (content | options).items():
            if name not in ("output_dir", "unlabelled_corpus"):
                found[f"{step} {name}"] = [_comparable(one) for one in (value if isinstance(value, list) else [value])]
    return found


def _comparable(value: Any) -> str:
    text = str(value).lower()  # a YAML file has true, an option "true"
    try:
        return f"{float(text):g}"
    except ValueError:
        return text
