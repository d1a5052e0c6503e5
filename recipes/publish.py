"""Publish an export on the Hugging Face Hub: one commit, a tag, and loaded back in a fresh process.

    python recipes/publish.py --export_dir runs/busi/texture/export --repo_id ORG/glcm-mae-busi --dry_run true
    python recipes/publish.py --export_dir runs/busi/texture/export --repo_id ORG/glcm-mae-busi

`--export_dir` is the export/ of pretrain.py or finetune.py, or the output of cross_validate.py, of which one fold's
classifier is published with the figures of all. With `--repo_type space` it is a folder of hub_cards/ or
recipes/metrics/. Interrupted, the same command goes on. Log in first with `hf auth login`, or set HF_TOKEN.
"""

import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import EvalResult

from recipe_args import UsageError, option, parse_args
from recipe_export import eval_results
from recipe_hub import Publication, check_model, check_repo_id, files_of, publish, render_card, shown, verify
from recipe_summary import summary_markdown

logger = logging.getLogger("publish")
ROOT = Path(__file__).resolve().parent.parent


@dataclass
class PublishArguments:
    """What is published, and where."""

    export_dir: str | None = option(None, "An export, the output of cross_validate.py, or the folder of a space.")
    repo_id: str | None = option(None, "OWNER/NAME.")
    repo_type: str = option("model", "model, or space (the demo; a metric module).")
    dry_run: bool = option(False, "Show the files and the card, and send nothing.")
    private: bool = option(False, "To a private repository.")
    gated: str | None = option(None, "auto or manual: people ask for access, which is given at once or by you.")
    revision: str = option("main", "Branch to commit to; created if needed.")
    tag: str | None = option(None, "Tag of the commit; the next of v1, v2, ... if left out.")
    create_pr: bool = option(False, "Propose the commit as a pull request to the existing repository; no tag.")
    license: str | None = option(None, "Licence of the weights for the card, as the Hub spells it: cc-by-4.0.")
    base_model: str | None = option(None, "Hub id of the model it was trained from, for the card.")
    datasets: list[str] | None = field(default=None, metadata={"help": "Hub ids of its data sets, for the card."})
    collection: str | None = option(None, "Title of a collection of the same owner that lists the repository.")
    fold: str | None = option(None, "Which fold's classifier, of a cross-validation; the first if left out.")

    def __post_init__(self):
        if self.export_dir is None or self.repo_id is None:
            raise UsageError("export_dir and repo_id are needed")
        check_repo_id(self.repo_id)
        for name, allowed in (("repo_type", ("model", "space")), ("gated", (None, "auto", "manual"))):
            if getattr(self, name) not in allowed:
                names = ", ".join(str(value) for value in allowed if value)
                raise UsageError(f"{name} must be one of {names}, got {getattr(self, name)!r}")
        if not Path(self.export_dir).is_dir():
            raise UsageError(f"export_dir {self.export_dir!r} is no folder")
        if self.create_pr and (self.tag or self.revision != "main"):
            raise UsageError("create_pr takes no tag and no revision: it proposes a commit to main")


def publication_of(args: PublishArguments) -> tuple[Publication, Path]:
    """Everything that would be sent, checked; and the folder that holds the model.

    Raises:
        UsageError: a file that must not be published, or a model that others could not open.
    """
    folder = Path(args.export_dir)
    extra, results, figures = {}, None, None
    if (folder / "summary.json").exists():
        runs = {path.parent.parent.name.removeprefix("fold_"): path for path in folder.glob("fold_*/finetune/export")}
        fold = args.fold or min(runs, default=None)
        if fold not in runs:
            raise UsageError(f"fold {fold!r} has no export in {folder}; allowed are {', '.join(sorted(runs))}")
        summary = json.loads((folder / "summary.json").read_text())
        extra = {name: folder / name for name in ("summary.json", "curves.png") if (folder / name).exists()}
        results = (
            f"## Results of the cross-validation\n\nThis is the classifier of fold {fold} of {len(runs)}; the figures "
            f"are of all folds, each tested on its own part.\n\n{summary_markdown(summary)}"
            f"{'![Curves of all folds](curves.png)' if 'curves.png' in extra else ''}"
        )
        figures = {name: found["pooled"]["value"] for name, found in summary["figures"].items()}
        folder = runs[fold]
    elif args.fold is not None:
        raise UsageError(f"fold is for the output of cross_validate.py, and {folder} holds no summary.json")
    files, left_out = files_of(folder)
    if args.repo_type == "space":
        files |= _beside_the_space(folder)
        if "README.md" not in files:
            raise UsageError(f"{folder} holds no README.md, which tells the Hub how to run the space")
    else:
        check_model(folder, files)
        card = files["README.md"].read_text(encoding="utf-8")
        metadata = {name: getattr(args, name) for name in ("license", "base_model", "datasets")}
        if figures is not None:
            metadata["eval_results"] = _over_folds(card, figures)
        files["README.md"] = render_card(card, args.repo_id, results, **metadata).encode()
    publication = Publication(
        Path(args.export_dir),
        args.repo_id,
        args.repo_type,
        files | extra,
        left_out,
        **{name: getattr(args, name) for name in ("private", "gated", "revision", "tag", "create_pr", "collection")},
    )
    return publication, folder


def _over_folds(card: str, figures: dict[str, float]) -> list[EvalResult] | None:
    from huggingface_hub import ModelCard

    old = ModelCard(card).data.eval_results
    return eval_results(old[0].dataset_name, old[0].dataset_type, figures) if old else None


def _beside_the_space(folder: Path) -> dict[str, Path]:
    """Files of this repository that the space needs beside it: lines of files.txt, relative to the repository."""
    listed = folder / "files.txt"
    if not listed.exists():
        return {}
    found = {}
    for line in listed.read_text().split():
        source = ROOT / line
        if source.is_dir():
            found |= {f"{source.name}/{file.name}": file for file in sorted(source.glob("*.py"))}
        elif source.is_file():
            found[source.name] = source
        else:
            raise UsageError(f"{listed} names {line}, which is not in {ROOT}")
    return found


def main(argv: Sequence[str] | None = None) -> None:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    try:
        (args,) = parse_args((PublishArguments,), argv, description=__doc__)
        publication, folder = publication_of(args)
        if args.dry_run:
            print("\n".join(shown(publication)))
            return
        for name, reason in publication.left_out.items():
            logger.info("left out %s: %s", name, reason)
        done = publish(publication, f"{folder.name if args.repo_type == 'space' else 'Model'}, published with GLCM-MAE")
        for name, value in done.items():
            print(f"{name:<12} {value}")
        if args.repo_type == "model":
            for line in verify(publication, done["commit"], folder):
                print(f"verified     {line}")
    except (ValueError, OSError) as error:
        logger.debug("where it was found", exc_info=True)
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
