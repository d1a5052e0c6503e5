"""Whether every image of a corpus can be read, before hours of training."""

import logging
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import datasets
import numpy as np
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from commandline import UsageError
from corpora.record import BadImageError
from images.decode import WHITE_OF_OTHERS, decode_image, is_deep
from images.known import Known
from images.transform import ImageTransform

logger = logging.getLogger(__name__)

MIXED_DEPTHS = (
    "8-bit and 16-bit images are mixed (white is {whites}), and the {model}'s image processor has one white level: "
    "convert them to one depth"
)


def listed(names: Sequence[str]) -> str:
    """Names in a line, of very many ten."""
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def bad_said(names: Sequence[str], reason: str, of: str = "") -> str:
    """What is wrong with the first of these images, and which others are bad too."""
    others = f" (the others: {listed(names[1:])})" if names[1:] else ""
    return f"{reason} {len(names)}{of} image(s) are bad{others}; pass --bad_images skip to leave them out."


def verify_images(
    dataset: datasets.Dataset,
    *,
    num_channels: int,
    white_level: float | None = None,
    bad_images: str = "error",
    transform: ImageTransform | None = None,
    known: Known | None = None,
) -> tuple[datasets.Dataset, list[tuple[str, str]]]:
    """Decode every image once, before the training starts. Several processes share the work.

    Args:
        dataset: as from `load_corpus`, not streaming.
        num_channels, white_level: as for `decode_image`.
        bad_images: "error" to raise, "skip" to leave the bad images out with a warning.
        transform: if given, image sizes are checked too (`resize="none"`).
        known: what was found in the data set, of `load_prepared`. Its images are then decoded only if a `white_level`
            is given, which they need not bear.

    Returns:
        The data set without the bad images, and (file name, reason) of each of these.

    Raises:
        BadImageError: there are bad images and `bad_images` is "error", or no image is left.
        ValueError: a setting does not fit the images (white level, size). Never skipped: it is not the file's fault.
    """
    if known is not None and white_level is None:
        if transform is not None:
            for name, digest in zip(dataset["file_name"][:], dataset["sha256"][:], strict=True):
                height, width, _ = known.images[digest]
                transform.check(np.broadcast_to(np.float32(0), (height, width, num_channels)), name)
        return dataset, []
    state = PartialState()

    def problem(index: int) -> tuple[int, str, str, bool] | None:
        row = dataset[index]
        name = row["file_name"]
        try:
            white = white_level_of(row, white_level)
            image = decode_image(row["image"], name=name, num_channels=num_channels, white_level=white)
            if transform is not None:
                transform.check(image, name)
        except ValueError as error:
            return index, name, str(error), isinstance(error, BadImageError)
        return None

    own = range(state.process_index, len(dataset), state.num_processes)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        results = pool.map(problem, own)
        bar = tqdm(results, total=len(own), desc="checking images", disable=not state.is_main_process, leave=False)
        found = [result for result in bar if result is not None]
    # all processes raise together: one that raised alone would leave the others waiting
    found = sorted(gather_object(found))
    for _, _, reason, is_bad_file in found:
        if not is_bad_file:
            raise ValueError(reason)
    if not found:
        return dataset, []
    if bad_images != "skip":
        raise BadImageError(bad_said([name for _, name, *_ in found], found[0][2], f" of {len(dataset)}"))
    if len(found) == len(dataset):
        raise BadImageError(f"None of the {len(dataset)} images can be read. The first: {found[0][2]}")
    if state.is_main_process:
        names = listed([name for _, name, *_ in found])
        logger.warning("Left out %d of %d images that cannot be read: %s", len(found), len(dataset), names)
    bad = {index for index, *_ in found}
    kept = dataset.select([index for index in range(len(dataset)) if index not in bad])
    return kept, [(name, reason) for _, name, reason, _ in found]


def verify_by_processor(
    dataset: datasets.Dataset, white: float, model: str, *, given: float | None, **checking: Any
) -> tuple[datasets.Dataset, float | None]:
    """`verify_images` by the white level of a model's image processor, of which the user may not know.

    Args:
        dataset, checking: as for `verify_images`.
        white: of the processor.
        model: `--model_name_or_path`.
        given: `--white_level`, which takes the place of the processor's.

    Returns:
        The data set without the bad images, and the white level to read it with; `None` if each image says its own.

    Raises:
        UsageError: the images are of two depths, or of another one than the processor's.
        ValueError: `given` does not fit the images.
    """
    own = "white_level" in dataset.column_names
    white = given if given is not None else None if own else white
    try:
        return verify_images(dataset, white_level=white, **checking)[0], white
    except ValueError as error:
        if given is not None or own or not str(error).endswith(WHITE_OF_OTHERS):
            raise
        depths = set()
        for row in dataset:
            with suppress(BadImageError):
                depths.add(is_deep(row["image"], name=row["file_name"]))
        if len(depths) > 1:
            raise UsageError(MIXED_DEPTHS.format(whites="255, 65535", model="model")) from error
        raise UsageError(
            f"{str(error).removesuffix(WHITE_OF_OTHERS)} That is the white level of the image processor of "
            f"model_name_or_path {model!r}: convert the images to its depth, or give theirs as white_level"
        ) from error


def white_level_of(row: dict[str, Any], given: float | None) -> float | None:
    """The white level of a row: what prepare_corpus.py was told, where its column `white_level` says so, else `given`.

    Raises:
        ValueError: `given`, `--white_level`, says otherwise than the column.
    """
    stored = row.get("white_level")
    if stored is not None and given is not None and stored != given:
        raise ValueError(
            f"white_level={given:g} contradicts the corpus: image '{row['file_name']}' was prepared with "
            f"white_level={stored:g}. Leave the option out, or prepare the corpus anew."
        )
    return given if stored is None else stored


def judged(dataset: datasets.Dataset, known: Known | None) -> Iterable[dict[str, Any]]:
    """Of a data set, what `white_and_depth` reads: no images, where these are known."""
    if known is None:
        return dataset
    # As a list: taken one by one, rows of a data set cost 0.2 ms each.
    needed = ("file_name", "sha256", "white_level")
    return dataset.select_columns([name for name in needed if name in dataset.column_names]).to_list()


def white_and_depth(
    rows: Iterable[dict[str, Any]], given: float | None, known: Known | None = None
) -> tuple[float, bool]:
    """What a processor for all these images needs to know.

    Args:
        rows: of a corpus, all readable.
        given: `--white_level`.
        known: what was found in the corpus; the rows are then those of `judged`.

    Returns:
        The stored grey value of white: `given` or that of the prepared corpus, else 65535 if the images are 16-bit
        files, else 255; and whether they are deeper than 8 bits. Warns where files of both kinds are mixed.
    """
    found = set()
    for row in rows:
        deep = is_deep(row["image"], name=row["file_name"]) if known is None else known.images[row["sha256"]][2]
        white = white_level_of(row, given)
        found.add(((65535 if deep else 255) if white is None else white, deep))
    if len({white for white, _ in found}) > 1:
        logger.warning(
            "images of different white levels are mixed (%s): training takes each by its own, the exported image "
            "processor has one rule and is made for the lowest; finetune.py refuses such a mixture",
            ", ".join(f"{white:g}" for white in sorted({white for white, _ in found})),
        )
    white, _ = min(found, default=(255, False))
    return white, any(deep for level, deep in found if level == white)
