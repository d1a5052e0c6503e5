"""The images of a pretraining, from its arguments: checked, split, and what their grey levels are."""

import itertools
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import torch
from accelerate import PartialState

from commandline import UsageError
from corpora.load import load_corpus
from corpora.record import BadImageError
from corpora.table import NONE
from images.check import judged, verify_images, white_and_depth, white_level_of
from images.decode import decode_image
from images.known import Known
from images.overlap import without_copies
from images.splits import image_sha256, load_known, load_prepared, split_held_out
from images.transform import ImageTransform
from modeling_glcm_mae import GLCMMAEConfig
from training.feeding import MIN_LEVEL_SHARE, PretrainDataset, PretrainIterableDataset
from training.options import DataArguments

logger = logging.getLogger(__name__)


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


def folds_of_others(data_args: DataArguments) -> list[tuple[str, str | None]]:
    """Each `unlabelled_corpus` with the fold whose training part is read; `None`: all images.

    Raises:
        UsageError: the folds do not fit the corpora; names what is given.
    """
    corpora, folds = data_args.unlabelled_corpus or [], data_args.unlabelled_folds or []
    places = [Path(corpus).expanduser().resolve() for corpus in (data_args.corpus, *corpora)]
    for corpus, place in zip(corpora, places[1:], strict=True):
        if places.count(place) > 1:
            raise UsageError(f"unlabelled_corpus: {corpus} is given twice, or is corpus itself; give others, each once")
    if folds and len(folds) != len(corpora):
        raise UsageError(
            f"unlabelled_folds needs one entry for each unlabelled_corpus ({len(corpora)}), got {len(folds)}: "
            f"{' '.join(folds)}; all stands for a whole corpus"
        )
    if "same" in folds and data_args.fold is None:
        raise UsageError("unlabelled_folds: same stands for the fold that is given as fold, and there is none")
    chosen = [{"all": None, "same": data_args.fold}.get(fold, fold) for fold in folds]
    return list(zip(corpora, chosen or [None] * len(corpora), strict=True))


def _more_images(
    data_args: DataArguments, checking: dict[str, Any], transform: ImageTransform
) -> tuple[list[tuple[str, datasets.Dataset]], list[datasets.Dataset], list[str]]:
    """The images of `unlabelled_corpus`.

    Returns:
        (the corpus and its readable images, of each; what their folds keep for validation and test; names of
        unreadable files).

    Raises:
        UsageError: a corpus has no such fold; names both.
    """
    found, kept, skipped = [], [], []
    checking = {"bad_images": data_args.bad_images, "transform": transform, **checking}
    for corpus, fold in folds_of_others(data_args):
        with PartialState().main_process_first():
            if fold is None:
                images = load_corpus(corpus, bad_images=data_args.bad_images, label_column=NONE, group_column=NONE)
                parts, known = {"all": images}, None
            else:
                try:
                    parts, _ = load_prepared(corpus, None, fold, unlabelled=True, verify_data=data_args.verify_data)
                except ValueError as error:
                    raise UsageError(f"unlabelled_folds, of {corpus}: {error}") from error
                kept += [parts.pop("validation"), parts.pop("test")]
                known = load_known(corpus)
        for images in parts.values():
            images, bad = verify_images(images, known=known, **checking)
            skipped += [f"{Path(corpus).name}/{name}" for name, _ in bad]
            found.append((corpus, images))
        logger.info(
            "unlabelled_corpus %s: %s, %d image(s)",
            *(corpus, f"training part of fold {fold}" if fold else "all of it", sum(map(len, parts.values()))),
        )
    return found, kept, skipped


def _without_copies(images: datasets.Dataset, kept: list[datasets.Dataset], whose: str) -> datasets.Dataset:
    """The images that are no (near-)copies of any in `kept`; a warning counts the others."""
    own = without_copies(images, kept)
    if len(own) < len(images):
        logger.warning(
            "%s: %d image(s) left out, copies of images kept for validation or test", whose, len(images) - len(own)
        )
    return own


def _plain(images: datasets.Dataset, prefix: str = "") -> datasets.Dataset:
    """Only what a training without labels reads, in columns that are the same for every corpus."""
    names = [f"{prefix}{name}" for name in images["file_name"][:]]
    white = images["white_level"][:] if "white_level" in images.column_names else [None] * len(images)
    # Written anew: datasets (5.2) counts no rows in a table that lost a column of its own, and could not add one.
    images = images.select_columns("image").cast_column("image", datasets.Image(decode=False)).flatten_indices()
    images = images.add_column("file_name", names, feature=datasets.Value("string"))
    return images.add_column("white_level", white, feature=datasets.Value("float64"))


def _identity(row: dict[str, Any]) -> str | None:
    """What a stream knows an image by in every pass: its bytes, or its whole address where it gives only that.

    Not `file_name`: base names come twice, and indices start anew in each shard, whose order changes.
    """
    image = row["image"] or {}
    return image.get("path") if image.get("bytes") is None else image_sha256(image)


def _is_not_among(row: dict[str, Any], images: frozenset[str], groups: frozenset[str]) -> bool:
    return row.get("group") not in groups and _identity(row) not in images


def _first_readable(
    images: datasets.IterableDataset, bad_images: str, num_channels: int, white_level: float | None
) -> list[dict]:
    """The first row of a stream whose image can be decoded; no row if there is none."""
    for row in images:
        try:
            white = white_level_of(row, white_level)
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
    known: Known | None = None  # what was found in the images before, if in all of them


def load_data(data_args: DataArguments, config: GLCMMAEConfig, seed: int) -> PretrainingData:
    """Load, check and split the images.

    Raises:
        ValueError: on anything wrong with them; names the file or the setting, and what is allowed.
    """
    mean, std = data_args.normalization(config.num_channels)
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
    if data_args.unlabelled_corpus and data_args.streaming:
        raise UsageError("unlabelled_corpus needs the whole data set: streaming must be false")
    if data_args.unlabelled_folds and not data_args.unlabelled_corpus:
        raise UsageError("unlabelled_folds needs unlabelled_corpus, the corpora that have these folds")
    folds_of_others(data_args)
    kept, pool, known = [], None, None
    with PartialState().main_process_first():  # generated and downloaded data is then in the cache for the others
        if data_args.fold is not None:
            parts, _ = load_prepared(
                *(data_args.corpus, data_args.splits_file, data_args.fold),
                unlabelled=True,
                verify_data=data_args.verify_data,
            )
            known = load_known(data_args.corpus)
            images, kept, pool = parts["train"], [parts["validation"], parts["test"]], parts.get("unlabelled")
        else:
            images = _whole_corpus(data_args, transform, seed)
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
            # Not from_list, which (datasets 5.2) drops the bytes of an image whose path happens to be a file here.
            kept = datasets.Dataset(pa.Table.from_pylist(first, schema=images.features.arrow_schema))
            kept, _ = verify_images(kept, bad_images=data_args.bad_images, transform=transform, **checking)
            held_out = PretrainDataset(kept, transform, train=False, **reading)
            # None is no image, which is to be counted as bad, or no known patient.
            shown = frozenset(map(_identity, first)) - {None}
            first = list(kept)
            patients = frozenset(row.get("group") for row in first) - {None}
            # A function of this module: workers that are spawned, as on macOS, get it by its name.
            images = images.filter(_is_not_among, fn_kwargs={"images": shown, "groups": patients})
        train = PretrainIterableDataset(images, transform, shuffle_buffer=data_args.shuffle_buffer, **stream)
        white, deep = white_and_depth(first, data_args.white_level)
        return PretrainingData(train, held_out, transform, white_level=white, deep=deep)
    whole = {"bad_images": data_args.bad_images, "transform": transform, "known": known, **checking}
    images, skipped = verify_images(images, **whole)
    if pool is not None:
        pool, bad = verify_images(pool, **whole)
        skipped += bad
    others, kept_there, bad = _more_images(data_args, checking, transform)
    skipped += [(name, "") for name in bad]
    if kept_there:
        # An encoder that has seen what they keep could not be judged there.
        images = _without_copies(images, kept_there, f"corpus {data_args.corpus}")
        if pool is not None:
            pool = _without_copies(pool, kept_there, f"corpus {data_args.corpus}")
    if data_args.held_out and "group" not in images.column_names and data_args.corpus != "speckle":
        logger.warning(
            "corpus %s has no groups (patients), so copies of training images may be held out: prepare_corpus.py finds "
            "them; give the folder that it makes",
            data_args.corpus,
        )
    train_images, held_out_images = split_held_out(images, data_args.held_out, seed)
    if held_out_images is not None:
        kept.append(held_out_images)
    more = []
    if pool is not None:
        apart = set() if held_out_images is None else set(held_out_images["group"][:])
        more.append(_plain(pool.select([i for i, group in enumerate(pool["group"][:]) if group not in apart])))
    for corpus, part in others:
        part = _without_copies(part, [*kept, *kept_there], f"unlabelled_corpus {corpus}")
        more.append(_plain(part, f"{Path(corpus).name}/"))
    labelled_images = train_images
    if more:
        train_images, known = datasets.concatenate_datasets([_plain(train_images), *more]), None
    parts = [judged(part, known) for part in (train_images, held_out_images) if part is not None]
    white, deep = white_and_depth(itertools.chain(*parts), data_args.white_level, known)
    train = PretrainDataset(train_images, transform, cache=data_args.cache_images, **reading)
    held_out = None
    if held_out_images is not None:
        held_out = PretrainDataset(held_out_images, transform, train=False, cache=data_args.cache_images, **reading)
    labelled = None
    if held_out is not None and "label" in images.column_names and None not in images["label"][:]:
        labelled = PretrainDataset(labelled_images, transform, train=False, **reading)
    return PretrainingData(train, held_out, transform, labelled, [name for name, _ in skipped], white, deep, known)


def grey_statistics(
    pretrain_dataset: PretrainDataset | PretrainIterableDataset,
    value_range: tuple[float, float],
    levels: int,
    channel: int | str,
    max_images: int = 512,
    distributions_of: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] | None = None,
) -> dict[str, Any]:
    """What the texture loss gets to see: the mean pixel, and how much of the grey levels the data occupies.

    And the mean of what each head has to predict, the best answer of one that knows nothing of an image.

    Args:
        pretrain_dataset: where the images come from, transformed as in the first epoch.
        value_range: (lo, hi) of the grey levels, in units of `pixel_values` after normalisation.
        levels: number of grey levels over `value_range`.
        channel: the channel that is judged, or "mean" of the channels.
        max_images: look at this many images at most, spread evenly over the data set (a stream: its first).
        distributions_of: by name, what gives distributions of an image: `(C, H, W)` to `(n, ..., Q)`.

    Returns:
        `mean_pixel`: a list, mean of each channel in units of `pixel_values`; `occupied_levels`: levels that hold at
        least 0.1 % of the pixels (`MIN_LEVEL_SHARE`), after clamping to the range; `levels`; `outside_fraction`: share
        of the pixels outside the range; `num_images`: images looked at; `mean_distributions`: by name, `(..., Q)`, the
        mean over n and the images, as if one more had held all of the Q pairs of levels equally often, so that none is
        impossible.
    """
    lo, hi = value_range
    if isinstance(pretrain_dataset, PretrainDataset):
        count = min(max_images, len(pretrain_dataset))
        items = (pretrain_dataset[i * len(pretrain_dataset) // count] for i in range(count))
    else:
        items = itertools.islice(pretrain_dataset, max_images)
    sums, histogram, outside, num_pixels, num_images = 0.0, torch.zeros(levels), 0, 0, 0
    distributions = {name: (torch.zeros(()), 0) for name in distributions_of or ()}
    for item in items:
        pixels = item["pixel_values"].double()  # (C, H, W)
        sums = sums + pixels.sum((1, 2))
        grey = pixels.mean(0) if channel == "mean" else pixels[int(channel)]
        tolerance = 1e-5 * (hi - lo)  # white itself, rounded to float32, is not outside
        outside += int(((grey < lo - tolerance) | (grey > hi + tolerance)).sum())
        level = ((grey - lo) / (hi - lo) * levels).floor().clamp(0, levels - 1).long()
        histogram += torch.bincount(level.flatten(), minlength=levels)
        num_pixels += grey.numel()
        num_images += 1
        for name, (total, number) in distributions.items():
            found = distributions_of[name](item["pixel_values"]).double()
            distributions[name] = (total + found.sum(0), number + len(found))
    if num_images == 0:
        raise ValueError("There is no image to train on, at most such as are held out, or others of their patients.")
    return {
        "mean_pixel": (sums / num_pixels).tolist(),
        "occupied_levels": int((histogram / num_pixels >= MIN_LEVEL_SHARE).sum()),
        "levels": levels,
        "outside_fraction": outside / num_pixels,
        "num_images": num_images,
        "mean_distributions": {
            name: (total + 1 / total.shape[-1]) / (number + 1) for name, (total, number) in distributions.items()
        },
    }
