"""What is asked to be published: its files, its card, and what is left out."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard

from commandline import UsageError, check_repo_id, option
from corpora.facts import facts_of
from hub.cards import ADDRESS, DATA_ADDRESS, eval_results, render_card
from hub.never_published import check_model, files_of, refuse_secret_name, refuse_secret_text
from hub.publication import ONNX_FILE, Publication, text_of
from judging.tables import shown_figures, summary_markdown, what_it_tells

ROOT = Path(__file__).resolve().parents[2]


FOR_THE_CARD = ("license", "base_model", "datasets")


SENT_AS_GIVEN = ("private", "gated", "revision", "tag", "create_pr", "collection", "replace")


@dataclass
class PublishArguments:
    """What is published, and where."""

    export_dir: str | None = option(
        None, "An export, the output of cross_validate.py or prepare_corpus.py, or a space."
    )
    repo_id: str | None = option(None, "OWNER/NAME.")
    repo_type: str = option("model", "model, dataset, or space (the demo; a metric module).")
    dry_run: bool = option(False, "Show the files, what would be deleted on the Hub, and the card; send nothing.")
    replace: bool = option(False, "Into any repository: whatever else it holds, whoever wrote it, is deleted.")
    private: bool = option(False, "To a private repository.")
    gated: str | None = option(None, "auto or manual: people ask for access, which is given at once or by you.")
    revision: str = option("main", "Branch to commit to; created if needed.")
    tag: str | None = option(None, "Tag of the commit; the next of v1, v2, ... if left out.")
    create_pr: bool = option(False, "Propose the commit as a pull request to the existing repository; no tag.")
    license: str | None = option(None, "Licence of the weights for the card, as the Hub spells it: cc-by-4.0.")
    base_model: str | None = option(None, "Hub id of the model it was trained from, for the card.")
    datasets: list[str] | None = field(default=None, metadata={"help": "Hub ids of its data sets, for the card."})
    onnx: bool = option(False, "Publish the model for ONNX Runtime too, as onnx/model.onnx.")
    collection: str | None = option(None, "Title of a collection of the same owner that lists the repository.")
    fold: str | None = option(None, "Which fold's classifier, of a cross-validation; the first if left out.")

    def __post_init__(self):
        if self.export_dir is None or self.repo_id is None:
            raise UsageError("export_dir and repo_id are needed")
        check_repo_id(self.repo_id)
        for name, allowed in (("repo_type", ("model", "dataset", "space")), ("gated", (None, "auto", "manual"))):
            if getattr(self, name) not in allowed:
                names = ", ".join(str(value) for value in allowed if value)
                raise UsageError(f"{name} must be one of {names}, got {getattr(self, name)!r}")
        if not Path(self.export_dir).is_dir():
            raise UsageError(f"export_dir {self.export_dir!r} is not a folder")
        if self.create_pr and (self.tag or self.revision != "main" or self.gated or self.collection):
            raise UsageError("create_pr takes no tag, revision, gated or collection: it only proposes a commit to main")
        if self.repo_type != "model" and any(getattr(self, name) for name in (*FOR_THE_CARD, "fold", "onnx")):
            raise UsageError(f"{', '.join(FOR_THE_CARD)}, fold and onnx are for models")
        facts = facts_of(self.export_dir) if self.repo_type == "dataset" else None
        if facts and facts.no_copies and not self.private:
            raise UsageError(f"{facts.no_copies} Keep a copy for yourself with --private true")


def publication_of(args: PublishArguments) -> tuple[Publication, Path]:
    """Everything that would be sent, checked; and the folder that holds the model.

    Raises:
        UsageError: a file that must not be published, a model that others could not open, or one that cannot be had as
            ONNX.
    """
    folder = Path(args.export_dir)
    extra, results, claim, figures, split = {}, None, None, None, None
    if (folder / "summary.json").exists():
        summary = json.loads((folder / "summary.json").read_text())
        # Not those of folds that are in the folder, but not in the figures.
        names = list(next(iter(summary["figures"].values()))["folds"])
        runs = {name: folder / f"fold_{name}" / "finetune" / "export" for name in names}
        runs = {name: path for name, path in runs.items() if path.is_dir()}
        fold = args.fold or next(iter(runs), None)
        if fold not in runs:
            raise UsageError(f"fold {fold!r} has no export in {folder}; allowed are {', '.join(runs) or 'none'}")
        extra = {name: folder / name for name in ("summary.json", "curves.png") if (folder / name).exists()}
        for file in extra.values():
            refuse_secret_name(file, folder)
            refuse_secret_text(file)
        ran = f"one of the {len(names)} folds that were run" if len(names) > 1 else "the only one that was run"
        curves = "\n![Curves of all folds](curves.png)" if "curves.png" in extra else ""
        results = (
            f"## Results of the cross-validation\n\nThis is the classifier of fold {fold}, {ran}; the figures (those "
            "of the metadata too) are of all of these, each tested on its own part.\n\n"
            f"{summary_markdown(summary)}{curves}"
        )
        shown = shown_figures(summary["figures"], summary["classes"], summary["positive_classes"])
        figures = {name: summary["figures"][name]["pooled"]["value"] for name in shown}
        split = f"test parts of {len(names)} folds"
        claim = what_it_tells(summary["classes"], summary, f"on the {split}", fold)
        folder = runs[fold]
    elif args.fold is not None:
        raise UsageError(f"fold is for the output of cross_validate.py, and {folder} holds no summary.json")
    files, left_out = files_of(folder)
    if args.repo_type == "model":
        check_model(folder, files)
    elif "README.md" not in files:
        raise UsageError(f"{folder} holds no README.md, the card of a {args.repo_type}")
    elif args.repo_type == "dataset" and not any(name.endswith(".parquet") for name in files):
        raise UsageError(f"{folder} holds no Parquet file: export_dir is the output folder of prepare_corpus.py")
    card = files["README.md"].read_text(encoding="utf-8")
    if args.repo_type == "space":
        files |= _beside_the_space(folder)
        if folder.resolve().is_relative_to(ROOT):  # as it is called here, in the example of a metric module
            card = card.replace(folder.resolve().relative_to(ROOT).as_posix(), args.repo_id)
        files["README.md"] = card.encode()
    elif args.repo_type == "dataset":
        files["README.md"] = card.replace(DATA_ADDRESS, args.repo_id).replace(ADDRESS, args.repo_id).encode()
    else:
        metadata = {name: getattr(args, name) for name in FOR_THE_CARD}
        if figures is not None:
            metadata["eval_results"] = _over_folds(card, figures, split)
        card = render_card(card, args.repo_id, results, claim, **metadata)
        if args.onnx:
            from hub.onnx_model import card_with_onnx, onnx_model  # few ask for it, and it takes seconds

            extra[ONNX_FILE] = onnx_model(folder)
            card = card_with_onnx(card, folder, args.repo_id)
        files["README.md"] = card.encode()
    publication = Publication(
        Path(args.export_dir),
        args.repo_id,
        args.repo_type,
        files | extra,
        left_out,
        **{name: getattr(args, name) for name in SENT_AS_GIVEN},
    )
    return publication, folder


def _over_folds(card: str, figures: dict[str, float], split: str) -> list[EvalResult] | None:
    old = ModelCard(card).data.eval_results
    return eval_results(old[0].dataset_name, old[0].dataset_type, figures, split) if old else None


def _beside_the_space(folder: Path) -> dict[str, Path]:
    """Files of this repository that the space needs beside it: lines of files.txt, relative to the repository."""
    listed = folder / "files.txt"
    if not listed.exists():
        return {}
    found = {}
    for line in listed.read_text().split():
        source = ROOT / line
        if not source.exists():
            raise UsageError(f"{listed} names {line}, which is not in {ROOT}")
        # recipes/ is left out of the names: it is first on the path of the recipes, as the Space's root is there
        for file in sorted(source.glob("*.py")) if source.is_dir() else [source]:
            found[file.relative_to(ROOT).as_posix().removeprefix("recipes/")] = file
    return found


def with_export(publication: Publication) -> Publication:
    """The publication, with the files that its folder, the export of a run, holds now.

    Raises:
        UsageError: a file that must not be published, or a model that others could not open.
    """
    files, left_out = files_of(publication.folder)
    check_model(publication.folder, files)
    files |= {"README.md": render_card(text_of(files["README.md"]), publication.repo_id).encode()}
    return replace(publication, files=files, left_out=left_out)
