"""What can be asked of cross_validate.py: a field is an option and a key of a YAML file."""

from dataclasses import dataclass, field

from commandline import UsageError, check_repo_id, option

TEXTURE_FEATURES = "texture_features"  # the mode of cross_validate.py, and the folder of a fold
MODES = ("finetune", TEXTURE_FEATURES)
# What a network needs, and a logistic regression on texture features has not.
OF_NETWORKS = ("pretrain_config", "pretrain_options", "checkpoint", "finetune_config", "finetune_options")


@dataclass
class CrossValidationArguments:
    """What is run on which folds."""

    corpus: str | None = option(None, "Output folder of prepare_corpus.py.")
    output_dir: str | None = option(None, "Receives everything.")
    mode: str = option(
        MODES[0],
        "finetune: networks, by pretrain.py and finetune.py. texture_features: no network, but a logistic regression "
        "on co-occurrence features of each image and of its tiles; minutes on a CPU.",
    )
    class_weights: str | None = option(
        None, "For mode texture_features: none, or balanced, by which a class weighs 1 / its frequency."
    )
    labelled_groups: int | None = option(
        None, "For mode texture_features: train on so many groups (patients) of each training part, as in finetune.py."
    )
    folds: list[str] | None = field(
        default=None, metadata={"help": "Folds to run: numbers, or official. All numbered folds if left out."}
    )
    splits_file: str | None = option(None, "Splits; splits.json of the corpus if left out.")
    pretrain_config: str | None = option(None, "YAML of pretrain.py: pretrain in every fold.")
    pretrain_options: list[str] | None = field(
        default=None,
        metadata={"help": "More options of pretrain.py, as NAME=VALUE; several values by several entries."},
    )
    checkpoint: str | None = option(
        None, "Encoder to start from instead; {fold} is replaced by the fold. With neither, from nothing."
    )
    finetune_config: str | None = option(None, "YAML of finetune.py.")
    finetune_options: list[str] | None = field(
        default=None, metadata={"help": "More options of finetune.py, likewise."}
    )
    positive_classes: list[str] | None = field(
        default=None, metadata={"help": "Classes that count as positive; finetune_config's if left out."}
    )
    jobs: int = option(1, "Folds at once; with several GPUs each takes one.")
    seed: int = option(0, "Of the bootstrap.")
    push_to_hub: bool = option(False, "Publish the first fold's classifier with the figures of all.")
    hub_model_id: str | None = option(None, "OWNER/NAME, for push_to_hub.")
    hub_private_repo: bool = option(False, "To a private repository.")

    def __post_init__(self):
        if self.corpus is None or self.output_dir is None:
            raise UsageError("corpus and output_dir are needed")
        self._check_mode()
        if self.pretrain_config is not None and self.checkpoint is not None:
            raise UsageError("give pretrain_config or checkpoint, not both")
        if self.pretrain_options and self.pretrain_config is None:
            raise UsageError("pretrain_options needs pretrain_config")
        if self.push_to_hub:
            check_repo_id(self.hub_model_id, "hub_model_id")
        if self.jobs < 1:
            raise UsageError(f"jobs must be at least 1, got {self.jobs}")
        for name in ("pretrain_options", "finetune_options"):
            pairs = [entry.partition("=") for entry in getattr(self, name) or ()]
            wrong = [key for key, sign, _ in pairs if not sign]
            if wrong:
                raise UsageError(f"{name} must be NAME=VALUE, got {wrong[0]!r}")
            # The recipes take both spellings; what is looked up or joined here is known by one.
            setattr(self, name, [key.replace("-", "_") + sign + value for key, sign, value in pairs] or None)

    def _check_mode(self) -> None:
        if self.mode not in MODES:
            raise UsageError(
                f"mode must be one of {', '.join(MODES)}, got {self.mode!r}; another mode of finetune.py is given as "
                "finetune_options: mode=linear_probe"
            )
        if self.mode == TEXTURE_FEATURES:
            given = [name for name in OF_NETWORKS if getattr(self, name)] + ["jobs"] * (self.jobs > 1)
            if given:
                raise UsageError(f"mode {self.mode} trains no network: leave out {', '.join(given)}")
            if self.push_to_hub:
                raise UsageError(f"push_to_hub: there is no model to publish in mode {self.mode}")
            self.class_weights = self.class_weights or "none"
        else:
            for name in ("class_weights", "labelled_groups"):
                if getattr(self, name) is not None:
                    raise UsageError(
                        f"{name} is for mode {TEXTURE_FEATURES}; of a fine-tuning, give it as finetune_options: "
                        f"{name}={getattr(self, name)}"
                    )
        if self.class_weights not in (None, "none", "balanced"):
            raise UsageError(f"class_weights must be none or balanced, got {self.class_weights!r}")


@dataclass
class CompareArguments:
    """How runs of this script are compared."""

    output_dir: str | None = option(None, "Receives comparison.json, comparison.md and comparison.png.")
    baseline: str | None = option(None, "The run that the others are held against; the last one if left out.")
    positive_classes: list[str] | None = field(
        default=None, metadata={"help": "Classes that are collapsed against the others; the runs' if left out."}
    )
    seed: int = option(0, "Of the bootstrap.")
