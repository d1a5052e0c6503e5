"""The settings of a cross-validation: what its folds have in common, and whether it is what it was."""

import hashlib
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import yaml

from commandline import UsageError, nearest
from training.arguments import FINETUNING, PRETRAINING
from training.fold_options import MODES, OF_NETWORKS, CrossValidationArguments
from training.pretraining import ALSO_MAY_CHANGE
from training.resume import MAY_CHANGE, as_told_now, whole_checkpoints

NOT_OF_THE_FOLDS = ("jobs", "output_dir", "seed", "push_to_hub", "hub_model_id", "hub_private_repo")
# Options of the recipes that are set for each fold, with the option of cross_validate.py that decides, if there is one.
SET_HERE = {name: name for name in ("corpus", "splits_file", "output_dir", "positive_classes")}
SET_HERE |= {name: name for name in ("push_to_hub", "hub_model_id", "hub_private_repo")}
SET_HERE |= {"fold": "folds", "dry_run": None, "resume_from_checkpoint": None, "overwrite_output_dir": None}

# Options of several values.
LISTS = {
    found.name
    for arguments in (*PRETRAINING, *FINETUNING)
    for found in fields(arguments)
    if str(found.type).startswith("list")
}

NOT_TOLD = "not told"
# By step and section of config.yaml, what folds need not have in common: what a resume may change, but for what the
# answers are changed by afterwards, and for the length, whose other measure is of a fold's own images.
OF_A_FOLD = {
    "finetune": MAY_CHANGE
    | {"model": MAY_CHANGE["model"] - {"prior_correction", "calibrate"}, "data": MAY_CHANGE["data"] | {"fold"}},
    "pretrain": MAY_CHANGE
    | {
        "model": ALSO_MAY_CHANGE["model"],  # as it is resolved, it stands in model_config
        "data": MAY_CHANGE["data"] | {"fold"},
        "training": MAY_CHANGE["training"] | ALSO_MAY_CHANGE["training"] - {"num_train_epochs", "max_steps"},
    },
}
# Of what follows from the settings: the rest tells which images a fold has.
OF_ALL_FOLDS = ("effective_batch_size", "mixed_precision", "transform", "white_level")


def refuse_options(args: CrossValidationArguments) -> None:
    """See that the recipes have the options of `pretrain_options` and `finetune_options`, and that they are free.

    Raises:
        UsageError: one has not, or it is set here for each fold; names it.
    """
    encoder = next((name for name in ("pretrain_config", "checkpoint") if getattr(args, name) is not None), None)
    for name, arguments in (("pretrain_options", PRETRAINING), ("finetune_options", FINETUNING)):
        known = {found.name for kind in arguments for found in fields(kind)}
        for entry in getattr(args, name) or ():
            option = entry.split("=", 1)[0]
            if option not in known:
                raise UsageError(f"{name}: {name.split('_')[0]}.py has no option {option}{nearest(option, known)}")
            taken = SET_HERE | ({"model_name_or_path": encoder} if encoder and name == "finetune_options" else {})
            if option in taken:
                instead = f", by --{taken[option]}" if taken[option] else ""
                raise UsageError(f"{name}: {option} is set by cross_validate.py for each fold{instead}: leave it out")


def settings_of(args: CrossValidationArguments, folds: list[str]) -> dict[str, Any]:
    """What must be the same in all folds; with the contents of the configurations."""
    settings = {name: value for name, value in asdict(args).items() if name not in NOT_OF_THE_FOLDS}
    for name in ("pretrain_config", "finetune_config"):
        file = getattr(args, name)
        if file is not None:
            try:
                settings[f"{name}_content"] = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
            except OSError as error:
                raise UsageError(f"{name} {file}: {error.strerror}") from error
    settings["checkpoint_sha256"] = _weights(args, folds, settings.get("finetune_config_content"))
    return settings


def _weights(
    args: CrossValidationArguments, folds: list[str], config: dict[str, Any] | None
) -> dict[str, dict[str, str]]:
    """SHA-256 of the files of weights, by name, of every encoder that is a folder here, by its path.

    Those on the Hub are known by their name, and by a `model_revision` among the options of the fine-tuning.
    """
    given = (config or {}) | dict(entry.split("=", 1) for entry in args.finetune_options or ())
    paths = {args.checkpoint.replace("{fold}", fold) for fold in folds} if args.checkpoint else ()
    found = {path: sorted(Path(path, given.get("model_subfolder") or "").glob("*.safetensors")) for path in paths}
    return {path: {file.name: _sha256(file) for file in files} for path, files in sorted(found.items()) if files}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def keep_settings(settings: dict[str, Any], output: Path) -> None:
    """Write config.yaml; refuse to mix folds of different settings in one folder."""
    stored_file = output / "config.yaml"
    if stored_file.exists():
        stored = {"mode": MODES[0]} | yaml.safe_load(stored_file.read_text())  # an earlier version knew one mode
        free = ("folds", "checkpoint_sha256")
        compared = {name: (stored.get(name), now) for name, now in settings.items() if name not in free}
        for name in ("pretrain_options", "finetune_options"):
            compared[name] = tuple(by_name(entries) for entries in compared[name])
        compared = {name: tuple(map(_without_nulls, both)) for name, both in compared.items()}
        changed = {name: _change(*both) for name, both in compared.items() if both[0] != both[1]}
        if "mode" in changed:  # these follow from it
            followers = {"class_weights", "texture_features", *OF_NETWORKS}
            changed = {
                name: change for name, change in changed.items() if name.removesuffix("_content") not in followers
            }
        # What the pretraining is not given may be corrected while nothing else has got anywhere.
        later = {"finetune_config", "finetune_config_content", "finetune_options", "positive_classes"}
        steps = output.glob("fold_*/[!p]*" if set(changed) <= later else "fold_*/*")
        begun = [step for step in steps if whole_checkpoints(step) or (step / "all_results.json").exists()]
        # The encoders of folds that have not begun may be made, or made anew, at any time.
        used = {
            (settings["checkpoint"] or "").replace("{fold}", step.parent.name.removeprefix("fold_")) for step in begun
        }
        before, now = stored.get("checkpoint_sha256") or {}, settings["checkpoint_sha256"]
        replaced = [path for path in now if path in used and before.get(path, now[path]) != now[path]]
        told = [f"{name} ({change})" for name, change in changed.items()]
        told += [f"checkpoint (the weights in {path} were replaced)" for path in replaced]
        if told and begun:
            raise UsageError(
                f"output_dir {output} holds folds that were run with another {', '.join(told)}: take another one"
            )
        settings["checkpoint_sha256"] = before | now
    output.mkdir(parents=True, exist_ok=True)
    stored_file.write_text(yaml.safe_dump(settings, sort_keys=False))


def by_name(entries: list[str] | None) -> dict[str, list[str]]:
    """Values of entries NAME=VALUE: of a name that is given several times the last, of a list all of them."""
    values: dict[str, list[str]] = {}
    for name, value in (entry.split("=", 1) for entry in entries or ()):
        values[name] = [*(values.get(name, []) if name in LISTS else []), value]
    return values


def _without_nulls(value: Any) -> Any:
    """A mapping without what is null in it, which is as if it were left out; null where nothing is left."""
    if not isinstance(value, dict):
        return value
    return {name: found for name, found in value.items() if found is not None} or None


def _change(before: Any, now: Any) -> str:
    """What changed in a setting, with both values: of a mapping, the entries that did."""
    if not all(isinstance(value, dict) or value is None for value in (before, now)):
        values = ([] if value is None else value if isinstance(value, list) else [value] for value in (before, now))
        there, here = (" ".join(map(str, value)) or "not given" for value in values)
        return f"{there} there, {here} here"
    before, now = before or {}, now or {}
    names = [name for name in before | now if before.get(name) != now.get(name)]
    return "; ".join(f"{name} {_change(before.get(name), now.get(name))}" for name in names)


def settings_that_differ(folders: dict[str, Path], step: str) -> dict[str, dict[str, str]]:
    """How folds of one cross-validation were trained unlike each other, as by versions of other defaults.

    Args:
        folders: of each fold, by its name, that of the training; one without config.yaml is left out.
        step: pretrain or finetune.

    Returns:
        For each setting that is not the same in all: its value by fold, `NOT_TOLD` where config.yaml does not hold it.
    """
    files = {fold: folder / "config.yaml" for fold, folder in folders.items()}
    stored = {fold: yaml.safe_load(file.read_text()) for fold, file in files.items() if file.is_file()}
    stored = {fold: found for fold, found in stored.items() if found.get("training") and found.get("derived")}
    found: dict[str, dict[str, Any]] = {}
    for fold, settings in stored.items():
        settings, _ = as_told_now(settings, stored[list(stored)[-1]])
        for section in ("model", "data", "model_config", "training", "derived"):
            for name, value in (settings.get(section) or {}).items():
                if name in OF_ALL_FOLDS if section == "derived" else name not in OF_A_FOLD[step][section]:
                    found.setdefault(name, {})[fold] = str(value)  # of a number and its text, the same
    every = {name: {fold: values.get(fold, NOT_TOLD) for fold in stored} for name, values in found.items()}
    # An option that one does not know and another leaves out is no difference.
    return {name: of for name, of in every.items() if len({v.replace(NOT_TOLD, "None") for v in of.values()}) > 1}
