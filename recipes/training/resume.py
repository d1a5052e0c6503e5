"""An earlier run in the same folder: gone on with if it is the same training, else kept or deleted as was asked for."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from transformers import TrainingArguments

from commandline import UsageError
from output_folder import delete, replaced_file

logger = logging.getLogger(__name__)

# What may change in a resume, by section of config.yaml. Whatever is not named here must stay: with another setting it
# would not be the same training.
MAY_CHANGE: dict[str, frozenset[str]] = {
    # The weights are those of the checkpoint, and the images are known by their contents.
    # Calibration comes after the training.
    "model": frozenset({"model_name_or_path", "model_revision", "model_subfolder", "prior_correction", "calibrate"}),
    "data": frozenset(
        {"corpus", "unlabelled_corpus", "unlabelled_folds", "data_dir", "splits_file", "bad_images", "verify_data"}
    ),
    "model_config": frozenset({"_name_or_path", "architectures", "dtype", "transformers_version"}),
    "derived": frozenset({"world_size", "skipped_images"}),
    "training": frozenset(
        {
            *("output_dir", "overwrite_output_dir", "resume_from_checkpoint", "dry_run"),
            # judged by what follows from them: learning_rate, effective_batch_size, mixed_precision
            *("base_learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps", "train_batch_size"),
            *("bf16", "fp16"),
            # devices, memory and speed
            *("use_cpu", "local_rank", "ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers"),
            *("ddp_static_graph", "ddp_backend", "ddp_timeout", "fsdp", "fsdp_config", "parallelism_config"),
            *("gradient_checkpointing", "gradient_checkpointing_kwargs", "activation_checkpointing"),
            *("activation_checkpointing_kwargs", "torch_compile", "torch_compile_backend", "torch_compile_mode"),
            *("torch_empty_cache_steps", "per_device_eval_batch_size", "eval_batch_size", "eval_accumulation_steps"),
            *("dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers"),
            *("dataloader_prefetch_factor", "dataloader_multiprocessing_context", "skip_memory_metrics"),
            # what is shown, kept and published
            *("logging_strategy", "logging_steps", "logging_first_step", "log_on_each_node", "log_level"),
            *("log_level_replica", "disable_tqdm", "report_to", "run_name", "project", "trackio_space_id"),
            *("trackio_bucket_id", "trackio_static_space_id", "include_num_input_tokens_seen", "debug"),
            *("save_total_limit", "save_on_each_node", "enable_jit_checkpoint", "push_to_hub", "hub_token"),
            *("hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push", "hub_revision"),
        }
    ),
}


def checkpoint_to_resume(
    args: TrainingArguments, written: Sequence[str], sources: Sequence[str | None] = ()
) -> Path | None:
    """The checkpoint to resume from; `None` for a new run, after making sure that it overwrites no other.

    Args:
        args: with `overwrite_output_dir` beside the fields of `TrainingArguments`.
        written: what a run leaves in its output_dir, besides checkpoints.
        sources: what the run reads, where these are paths.

    Raises:
        UsageError: there is no whole checkpoint to resume from, or an earlier run that would be overwritten, or a
            source that would be deleted with it, or something in the way that is not of a run.
    """
    folder = Path(args.output_dir)
    whole = whole_checkpoints(folder)
    if not earlier_run(folder, written):
        _refuse_names_in_the_way(folder, written)
    if args.resume_from_checkpoint is not None:
        if args.resume_from_checkpoint != "last":
            checkpoint = Path(args.resume_from_checkpoint)
            if step_of(checkpoint) is None:
                raise UsageError(f"resume_from_checkpoint: {checkpoint} is not a whole checkpoint of this recipe")
            if checkpoint.resolve().parent != folder.resolve():
                # A resume of that checkpoint that was killed before its first own one may be repeated.
                kept = whole or any((folder / name).exists() for name in ("all_results.json", "export"))
                if kept and not args.overwrite_output_dir:
                    raise UsageError(
                        f"output_dir {folder} holds an earlier run, and not that of {checkpoint}: give another "
                        "--output_dir, or pass --overwrite_output_dir to delete it"
                    )
                _refuse_to_delete(folder, written, (*sources, str(checkpoint)))
            return checkpoint
        if not whole:
            raise UsageError(f"resume_from_checkpoint: {folder} holds no whole checkpoint to resume from")
        return max(whole, key=step_of)
    if earlier_run(folder, written) and not args.overwrite_output_dir:
        raise UsageError(
            f"output_dir {folder} holds an earlier run: pass --resume_from_checkpoint last to go on with it, "
            "--overwrite_output_dir to delete it, or another --output_dir"
        )
    _refuse_to_delete(folder, written, sources)
    return None


def _refuse_names_in_the_way(folder: Path, written: Sequence[str]) -> None:
    """What is called like ours in a folder without a run is somebody's: it is neither a run's nor ours to delete."""
    there = [folder / name for name in written if (folder / name).exists()]
    found = [path.name for path in there if not path.is_dir() or any(path.iterdir())]
    if found:
        raise UsageError(
            f"output_dir {folder} holds {', '.join(found)}, but neither the config.yaml of a run nor a checkpoint, so "
            "this is not of an earlier run: move it away, or give another --output_dir"
        )


def _refuse_to_delete(folder: Path, written: Sequence[str], sources: Sequence[str | None]) -> None:
    deleted = [path.resolve() for path in earlier_run(folder, written)]
    for source in filter(None, sources):
        path = Path(source).expanduser().resolve()
        if deleted and (path == folder.resolve() or any(path.is_relative_to(other) for other in deleted)):
            raise UsageError(f"output_dir {folder} holds {source}, which would be deleted: give another --output_dir")


def as_told_now(
    stored: dict[str, dict[str, Any]], now: dict[str, dict[str, Any]]
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Settings of two runs, the first maybe of an earlier version, with what that named otherwise or left out.

    Args:
        stored, now: what config.yaml holds, by section; not changed.
    """
    stored, now = ({name: dict(section) for name, section in given.items()} for given in (stored, now))
    # Until the launcher's precision was written down, all that is known is what was asked for by option.
    asked = next((name for name in ("bf16", "fp16") if stored["training"].get(name)), "no")
    stored["derived"].setdefault("mixed_precision", asked)
    # The macro mean of a figure was once named as that of two classes.
    chosen = now["training"].get("metric_for_best_model")
    if chosen == f"eval_macro_{str(stored['training'].get('metric_for_best_model')).removeprefix('eval_')}":
        stored["training"]["metric_for_best_model"] = chosen
    # A pretraining once kept the digest of its file names as train_images_sha256.
    if "train_file_names_sha256" in now["derived"] and "train_images_sha256" in stored["derived"]:
        stored["derived"]["train_file_names_sha256"] = stored["derived"].pop("train_images_sha256")
    # Without a head, a model's configuration does not name it.
    if "model_config" in stored and "model_config" in now:
        for settings in (stored, now):
            for weight in ("glcm_head_weight", "glcm_cls_weight"):
                settings["model_config"].setdefault(weight, 0.0)
    # Before there was a choice, no prior was corrected.
    for settings in (stored, now):
        if "calibrate" in settings.get("model", {}):
            settings["model"].setdefault("prior_correction", False)
    return stored, now


def refuse_another_training(
    checkpoint: Path, resolved: dict[str, dict[str, Any]], may_change: dict[str, frozenset[str]]
) -> None:
    """Refuse a resume that would not go on with the training that wrote the checkpoint.

    Settings that its config.yaml does not tell, because another version wrote it, are named in a warning.

    Args:
        checkpoint: config.yaml of its run lies beside it.
        resolved: what config.yaml would hold now, by section.
        may_change: names that are not compared, by section.

    Raises:
        UsageError: config.yaml is missing, or a setting differs; names it, what it must be, and what it is.
    """
    file = checkpoint.parent / "config.yaml"
    try:
        stored = yaml.safe_load(file.read_text())
    except OSError as error:
        raise UsageError(f"resume_from_checkpoint: {file}, which tells how the run began: {error.strerror}") from error
    if not isinstance(stored, dict) or not isinstance(stored.get("training"), dict) or not stored.get("derived"):
        raise UsageError(f"resume_from_checkpoint: {file} does not tell how the run began")
    if stored["training"].get("save_only_model"):
        raise UsageError(f"resume_from_checkpoint: {checkpoint} was saved with save_only_model, without the optimiser")
    stored, resolved = as_told_now(stored, resolved)
    untold = []
    first = {"model": 0, "derived": 1}  # what others follow from
    for section in sorted(resolved, key=lambda section: first.get(section, len(first))):
        if section not in stored:
            untold.append(f"the section {section}")
            continue
        allowed = may_change.get(section, frozenset())
        if section == "derived" and stored["derived"].get("train_contents_sha256"):
            allowed |= {"train_images_sha256", "train_file_names_sha256"}  # known by more than these
        before, now = stored[section], resolved[section]
        untold += sorted((before.keys() ^ now.keys()) - allowed)
        for name in (name for name in now if name in before):
            old, new = before[name], now[name]
            if name == "model_name_or_path":  # the list of images that were seen goes on from there
                changed = (old is None) != (new is None)
            else:
                changed = name not in allowed and old != new
            if changed:
                option = {"no": "--bf16 false", "bf16": "--bf16 true", "fp16": "--fp16 true"}
                chosen = f" ({option[old]}, or the launcher)" if name == "mixed_precision" and old in option else ""
                raise UsageError(
                    f"resume_from_checkpoint: {name} must stay {old} as in the first part of the run, got {new}{chosen}"
                    ". To train on with other settings or images, start a new run from --model_name_or_path "
                    f"{checkpoint}"
                )
    # transformers holds a fraction (save_steps 0.1) against the steps that it came to, and so warns of every resume.
    # What it warns of is compared above, or holds as it is told now (StepsAsToldNow).
    logging.getLogger("transformers.trainer_utils").addFilter(_not_of_arguments)
    if untold:
        logger.warning(
            "%s was written by another version, which does not tell or know %s: these are not compared",
            *(file, ", ".join(untold)),
        )


def _not_of_arguments(record: logging.LogRecord) -> bool:
    return "do not match the ones in the `trainer_state.json`" not in record.getMessage()


def begin_run(output_dir: Path, written: Sequence[str], checkpoint: Path | None, resolved: dict[str, Any]) -> None:
    """Delete what an earlier run left, unless its own checkpoint is resumed, and write config.yaml.

    Called when nothing can be wrong any more with what was asked for.
    """
    if checkpoint is None or checkpoint.resolve().parent != output_dir.resolve():
        for path in earlier_run(output_dir, written):
            if path.name != "config.yaml":  # replaced below: until then it tells that a run was here
                delete(path)
    output_dir.mkdir(parents=True, exist_ok=True)
    with replaced_file(output_dir / "config.yaml") as new:  # a resume reads it, also after a kill at this place
        new.write_text(yaml.safe_dump(resolved, sort_keys=False))


def earlier_run(folder: Path, written: Sequence[str]) -> list[Path]:
    """What an earlier run left in its output_dir; nothing without the config.yaml of a run or a checkpoint."""
    checkpoints = _checkpoints(folder)
    if not checkpoints and not _is_of_a_run(folder / "config.yaml"):
        return []
    return [folder / name for name in written if (folder / name).exists()] + checkpoints


def _is_of_a_run(config: Path) -> bool:
    # Not any config.yaml: prepare_corpus.py and embed.py write one too, and people's options lie in such files.
    try:
        stored = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return False
    return isinstance(stored, dict) and isinstance(stored.get("training"), dict)


def _checkpoints(folder: Path) -> list[Path]:
    # Not all of checkpoint-*: somebody may have put checkpoint-notes.txt there.
    return [path for path in folder.glob("checkpoint-*") if path.is_dir() and path.name[11:].isdecimal()]


def whole_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints that can be resumed from."""
    # Its trainer_state.json is written last: without a whole one, the run was killed while saving.
    return [checkpoint for checkpoint in _checkpoints(folder) if step_of(checkpoint) is not None]


def step_of(checkpoint: Path) -> int | None:
    """The step that a checkpoint is of; `None` of one that is not whole."""
    try:
        return json.loads((checkpoint / "trainer_state.json").read_text())["global_step"]
    except (OSError, ValueError, KeyError):
        return None


def best_checkpoint(checkpoint: Path) -> Path | None:
    """The checkpoint that was the best on validation when this one was saved; `None` if there was none yet.

    Raises:
        UsageError: it is gone.
    """
    stored = json.loads((checkpoint / "trainer_state.json").read_text()).get("best_model_checkpoint")
    if stored is None:
        return None
    # Stored is the path as it was typed: the folder may have been moved since, and another may lie there now.
    beside = checkpoint.parent / Path(stored).name
    found = next((path for path in (beside, Path(stored)) if step_of(path) is not None), None)
    if found is None:
        raise UsageError(
            f"resume_from_checkpoint: the best checkpoint before {checkpoint}, which may have to be exported, is "
            f"neither {beside} nor {stored}: put it back, or start a new run from --model_name_or_path {checkpoint}"
        )
    return found
