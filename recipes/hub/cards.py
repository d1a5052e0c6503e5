"""What a model card says beside its template: where the weights come from, figures in the metadata, the address."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers.utils import cached_file

RESULTS = re.compile(r"<!-- results -->.*<!-- end of results -->", re.DOTALL)


CLAIM = re.compile(r"<!-- claim -->.*<!-- end of claim -->", re.DOTALL)


def render_card(text: str, repo_id: str, results: str | None = None, claim: str | None = None, **metadata: Any) -> str:
    """The card with the repository's address in its snippets, and more metadata.

    Args:
        text: of README.md.
        repo_id: OWNER/NAME.
        results, claim: replace the parts between the marks of the results and of the first sentence.
        metadata: fields of the YAML header; those that are `None` stay as they are.
    """
    card = ModelCard(text, ignore_metadata_errors=False)
    for name, value in metadata.items():
        if value is not None:
            setattr(card.data, name, value)
    for marks, name, new in ((RESULTS, "results", results), (CLAIM, "claim", claim)):
        if new is not None:
            marked = f"<!-- {name} -->\n{new}\n<!-- end of {name} -->"
            card.text = marks.sub(lambda _, marked=marked: marked, card.text)
    return card.content.replace(ADDRESS, repo_id)


def with_section(text: str, section: str) -> str:
    """The card with one more section, after its first one, which says how to load the model.

    Args:
        text: of README.md.
        section: Markdown that begins with a heading `##`.
    """
    parts = re.split(r"^(?=## )", text, maxsplit=2, flags=re.MULTILINE)
    return "".join([*parts[:2], section.strip() + "\n\n", *parts[2:]])


CARDS = Path(__file__).resolve().parents[2] / "hub_cards"
ADDRESS = "path/to/export"  # stands for the repository in a card until it is published
DATA_ADDRESS = "path/to/this/folder"  # the same in the card of a data set


@dataclass(frozen=True)
class Origin:
    """What a model began with, as far as it is known.

    Attributes:
        base_model: nearest ancestor on the Hub.
        described: in words for a card, without paths of this machine.
        mae_weights: the ImageNet MAE at the beginning of it all, whose licence is not settled.
        pretrained_here: by a pretraining of this project, at some time.
    """

    base_model: str | None = None
    described: str | None = None
    mae_weights: str | None = None
    pretrained_here: bool = False


def origin_of(name_or_path: str | None, revision: str = "main") -> Origin:
    """Origin of a model that starts from a checkpoint, which tells of its own in its card.

    Args:
        name_or_path: Hub id or folder; `None` for random weights.
        revision: of the checkpoint on the Hub.
    """
    if name_or_path is None:
        return Origin()
    folder = Path(name_or_path)
    if folder.exists():
        card = (folder.parent if folder.name == "pretraining" else folder) / "README.md"
        file, name = (card if card.is_file() else None), None
    else:
        quiet = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
        file, name = cached_file(name_or_path, "README.md", revision=revision, **quiet), name_or_path
    text = "" if file is None else Path(file).read_text(encoding="utf-8")
    metadata = ModelCard(text, ignore_metadata_errors=True).data if text else ModelCardData()
    title = re.search(r"^# (.+)", text, re.MULTILINE)
    licence = re.search(r"^\*\*Licence of the first weights\.\*\* (facebook/vit-mae[\w-]*)", text, re.MULTILINE)
    mae_weights = name if (name or "").startswith("facebook/vit-mae") else licence and licence[1]
    described = name or (title and title[1])
    if described and not name and metadata.base_model:
        described += f"; that one from {metadata.base_model}"
    return Origin(name or metadata.base_model, described, mae_weights, "madan2025focus" in text)


def eval_results(
    dataset_name: str, dataset_type: str, figures: dict[str, float], split: str
) -> list[EvalResult] | None:
    """Figures of a classifier as the model-index of its card, with what they are of; `None` if there are none."""
    return [
        EvalResult(
            task_type="image-classification",
            dataset_type=dataset_type,
            dataset_name=dataset_name,
            dataset_split=split,
            metric_type={"auroc": "roc_auc"}.get(name, name),
            metric_value=round(value, 4),
            metric_name=name,
        )
        for name, value in figures.items()
        if not math.isnan(value)
    ] or None
