"""Write what others load: the encoder as a stock ViT, the whole model with its code, and a card."""

import os
import re
import shutil
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

import torch
from huggingface_hub import ModelCard, ModelCardData
from PIL import Image
from transformers import (
    AutoImageProcessor,
    PreTrainedModel,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
    pipeline,
)
from transformers.utils import cached_file

from corpora.speckle import CLASS_SETS, speckle_image
from hub.cards import CARDS, eval_results
from modeling_glcm_mae import GLCMMAEForPreTraining
from output_folder import replaced_folder

TRAINING_IMAGES = "training_images.txt"  # in an export and in the folder of its run: SHA-256 of what it has seen


def images_seen(name_or_path: str | None, revision: str = "main", subfolder: str = "") -> set[str] | None:
    """SHA-256 of every image that a checkpoint or one of its ancestors saw; `None` where it does not tell.

    These are those of its training, and those that it was validated on or that were held out of a pretraining.

    An export lists them in training_images.txt, a line an image, for its subfolder `pretraining` too; a run lists them
    in its own folder, for its checkpoints.

    Args:
        name_or_path: Hub id or folder; `None` for random weights, which have seen none.
        revision: of the checkpoint on the Hub.
        subfolder: of the checkpoint.
    """
    if name_or_path is None:
        return set()
    if Path(name_or_path).exists():
        places = _places_of_list((Path(name_or_path) / subfolder).resolve())
        files = [Path(place / TRAINING_IMAGES) for place in places]
        found = next((file for file in files if file.is_file()), None)
    else:
        files = [str(place / TRAINING_IMAGES) for place in _places_of_list(PurePosixPath(subfolder))]
        quiet = {"_raise_exceptions_for_missing_entries": False}
        on_hub = (cached_file(name_or_path, file, revision=revision, **quiet) for file in files)
        found = next((file for file in on_hub if file is not None), None)
    return None if found is None else set(Path(found).read_text(encoding="utf-8").split())


def _places_of_list(folder: PurePath) -> list[PurePath]:
    """Folders that may hold the list of what the checkpoint in `folder` has seen."""
    if folder.name == "pretraining":
        return [folder, folder.parent]
    if re.fullmatch(r"checkpoint-\d+", folder.name):
        return [folder, folder.parent, folder.parent / "export"]
    return [folder]


def list_of_images(seen: set[str]) -> dict[str, str]:
    """The text of training_images.txt, under its name."""
    return {TRAINING_IMAGES: "".join(f"{digest}\n" for digest in sorted(seen))}


@torch.no_grad()
def stock_encoder(model: GLCMMAEForPreTraining) -> ViTModel:
    """The encoder as transformers' own `ViTModel`, which sees the whole image.

    Its pooler, which the masked autoencoder has none of, is the identity: `pooler_output` is the CLS token.

    Args:
        model: whose encoder is copied.

    Raises:
        RuntimeError: if a weight of the encoder has no place in a `ViTModel`, or the other way round.
    """
    config = model.config
    shared = {
        name: getattr(config, name)
        for name in ViTConfig.__dataclass_fields__
        if name in type(config).__dataclass_fields__ and name not in ("architectures", "dtype", "_auto_class")
    }
    encoder = ViTModel(ViTConfig(**shared, pooler_act="linear"))
    weights = {name: weight.detach().float().cpu() for name, weight in model.vit.state_dict().items()}
    weights["pooler.dense.weight"] = torch.eye(config.hidden_size)
    weights["pooler.dense.bias"] = torch.zeros(config.hidden_size)
    encoder.load_state_dict(weights)
    return encoder.eval()


def network_said(model: PreTrainedModel) -> str:
    """An encoder's size in words: depth, width, patches, images, parameters; with its head, if it has one."""
    config = model.config
    height, width = config.image_size if isinstance(config.image_size, list | tuple) else (config.image_size,) * 2
    return (
        f"{config.num_hidden_layers} layers of width {config.hidden_size}, patches of {config.patch_size} pixels, "
        f"images of {height} x {width}; {model.num_parameters() / 1e6:.2f} million parameters"
    )


def write_export(
    folder: Path,
    model: GLCMMAEForPreTraining,
    processor: ViTImageProcessorPil,
    texts: dict[str, str],
    files: list[Path],
    card_facts: dict[str, Any],
) -> None:
    """Write a folder shaped as the Hub repository: encoder at the root, whole model in `pretraining/`, `README.md`.

    It is put in place when it is whole, so an interruption leaves the former export as it was.

    Args:
        folder: the export; all that it holds is replaced.
        model: in full precision on any device.
        processor: the image processor of the evaluation transform.
        texts: name -> content of a file at the root (the resolved recipe).
        files: copied to the root (a picture).
        card_facts: what the template of the card fills in; a fact that is missing is left out of the card.
    """
    with replaced_folder(folder) as new:
        encoder = stock_encoder(model)
        encoder.save_pretrained(new)
        model.save_pretrained(new / "pretraining")
        # transformers 5.23 looks for the code of a subfolder's model in the root.
        for code in (new / "pretraining").glob("*.py"):
            shutil.copy2(code, new / code.name)
        processor.save_pretrained(new)
        processor.save_pretrained(new / "pretraining")
        for name, text in texts.items():
            (new / name).write_text(text)
        for file in files:
            shutil.copy2(file, new / file.name)
        said = _processor_said(processor) | {"network": network_said(encoder)}
        write_card(new / "README.md", model, card_facts | said)


def write_classifier(
    folder: Path,
    model: PreTrainedModel,
    processor: ViTImageProcessorPil,
    texts: dict[str, str],
    files: list[Path],
    card_facts: dict[str, Any],
) -> None:
    """Write a classifier as the Hub repository that `pipeline("image-classification")` opens. As `write_export`."""
    with replaced_folder(folder) as new:
        model.save_pretrained(new)
        processor.save_pretrained(new)
        for name, text in texts.items():
            (new / name).write_text(text)
        for file in files:
            shutil.copy2(file, new / file.name)
        card_facts = card_facts | _processor_said(processor) | {"network": network_said(model)}
        widget = widget_examples(new, model)
        corpus = card_facts["corpus"]
        results = eval_results(
            corpus, corpus, card_facts.get("values") or {}, f"test part of fold {card_facts['fold']}"
        )
        metadata = ModelCardData(
            library_name="transformers",
            pipeline_tag="image-classification",
            widget=widget or None,
            base_model=card_facts.get("base_model"),
            tags=["medical", "vit"],
            model_name=card_facts["title"] if results else None,
            eval_results=results,
        )
        card = ModelCard.from_template(
            metadata, template_path=str(CLASSIFIER_TEMPLATE), config=model.config, widget=widget, **card_facts
        )
        card.save(new / "README.md")


def without_paths(settings: Any) -> Any:
    """A copy of settings (dicts, lists, strings, numbers) that keeps only the last part of a path of this machine.

    Folders above it may name people, and an `ORG/NAME` that is not a path here is an id on the Hub.
    """
    if isinstance(settings, dict):
        return {name: without_paths(value) for name, value in settings.items()}
    if isinstance(settings, list):
        return [without_paths(value) for value in settings]
    if isinstance(settings, str) and "/" in settings:
        # os.path.exists is False, and raises nothing, for what can be no path.
        if settings.startswith(("/", "~", "../")) or os.path.exists(settings):
            return Path(settings).name
    return settings


TEXTURE_WEIGHTS = ("glcm_weight", "glcm_head_weight", "glcm_cls_weight")
CARD_TEMPLATE = CARDS / "pretrained.md"


CLASSIFIER_TEMPLATE = CARDS / "classifier.md"


def _processor_said(processor: ViTImageProcessorPil) -> dict[str, Any]:
    """For a card: what the processor does, in words, and the white of the deep images that the model was trained on."""
    steps = []
    if processor.do_resize:
        steps.append("resized to " + " x ".join(f"{value}" for value in dict(processor.size).values() if value))
    if getattr(processor, "do_center_crop", None):
        steps.append(
            "centre crop to " + " x ".join(f"{value}" for value in dict(processor.crop_size).values() if value)
        )
    steps.append(f"values of 8-bit images / {1 / processor.rescale_factor:.6g}")
    for name, values in (("mean", processor.image_mean), ("std", processor.image_std)):
        # One number where all channels have the same.
        found = [f"{value:.6g}" for value in (values if isinstance(values, list | tuple) else [values])]
        steps.append(f"{name} {found[0] if len(set(found)) == 1 else ' '.join(found)}")
    return {"preprocessing": ", ".join(steps), "white": getattr(processor, "white_level", None)}


def widget_examples(folder: Path, model: PreTrainedModel) -> list[dict[str, Any]]:
    """Two generated images for the widget, saved in `folder`/examples, with the answers of the saved model to them.

    Args:
        folder: holds the model and its processor.
        model: the same model; gives the size of the images.
    """
    # Where the model is: left to itself, pipeline would move it to the first GPU, under a training on CPU too.
    classify = pipeline(
        "image-classification",
        model=model,
        image_processor=AutoImageProcessor.from_pretrained(folder),
        device=model.device,
    )
    (folder / "examples").mkdir()
    found = []
    sides = model.config.image_size
    height, width = (sides, sides) if isinstance(sides, int) else sides
    for index, speckle_class in enumerate(CLASS_SETS["easy"][:2]):
        name = f"examples/speckle_{index}.png"
        speckle = speckle_image(speckle_class, max(height, width), seed=index)[:height, :width]
        Image.fromarray(speckle).save(folder / name)
        answers = classify(str(folder / name), top_k=model.config.num_labels)
        output = [{"label": answer["label"], "score": round(answer["score"], 4)} for answer in answers]
        found.append({"src": name, "example_title": f"Generated speckle {index + 1}", "output": output})
    return found


def write_card(file: Path, model: GLCMMAEForPreTraining, facts: dict[str, Any]) -> None:
    """Render the model card."""
    metadata = ModelCardData(
        library_name="transformers",
        # `pipeline` makes every image RGB, which an encoder of one channel cannot take.
        pipeline_tag=None if model.config.num_channels == 1 else "image-feature-extraction",
        base_model=facts.get("base_model"),
        datasets=facts.get("datasets"),
        tags=[
            "medical",
            "masked-autoencoder",
            *(["texture", "glcm"] if any(getattr(model.config, name) for name in TEXTURE_WEIGHTS) else []),
            "vit",
        ],
    )
    card = ModelCard.from_template(metadata, template_path=str(CARD_TEMPLATE), config=model.config, **facts)
    card.save(file)
