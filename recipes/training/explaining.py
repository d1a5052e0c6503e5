"""Heat maps: where a classifier looks, and where a texture surprises an autoencoder."""

import json
import logging
import re
from pathlib import Path

import matplotlib
import numpy as np
import torch
import yaml
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from matplotlib.figure import Figure
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoImageProcessor, PreTrainedConfig, PreTrainedModel

from commandline import UsageError
from hub.export import images_seen
from images.check import verify_by_processor
from images.chosen import images_to_show, spread
from images.looking import ExplainArguments
from images.splits import image_digests
from images.transform import transform_of_processor
from judging.overlay import attention_rollout, draw_overlay, in_lines, occlusion_map
from judging.surprise import draw_surprise
from modeling_glcm_mae import GLCMMAEForPreTraining, texture_surprise
from output_folder import WRITTEN_LIST, check_output, replaced_folder
from training.feeding import ImagesAsEvaluated, PretrainDataset
from training.models import CLASSIFIERS

logger = logging.getLogger("explain")
LEAST_FALL = 0.1  # of a probability, that is painted in full colour


def _classifier(args: ExplainArguments) -> PreTrainedModel:
    source = {"revision": args.model_revision}
    config = AutoConfig.from_pretrained(args.model_name_or_path, **source)
    known = {classifier.__name__: classifier for classifier in CLASSIFIERS.values()}
    name = (config.architectures or ["unknown"])[0]
    if name not in known:
        raise UsageError(
            f"model_name_or_path {args.model_name_or_path!r} is a {name}; method {args.method} takes a classifier "
            f"({', '.join(known)}), as finetune.py exports it; of an encoder of pretrain.py there is method surprise"
        )
    model, report = known[name].from_pretrained(
        args.model_name_or_path,
        attn_implementation="eager",  # no other implementation returns attention
        output_loading_info=True,
        **source,
    )
    if report["missing_keys"]:
        raise UsageError(f"model_name_or_path {args.model_name_or_path!r} lacks {', '.join(report['missing_keys'])}")
    names = list(model.config.id2label.values())
    if args.target is not None and args.target not in names:
        raise UsageError(f"target must be one of {', '.join(names)}, got {args.target!r}")
    return model


def _autoencoder(args: ExplainArguments) -> GLCMMAEForPreTraining:
    config, _ = PreTrainedConfig.get_config_dict(args.model_name_or_path, revision=args.model_revision)
    architecture = (config.get("architectures") or ["unknown"])[0]
    if architecture in {classifier.__name__ for classifier in CLASSIFIERS.values()}:
        raise UsageError(
            f"model_name_or_path {args.model_name_or_path!r} is a classifier ({architecture}): method surprise takes "
            "the encoder that pretrain.py exported"
        )
    where = {"revision": args.model_revision, "subfolder": "pretraining"}
    model = GLCMMAEForPreTraining.from_pretrained(args.model_name_or_path, **where)
    if not model.config.glcm_head_weight:
        raise UsageError(
            f"model_name_or_path {args.model_name_or_path!r} has no texture head, so it foretells no texture: method "
            "surprise needs an encoder that was pretrained with a glcm_head_weight above 0"
        )
    return model


def explain(args: ExplainArguments) -> list[Path]:
    """Draw the overlays; returns their files."""
    output = check_output(args.output_dir)
    if output.is_dir() and any(output.iterdir()) and not _holds_pictures_alone(output):
        raise UsageError(f"output_dir {output} holds files that this recipe did not draw: give a new folder")
    try:
        model = (_autoencoder if args.method == "surprise" else _classifier)(args)
        processor = AutoImageProcessor.from_pretrained(args.model_name_or_path, revision=args.model_revision)
    except UsageError:
        raise
    except (OSError, ValueError) as error:
        raise UsageError(f"model_name_or_path {args.model_name_or_path!r} cannot be opened: {error}") from error
    channels, patch = model.config.num_channels, model.config.patch_size
    # Without this, the transform is one for three channels.
    own = {} if channels == 3 else {name: tuple(getattr(processor, name)) for name in ("image_mean", "image_std")}
    transform, white = transform_of_processor(processor, model.config.image_size, **own)
    prepared = (Path(args.corpus).expanduser() / "splits.json").is_file() and args.split is None
    fold = args.fold if args.fold is not None or not prepared else _fold_of(args)
    if prepared and fold is None:
        logger.warning("%s does not tell its fold: its training images are drawn too (--fold)", args.model_name_or_path)
    reading = {name: getattr(args, name) for name in ("data_dir", "split", "bad_images", "image_column")}
    images, classes = images_to_show(args.corpus, fold, labelled=prepared, **reading)
    if len(images) > args.max_images:
        logger.info("%d of %d images, evenly spread (--max_images)", args.max_images, len(images))
        labels = images["label"] if classes else [0] * len(images)
        images = images.select(spread(labels, args.max_images))
    known = images_seen(args.model_name_or_path, args.model_revision)
    checking = {"num_channels": channels, "transform": transform, "bad_images": args.bad_images}
    images, white = verify_by_processor(images, white, args.model_name_or_path, given=args.white_level, **checking)
    if args.method == "surprise":
        settings = {"patch_size": patch, "num_channels": channels, "white_level": white, "train": False}
        items = PretrainDataset(images, transform, **settings)
    else:
        items = ImagesAsEvaluated(images, transform, white_level=white)
    if known is None:
        logger.info("%s does not tell which images it has seen: any of these may be one", args.model_name_or_path)
    seen = [digest in (known or ()) for digest in image_digests(images)]
    if any(seen):
        logger.warning("the model has seen %d of these %d images: their titles say so", sum(seen), len(images))
    model.eval()
    found = []
    for index in tqdm(range(len(items)), unit=" images"):
        pixel_values = items[index]["pixel_values"]
        surprising = args.method == "surprise"
        found.append(
            texture_surprise(model, pixel_values[None]) if surprising else _explained(args, model, pixel_values)
        )
    names, limit = [], _limit(args.method, found)
    mean, std = (np.array(values)[:, None, None] for values in (transform.image_mean, transform.image_std))
    with replaced_folder(output) as new:  # those of an earlier call go: they would be taken for pictures of this one
        for index, one in enumerate(found):
            row, pixel_values = images[index], items[index]["pixel_values"]
            shown = (pixel_values.numpy() * std + mean).clip(0, 1).transpose(1, 2, 0)
            names.append(f"{index:04d}_{Path(row['file_name']).stem}.png")
            title = row["file_name"]
            if classes and row["label"] is not None and row["label"] >= 0:
                title += f"\nlabel: {classes[row['label']]}"
            title += "\nseen in training or validation" if seen[index] else ""
            if args.method == "surprise":
                with matplotlib.rc_context({"text.parse_math": False}):
                    draw_surprise(one, shown, title, limit).savefig(new / names[-1], dpi=100)
            else:
                _draw(new / names[-1], title, shown, args.method, limit, list(model.config.id2label.values()), *one)
    return [output / name for name in names]


def _holds_pictures_alone(folder: Path) -> bool:
    """Whether all that we put into a folder, by our list, are pictures of an earlier call."""
    written = folder / WRITTEN_LIST  # other recipes fill folders with such a list too
    return written.is_file() and all(re.fullmatch(r"\d{4,}_.*\.png", n) for n in json.loads(written.read_text()))


def _fold_of(args: ExplainArguments) -> str | None:
    """The fold that a model was trained on, if it says so."""
    file = Path(args.model_name_or_path, "config.yaml")
    if not file.parent.is_dir():
        try:
            file = Path(hf_hub_download(args.model_name_or_path, "config.yaml", revision=args.model_revision))
        except EntryNotFoundError:
            return None
    data = (yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else {}) or {}
    data = data.get("data") or {}
    # Of other splits or another corpus, a fold of that number is another one.
    same = data.get("splits_file") is None and data.get("corpus") == Path(args.corpus).expanduser().resolve().name
    return data.get("fold") if same else None


def _limit(method: str, found: list) -> tuple[float, float]:
    """One colour scale for all pictures, so that they can be compared and a small difference looks small."""
    if method == "surprise":
        return 0.0, max(float(one.divergence.max()) for one in found)
    heats = [heat for heat, *_ in found]
    if method == "rollout":
        return min(float(heat.min()) for heat in heats), max(float(heat.max()) for heat in heats)
    most = max(LEAST_FALL, *(float(np.abs(heat).max()) for heat in heats))
    return -most, most


def _explained(args: ExplainArguments, model, pixel_values) -> tuple[np.ndarray, int, np.ndarray]:
    """Heat `(H, W)`, the class that it is of, and the probabilities of all."""
    patch, names = model.config.patch_size, list(model.config.id2label.values())
    with torch.no_grad():
        probabilities = model(pixel_values=pixel_values[None]).logits.softmax(dim=1)[0]
    target = int(probabilities.argmax()) if args.target is None else names.index(args.target)
    if args.method == "occlusion":
        window = args.window or min(2 * patch, *pixel_values.shape[1:])
        heat = occlusion_map(model, pixel_values, target, window=window, stride=args.stride or patch).numpy()
    else:
        heat = attention_rollout(model, pixel_values).numpy().repeat(patch, 0).repeat(patch, 1)
    return heat, target, probabilities.numpy()


@matplotlib.rc_context({"text.parse_math": False})  # a $ in a name is a dollar
def _draw(
    file: Path, title: str, image, method: str, limit, names: list[str], heat, target: int, probabilities
) -> None:
    figure = Figure(figsize=(12, 4.4), layout="constrained")
    plain, overlay, bars = figure.subplots(1, 3)
    draw_overlay(plain, image)
    figure.suptitle(in_lines(title, 120), fontsize=9)
    plain.set_title("image, as the model sees it", fontsize=9)
    occlusion = method == "occlusion"
    shades = draw_overlay(overlay, image, heat, limit[1] if occlusion else None)
    shades.set_clim(*limit)
    of_what = f"fall of p({names[target]}) where hidden" if occlusion else "attention roll-out, all classes"
    overlay.set_title(in_lines(of_what, 48), fontsize=9)
    figure.colorbar(shades, ax=overlay, shrink=0.8)
    bars.barh(range(len(names)), probabilities, color="#0072b2")
    bars.set_yticks(range(len(names)), [in_lines(name, 28) for name in names])
    for place, probability in enumerate(probabilities):
        bars.text(min(float(probability) + 0.02, 0.86), place, f"{probability:.2f}", va="center", fontsize=8)
    bars.set(xlim=(0, 1), xlabel="probability")
    bars.invert_yaxis()
    figure.supxlabel("Where the model is sensitive: not why, and no outline of a lesion. Research only.", fontsize=8)
    figure.savefig(file, dpi=100)
