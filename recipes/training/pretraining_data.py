"""From arguments to model and data, for the recipes that train."""

import logging
from dataclasses import dataclass, field
from typing import Any

import datasets
from accelerate import PartialState
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from commandline import DataArguments, ImageArguments, ModelArguments, UsageError
from images.splits import load_prepared
from modeling_glcm_mae import GLCMMAEConfig, GLCMMAEForPreTraining, value_range_from_normalization
from training.feeding import (
    BadImageError,
    ImageTransform,
    PretrainDataset,
    PretrainIterableDataset,
    decode_image,
    load_corpus,
    split_held_out,
    verify_images,
    white_and_depth,
    white_of,
)

logger = logging.getLogger(__name__)
# Fields that decide the shapes of the weights.
SIZES = (
    "patch_size",
    "num_channels",
    *(
        prefix + name
        for prefix in ("", "decoder_")
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    ),
)


def build_model(model_args: ModelArguments, data_args: DataArguments) -> GLCMMAEForPreTraining:
    """Load or initialise the model; the grey range follows the normalisation unless it was given."""
    overrides = model_args.config_overrides()
    for name in SIZES:
        if overrides.get(name, 1) < 1:
            raise UsageError(f"{name} must be at least 1, got {overrides[name]}")
    source = {"subfolder": model_args.model_subfolder, "revision": model_args.model_revision}
    if model_args.model_name_or_path is None:
        config = GLCMMAEConfig.from_preset(model_args.preset, **overrides)
    else:
        # from_pretrained names the mistake if the checkpoint is of another architecture.
        stored = GLCMMAEForPreTraining.checkpoint_config(model_args.model_name_or_path, **source)
        preset = GLCMMAEConfig.from_preset(model_args.preset)
        settings = {name: getattr(preset, name) for name in vars(preset) if name.startswith(("glcm_", "ssim_", "mse_"))}
        fixed = stored | settings | {"norm_pix_loss": False} | overrides
        config = GLCMMAEConfig.from_dict(fixed)
        if config.image_size != stored.get("image_size", config.image_size):
            raise UsageError(
                f"image_size must be that of the checkpoint ({stored['image_size']}), got {config.image_size}"
            )
    if model_args.glcm_value_range is None:
        mean, std = normalization(data_args, config.num_channels)
        config.glcm_value_range = value_range_from_normalization(mean, std, config.glcm_channel)
    config.validate()
    height, width = (config.image_size,) * 2 if isinstance(config.image_size, int) else config.image_size
    patches = (height // config.patch_size) * (width // config.patch_size)
    visible = int(patches * (1 - config.mask_ratio))  # as ViTMAE rounds
    if not 0 < visible < patches:
        raise UsageError(
            f"mask_ratio {config.mask_ratio} leaves {visible} of {patches} patches visible; at least one must be "
            "visible and one masked"
        )
    if config.glcm_kernel == "hard" and config.glcm_weight:
        raise UsageError(
            "glcm_kernel hard has no gradient, so nothing would be learned: allowed are linear and sigmoid"
        )
    if model_args.model_name_or_path is None:
        return GLCMMAEForPreTraining(config)
    try:
        model, report = GLCMMAEForPreTraining.from_pretrained(
            model_args.model_name_or_path, config=config, output_loading_info=True, **source
        )
    except RuntimeError as error:  # sizes of tensors
        given = ", ".join(name for name in overrides if name in SIZES) or "none"
        raise UsageError(
            f"{model_args.model_name_or_path} does not fit the model: leave sizes to the checkpoint (given: {given}). "
            f"{str(error).splitlines()[0]}"
        ) from error
    wrong = {name: sorted(keys) for name, keys in report.items() if keys}
    if wrong:
        raise UsageError(f"{model_args.model_name_or_path} does not fit the model: {wrong}")
    return model


def normalization(data_args: ImageArguments, num_channels: int) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel; for other than three channels the average of ImageNet's."""
    mean, std = data_args.image_mean, data_args.image_std
    if num_channels == 3:
        return list(mean or IMAGENET_DEFAULT_MEAN), list(std or IMAGENET_DEFAULT_STD)
    average = [sum(values) / len(values) for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)]
    return list(mean or average[:1] * num_channels), list(std or average[1:] * num_channels)


def _whole_corpus(
    data_args: DataArguments, transform: ImageTransform, seed: int
) -> datasets.Dataset | datasets.IterableDataset:
    return load_corpus(
        data_args.corpus,
        data_dir=data_args.data_dir,
        split=data_args.split,
        streaming=data_args.streaming,
        bad_images=data_args.bad_images,
        image_column=data_args.image_column,
        label_column=data_args.label_column,
        group_column=data_args.group_column,
        speckle_images=data_args.speckle_images,
        image_size=max(transform.image_size),
        seed=seed,
        class_set=data_args.speckle_classes,
    )


def _is_not_among(row: dict[str, Any], names: frozenset[str]) -> bool:
    return row["file_name"] not in names


def _first_readable(
    images: datasets.IterableDataset, bad_images: str, num_channels: int, white_level: float | None
) -> list[dict]:
    """The first row of a stream whose image can be decoded; no row if there is none."""
    for row in images:
        try:
            white = white_of(row, white_level)
            decode_image(row["image"], name=row["file_name"], num_channels=num_channels, white_level=white)
            return [row]
        except BadImageError:
            if bad_images != "skip":
                raise
    return []


@dataclass
class PretrainingData:
    """What a pretraining run reads."""

    train: PretrainDataset | PretrainIterableDataset
    held_out: PretrainDataset | PretrainIterableDataset | None
    transform: ImageTransform
    labelled: PretrainDataset | None = None  # the training images without augmentation, if they have labels
    skipped: list[str] = field(default_factory=list)  # files that could not be read
    white_level: float = 255  # the stored grey value of white, for the processor that is exported
    deep: bool = False  # whether the images have more than 8 bits


def load_data(data_args: DataArguments, config: GLCMMAEConfig, seed: int) -> PretrainingData:
    """Load, check and split the images.

    Raises:
        ValueError: on anything wrong with them; names the file or the setting, and what is allowed.
    """
    mean, std = normalization(data_args, config.num_channels)
    transform = ImageTransform(
        image_size=config.image_size,
        resize=data_args.resize,
        resize_to=data_args.resize_to,
        random_resized_crop=data_args.random_resized_crop,
        crop_scale=tuple(data_args.crop_scale),
        horizontal_flip=data_args.horizontal_flip,
        vertical_flip=data_args.vertical_flip,
        image_mean=tuple(mean),
        image_std=tuple(std),
    )
    if (data_args.fold is not None or data_args.splits_file is not None) and data_args.streaming:
        raise UsageError("fold needs the whole data set: streaming must be false")
    if data_args.splits_file is not None and data_args.fold is None:
        raise UsageError("splits_file needs fold, the fold to train on")
    with PartialState().main_process_first():  # generated and downloaded data is then in the cache for the others
        images = (
            load_prepared(data_args.corpus, data_args.splits_file, data_args.fold)[0]["train"]
            if data_args.fold is not None
            else _whole_corpus(data_args, transform, seed)
        )
    reading = {
        "patch_size": config.patch_size,
        "num_channels": config.num_channels,
        "white_level": data_args.white_level,
        "seed": seed,
    }
    checking = {"num_channels": config.num_channels, "white_level": data_args.white_level}
    if data_args.streaming:
        if data_args.cache_images:
            raise UsageError("cache_images must be false for a stream, which is read once")
        if data_args.held_out and data_args.held_out < 1:
            raise UsageError("held_out must be a number of images for a stream, whose length is unknown")
        count = int(data_args.held_out)
        stream = {**reading, "bad_images": data_args.bad_images}
        # Read once and kept. Skipping as many in each worker would skip others where there are several shards.
        first = list(images.take(count)) if count else _first_readable(images, data_args.bad_images, **checking)
        held_out = None
        if count:
            kept = datasets.Dataset.from_list(first, features=images.features)
            kept, _ = verify_images(kept, bad_images=data_args.bad_images, transform=transform, **checking)
            held_out = PretrainDataset(kept, transform, train=False, **reading)
            names = frozenset(row["file_name"] for row in first)
            first = list(kept)
            # A function of this module: workers that are spawned, as on macOS, get it by its name.
            images = images.filter(_is_not_among, fn_kwargs={"names": names})
        train = PretrainIterableDataset(images, transform, shuffle_buffer=data_args.shuffle_buffer, **stream)
        white, deep = white_and_depth(first, data_args.white_level)
        return PretrainingData(train, held_out, transform, white_level=white, deep=deep)
    images, skipped = verify_images(images, bad_images=data_args.bad_images, transform=transform, **checking)
    white, deep = white_and_depth(images, data_args.white_level)
    if data_args.cache_images and deep:
        raise UsageError(f"cache_images keeps 8 bits, the images are deeper (white is {white:g}): set it to false")
    if data_args.held_out and "group" not in images.column_names and data_args.corpus != "speckle":
        logger.warning(
            "corpus %s has no groups (patients), so copies of training images may be held out: prepare_corpus.py finds "
            "them; give the folder that it makes",
            data_args.corpus,
        )
    train_images, held_out_images = split_held_out(images, data_args.held_out, seed)
    train = PretrainDataset(train_images, transform, cache=data_args.cache_images, **reading)
    held_out = None
    if held_out_images is not None:
        held_out = PretrainDataset(held_out_images, transform, train=False, cache=data_args.cache_images, **reading)
    labelled = None
    if held_out is not None and "label" in images.column_names:
        labelled = PretrainDataset(train_images, transform, train=False, **reading)
    return PretrainingData(train, held_out, transform, labelled, [name for name, _ in skipped], white, deep)
