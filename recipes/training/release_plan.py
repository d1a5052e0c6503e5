"""What a release consists of: its corpora, what is typed for each, and what each gives to the Hub."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from commandline import UsageError, check_repo_id, option, parse_args
from corpora import CORPORA, resolved
from corpora.facts import FACTS
from images.arguments import PrepareArguments

logger = logging.getLogger("release")
RECIPES = Path(__file__).resolve().parents[1]
OPTIONS = ("prepare_options", "pretrain_options", "finetune_options")


@dataclass
class ReleaseArguments:
    """What is released, and how it is trained."""

    org: str | None = option(None, "User or organisation on the Hub.")
    data_dir: str | None = option(None, "Holds a folder for each corpus, called as it is.")
    corpora: list[str] | None = field(default=None, metadata={"help": "Those that data_dir holds, if left out."})
    output_dir: str = option("runs/release", "Receives everything.")
    pretrain_config: str = option(str(RECIPES / "configs/{corpus}/pretrain_texture.yaml"), "YAML of pretrain.py.")
    finetune_config: str = option(str(RECIPES / "configs/{corpus}/finetune.yaml"), "YAML of finetune.py.")
    prepare_options: list[str] | None = field(default=None, metadata={"help": "Of prepare_corpus.py, as NAME=VALUE."})
    pretrain_options: list[str] | None = field(default=None, metadata={"help": "Of pretrain.py, as NAME=VALUE."})
    finetune_options: list[str] | None = field(default=None, metadata={"help": "Of finetune.py, as NAME=VALUE."})
    folds: list[str] | None = field(default=None, metadata={"help": "As in cross_validate.py; all if left out."})
    jobs: int = option(1, "Folds at once; with several GPUs each takes one.")
    prefix: str = option("glcm-mae", "Begins the names of the models.")
    collection: str = option("GLCM-MAE", "Title of the collection.")
    license: str | None = option(None, "Licence of the weights for their cards, as the Hub spells it.")
    private: bool = option(False, "To private repositories.")
    dry_run: bool = option(False, "Find what is wrong and show the plan; nothing is written.")

    def __post_init__(self):
        if self.org is None or self.data_dir is None:
            raise UsageError("org and data_dir are needed")
        check_repo_id(f"{self.org}/glcm-mae", "org")
        check_repo_id(f"org/{self.prefix}", "prefix")
        wrong = [entry for name in OPTIONS for entry in getattr(self, name) or () if "=" not in entry]
        if wrong:
            raise UsageError(f"{', '.join(OPTIONS)} must be NAME=VALUE, got {wrong[0]!r}")
        if self.jobs < 1:
            raise UsageError(f"jobs must be at least 1, got {self.jobs}")


class Corpus:
    """One of the corpora, with all that is to be typed for it; made, it is checked as far as its settings tell.

    Raises:
        UsageError: a folder is missing or holds something else, or an option is wrong.
    """

    def __init__(self, name: str, args: ReleaseArguments):
        from training.arguments import FINETUNING, PRETRAINING  # here: they need torch, and help does not

        self.name, self.download = name, Path(args.data_dir).expanduser() / name
        kind = resolved(name, self.download)
        if CORPORA[kind].find_root(self.download) is None:
            raise UsageError(f"data_dir: {self.download} is not a download of {name}, as recipes/README.md has them")
        output = Path(args.output_dir)
        self.data, self.run, self.fold = output / "data" / name, output / name, (args.folds or ["0"])[0]
        self.step = self.run / f"fold_{self.fold}"
        self.configs = [getattr(args, f"{step}_config").replace("{corpus}", name) for step in ("pretrain", "finetune")]
        prepare, pretrain, finetune = ([f"--{entry}" for entry in getattr(args, option) or ()] for option in OPTIONS)
        self.prepare = [*prepare, "--corpus", name, "--data_dir", str(self.download), "--output_dir", str(self.data)]
        of_fold = ["--corpus", str(self.data), "--fold", self.fold]
        last = ["--dry_run", "true", "--push_to_hub", "false"]
        self.pretrain = ["--config", self.configs[0], *pretrain, *of_fold, "--output_dir", str(self.step / "pretrain")]
        self.finetune = ["--config", self.configs[1], *finetune, *of_fold, "--output_dir", str(self.step / "finetune")]
        (self.preparation,) = parse_args((PrepareArguments,), self.prepare)
        if self.preparation.push_to_hub:
            raise UsageError("prepare_options: push_to_hub is done here, after all else")
        model, *_ = parse_args(PRETRAINING, [*self.pretrain, *last])
        sizes = {name: getattr(model, name) for name in ("image_size", "patch_size")}
        self.finetune += [text for name, value in sizes.items() if value for text in (f"--{name}", str(value))]
        parse_args(FINETUNING, [*self.finetune, *last])
        self.pretrain, self.finetune = self.pretrain + last, self.finetune + last

        facts = FACTS[kind]
        self.kept_back = facts.no_copies or ("" if facts.licence_id else "its licence is not known here")
        if kind == "covid_ct" and list(self.download.rglob("CT_NonCOVID")):
            self.kept_back = "the licence of COVID-CT is for its authors to tell"
        self._check_prepared(args.prepare_options)

    @property
    def prepared(self) -> bool:
        return (self.data / "splits.json").is_file()  # it comes with all the rest, once that is whole

    def _check_prepared(self, options: Sequence[str] | None) -> None:
        names = {entry.split("=")[0] for entry in options or ()} - {"salt", "table"}
        stored = yaml.safe_load((self.data / "config.yaml").read_text()) if self.prepared else {}
        asked = {name: getattr(self.preparation, name) for name in sorted(names & stored.keys())}
        changed = [f"{name} ({stored[name]} there, {now} here)" for name, now in asked.items() if now != stored[name]]
        if changed:
            raise UsageError(f"{self.data} was prepared with another {', '.join(changed)}: take another output_dir")

    def published(self, args: ReleaseArguments) -> list[dict[str, Any]]:
        """Arguments of publish.py, of everything that this corpus gives."""
        encoder, data_set = f"{args.org}/{args.prefix}-{self.name}", f"{args.org}/{self.name}"
        card = {"license": args.license, "datasets": None if self.kept_back else [data_set]}
        found = [] if self.kept_back else [{"export_dir": self.data, "repo_id": data_set, "repo_type": "dataset"}]
        found.append({"export_dir": self.step / "pretrain" / "export", "repo_id": encoder} | card)
        classifier = {"repo_id": f"{encoder}-classifier", "base_model": encoder, "fold": self.fold}
        return [*found, {"export_dir": self.run} | classifier | card]

    def state(self) -> list[str]:
        """What is done, a line each."""
        folds = len(list(self.run.glob("fold_*/finetune/all_results.json")))
        trained = f"{folds} fold(s) trained{', summed up' if (self.run / 'summary.json').is_file() else ''}"
        return [f"{self.data}  {'prepared' if self.prepared else 'to be prepared'}", f"{self.run}  {trained}"]


def corpora_of(args: ReleaseArguments) -> list[Corpus]:
    """Those that are asked for, else those that are there."""
    folder = Path(args.data_dir).expanduser()
    if not folder.is_dir():
        raise UsageError(f"data_dir {args.data_dir!r} is not a folder")
    known = [name for name in CORPORA if name != "folder"]
    names = args.corpora or [
        name
        for name in known
        if (folder / name).is_dir() and Path(args.pretrain_config.replace("{corpus}", name)).is_file()
    ]
    if not names:
        raise UsageError(f"data_dir {folder} holds no folder of a corpus that has configs: {', '.join(known)}")
    if not set(names) <= set(known) or len(set(names)) < len(names):
        raise UsageError(f"corpora must be different ones of {', '.join(known)}, got {' '.join(names)}")
    missing = [name for name in names if not (folder / name).is_dir()]
    if missing:
        raise UsageError(
            f"data_dir {folder} has no folder {', '.join(missing)}: put the download there, or leave it out of corpora"
        )
    logger.info("corpora: %s%s", ", ".join(names), "" if args.corpora else f", which {folder} holds")
    return [Corpus(name, args) for name in names]
