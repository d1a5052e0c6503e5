"""Decoded images to normalised tensors, and the image processor that does the same."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import ViTImageProcessorPil
from transformers.image_transforms import center_crop, get_resize_output_image_size
from transformers.image_utils import ChannelDimension, get_image_size_for_max_height_width

RESIZE_MODES = ("shortest", "squash", "letterbox", "none")


@dataclass(frozen=True)
class ImageTransform:
    """Decoded image to normalised tensor: resize, crop, flip, normalise.

    Without a generator (evaluation) it equals the image processor of `processor()` on 8-bit images to one grey level of
    255; it keeps the precision of deeper images, which the processor cannot.

    Attributes:
        image_size: (height, width) of the result in pixels; a single number means a square.
        resize: "shortest" scales the shorter side to `resize_to` and crops the centre; "squash" scales both sides
            (distorts), and crops the centre if there is a `resize_to`; "letterbox" scales until the image just fits and
            pads with black around it; "none" demands that every image has `image_size`.
        resize_to: before the centre crop, for "shortest" the length of the shorter side, for "squash" of the longer one
            (the other in the proportion of `image_size`). The default is the longer side of `image_size`.
        random_resized_crop: in training, instead of `resize`, cut out a random part and scale it to `image_size`.
        crop_scale: smallest and largest share of the image's area that a random crop covers. Its aspect ratio is that
            of `image_size` times 3/4 to 4/3 as in MAE, but exact for "letterbox", which promises no distortion.
        horizontal_flip, vertical_flip: in training, mirror every second image.
        image_mean, image_std: per channel, in units of [0, 1]: result = (grey value - mean) / std.
        resample: Pillow's number of the filter that resizes.
    """

    image_size: int | tuple[int, int]
    resize: str = "shortest"
    resize_to: int | None = None
    random_resized_crop: bool = False
    crop_scale: tuple[float, float] = (0.2, 1.0)
    horizontal_flip: bool = False
    vertical_flip: bool = False
    image_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    image_std: tuple[float, ...] = (0.5, 0.5, 0.5)
    resample: int = Image.Resampling.BILINEAR

    def __post_init__(self) -> None:
        size = (self.image_size,) * 2 if isinstance(self.image_size, int) else tuple(self.image_size)
        object.__setattr__(self, "image_size", size)
        for field in ("crop_scale", "image_mean", "image_std"):  # lists, when they come from YAML
            object.__setattr__(self, field, tuple(getattr(self, field)))
        if len(size) != 2 or min(size) < 1:
            raise ValueError(f"image_size must be a positive number or (height, width), got {self.image_size}.")
        if self.resize not in RESIZE_MODES:
            raise ValueError(f"resize must be one of {', '.join(RESIZE_MODES)}, got {self.resize!r}.")
        cropped = self.resize in ("shortest", "squash")
        if self.resize_to is not None and (not cropped or self.resize_to < max(size)):
            raise ValueError(
                f"resize_to={self.resize_to} needs resize 'shortest' or 'squash' (is {self.resize!r}) and at least the "
                f"longer side of image_size {size}."
            )
        if self.random_resized_crop and self.resize == "none":
            raise ValueError("random_resized_crop resizes: it cannot go with resize='none'.")
        if len(self.crop_scale) != 2 or not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"crop_scale must be two increasing numbers in (0, 1], got {self.crop_scale}.")
        if len(self.image_mean) != len(self.image_std) or min(self.image_std) <= 0:
            raise ValueError(
                f"image_mean and image_std must have one value per channel, image_std above 0; "
                f"got {self.image_mean} and {self.image_std}."
            )

    def check(self, image: np.ndarray, name: str) -> None:
        """Raise `ValueError` if `image` `(H, W, C)` has wrong channels or, for `resize="none"`, a wrong size."""
        if image.shape[2] != len(self.image_mean):
            raise ValueError(
                f"Image '{name}' has {image.shape[2]} channel(s), image_mean and image_std {len(self.image_mean)}."
            )
        if self.resize == "none" and image.shape[:2] != self.image_size:
            (height, width), allowed = image.shape[:2], self.image_size
            raise ValueError(
                f"Image '{name}' is {height} x {width} pixels (height x width); with resize='none' only {allowed[0]} x "
                f"{allowed[1]} is allowed. For mixed sizes choose resize 'shortest', 'squash' or 'letterbox'."
            )

    def __call__(
        self, image: np.ndarray, generator: torch.Generator | None = None, *, name: str = "image"
    ) -> torch.Tensor:
        """Transform one image.

        Args:
            image: float32 `(H, W, C)` in [0, 1], as `decode_image` returns it.
            generator: source of all randomness; without it the result is the deterministic one for evaluation.
            name: what errors call the image.

        Returns:
            float32 `(C, image_size[0], image_size[1])`, normalised.
        """
        return self.finish(self.crop(image, generator, name=name), generator)

    def crop(self, image: np.ndarray, generator: torch.Generator | None = None, *, name: str = "image") -> np.ndarray:
        """The first half of a call: `(H, W, C)` to `(C, *image_size)`, both in [0, 1], at random with a generator."""
        if generator is None or not self.random_resized_crop:
            return self.fit(image, name=name)
        self.check(image, name)
        pixels = np.ascontiguousarray(image.transpose(2, 0, 1))
        return _resize(self._random_crop(pixels, generator), self.image_size, self.resample)

    def finish(self, pixels: np.ndarray, generator: torch.Generator | None = None) -> torch.Tensor:
        """Flip and normalise `(C, *image_size)` in [0, 1]."""
        for axis, flip in ((2, self.horizontal_flip), (1, self.vertical_flip)):
            if generator is not None and flip and torch.rand((), generator=generator) < 0.5:
                pixels = np.flip(pixels, axis)
        mean, std = (np.array(values, dtype=np.float32)[:, None, None] for values in (self.image_mean, self.image_std))
        return torch.from_numpy((pixels - mean) / std)

    def fitted_size(self, height: int, width: int) -> tuple[int, int]:
        """The size that an image is scaled to before the centre crop, by the processor's own functions.

        A side of 0 is a strip thinner than a pixel, by letterbox: `fit` takes one pixel, the processor raises.
        """
        if self.resize == "none":
            return self.image_size
        if self.resize == "squash":
            longer = self.resize_to or max(self.image_size)
            return tuple(_in_proportion(dict(enumerate(self.image_size)), longer).values())
        if self.resize == "letterbox":
            return get_image_size_for_max_height_width((height, width), *self.image_size)
        shortest = self.resize_to or max(self.image_size)
        shape = np.broadcast_to(
            np.float32(0), (1, height, width)
        )  # the function takes an image, and looks at its shape
        return get_resize_output_image_size(shape, shortest, False, input_data_format=ChannelDimension.FIRST)

    def fit(self, image: np.ndarray, *, name: str = "image") -> np.ndarray:
        """Bring `(H, W, C)` to `(C, *image_size)`, both in [0, 1], by `resize`."""
        self.check(image, name)
        pixels = np.ascontiguousarray(image.transpose(2, 0, 1))
        if self.resize == "none":
            return pixels
        height, width = self.fitted_size(*pixels.shape[1:])
        pixels = _resize(pixels, (max(1, height), max(1, width)), self.resample)
        return center_crop(pixels, self.image_size, input_data_format=ChannelDimension.FIRST)

    def _random_crop(self, pixels: np.ndarray, generator: torch.Generator) -> np.ndarray:
        """A random part of `(C, H, W)`, chosen as torchvision's RandomResizedCrop does."""
        height, width = pixels.shape[1:]
        aspect = self.image_size[1] / self.image_size[0]
        spread = 0.0 if self.resize == "letterbox" else math.log(4 / 3)
        for _ in range(10):
            scale, log_ratio, y, x = torch.rand(4, generator=generator).tolist()
            area = height * width * (self.crop_scale[0] + scale * (self.crop_scale[1] - self.crop_scale[0]))
            ratio = aspect * math.exp(spread * (2 * log_ratio - 1))
            crop_height, crop_width = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
            if 0 < crop_height <= height and 0 < crop_width <= width:
                top, left = int(y * (height - crop_height + 1)), int(x * (width - crop_width + 1))
                return pixels[:, top : top + crop_height, left : left + crop_width]
        # no such part fits into this image: take the largest central one with the target's aspect ratio
        crop_height = max(1, min(height, round(width / aspect)))
        crop_width = max(1, min(width, round(height * aspect)))
        top, left = (height - crop_height) // 2, (width - crop_width) // 2
        return pixels[:, top : top + crop_height, left : left + crop_width]

    def processor(self, white_level: float | None = None, *, deep: bool | None = None) -> ViTImageProcessorPil:
        """The image processor of transformers for the evaluation transform, to be saved beside the model.

        All of `resize` can be said in its terms: letterbox is "max_height, max_width" and a centre crop, which pads
        with black. Three channels of 8 bits come with `do_convert_rgb`: grey files work, and transparency is composited
        on white. Without it (one channel, or deep images) an alpha channel is refused. What it cannot do: resize images
        deeper than 8 bits (it raises for values above 255), turn colour into one channel or resolve a palette there,
        and letterbox a strip so thin that a side rounds to 0 pixels (it raises). With `resize="none"` it leaves the
        size alone; the model then refuses other sizes.

        So it is for 8-bit images, as `pipeline` and the Hub's widget make them, whatever the model was trained on. The
        white of deep ones is kept as `white_level`, which transformers carries along and does not read; those that need
        no resizing can be given with `rescale_factor=1 / processor.white_level`. (Without that, they pass unrefused
        where nothing is resized, far too bright, as floats in [0, 1] pass nearly black.)

        Args:
            white_level: as for `decode_image`; the default stands for 8-bit images.
            deep: the images are deeper than 8 bits; by default if `white_level` is above 255. With three channels the
                processor then refuses grey files, which it would cut to 8 bits.
        """
        height, width = self.image_size
        size = {
            "shortest": {"shortest_edge": self.resize_to or max(self.image_size)},
            "letterbox": {"max_height": height, "max_width": width},
            "squash": dict(zip(("height", "width"), self.fitted_size(height, width), strict=True)),
        }.get(self.resize, {"height": height, "width": width})
        white = white_level or 255
        deep = white > 255 if deep is None else deep
        return ViTImageProcessorPil(
            do_resize=self.resize != "none",
            size=size,
            resample=self.resample,
            do_center_crop=self.resize in ("shortest", "letterbox") or self.resize_to is not None,
            crop_size={"height": height, "width": width},
            do_rescale=True,
            rescale_factor=1 / (255 if deep else white),
            do_normalize=True,
            image_mean=list(self.image_mean),
            image_std=list(self.image_std),
            # Conversion to RGB cuts deep files to 8 bits: without it they are refused for their number of channels.
            do_convert_rgb=len(self.image_mean) == 3 and not deep,
            **({"white_level": float(white)} if deep else {}),
        )


def white_of_processor(processor: Any) -> float:
    """The grey value of white of the images that a model was trained on, by its image processor."""
    if not processor.do_rescale:
        return 1.0
    return getattr(processor, "white_level", None) or round(1 / processor.rescale_factor, 6)


def transform_of_processor(
    processor: Any, image_size: int | tuple[int, int], **instead: Any
) -> tuple[ImageTransform, float]:
    """The transform that a saved image processor describes, for three channels; the inverse of `processor()`.

    What it does not do (normalise, say) has no effect.

    Args:
        processor: with the fields of `ViTImageProcessor`, as `AutoImageProcessor` opens it.
        image_size: of the model.
        **instead: `resize`, `resize_to`, `image_mean`, `image_std`: each takes the place of what the processor says of
            it, and of nothing else. (A `resize_to` of the processor stays only where its `resize` does.)

    Returns:
        The transform, and the grey value of white.

    Raises:
        ValueError: it resizes in a way that `ImageTransform` does not know, or that `instead` contradicts.
    """
    resize, resize_to = _resize_of_processor(processor, image_size, instead.get("resize"))
    mean, std = (
        list(getattr(processor, name)) if processor.do_normalize else [default]
        for name, default in (("image_mean", 0.0), ("image_std", 1.0))
    )
    mean, std = (tuple(values * 3) if len(values) == 1 else tuple(values) for values in (mean, std))
    resample = int(processor.resample) if processor.do_resize else Image.Resampling.BILINEAR
    found = {"resize": resize, "resize_to": resize_to, "resample": resample, "image_mean": mean, "image_std": std}
    return ImageTransform(image_size, **found | instead), white_of_processor(processor)


def _resize_of_processor(
    processor: Any, image_size: int | tuple[int, int], wanted: str | None
) -> tuple[str, int | None]:
    """`resize` and `resize_to` of an image processor; (`wanted`, None) if it resizes in another way than `wanted`."""
    height, width = (image_size,) * 2 if isinstance(image_size, int) else image_size
    size, crop = (dict(getattr(processor, name, None) or {}) for name in ("size", "crop_size"))
    size, crop = ({key: value for key, value in sizes.items() if value} for sizes in (size, crop))
    exact = {"height": height, "width": width}
    cropped = bool(getattr(processor, "do_center_crop", False))
    resize_to = None
    if getattr(processor, "do_pad", False) or (cropped and (crop != exact or not processor.do_resize)):
        found = None
    elif not processor.do_resize:
        found = "none"
    elif set(size) == {"shortest_edge"} and cropped:
        found, resize_to = "shortest", size["shortest_edge"]
    elif size == {"max_height": height, "max_width": width} and cropped:
        found = "letterbox"
    elif size == exact and not cropped:
        found = "squash"
    elif cropped and size and size == _in_proportion(exact, max(size.values())):
        found, resize_to = "squash", max(size.values())
    else:
        found = None
    if wanted not in (None, found):
        return wanted, None
    if found is None:
        raise ValueError(
            f"the image processor pads, or resizes to {size} (crop {crop}); the model takes {height} x {width}"
        )
    return found, resize_to


def _in_proportion(size: dict[Any, int], longer: int) -> dict[Any, int]:
    return {name: round(side * longer / max(size.values())) for name, side in size.items()}


def _resize(pixels: np.ndarray, size: tuple[int, int], resample: int) -> np.ndarray:
    """Antialiased resize of `(C, H, W)`, in float, channel by channel: Pillow has no deep colour."""
    if pixels.shape[1:] == tuple(size):
        return pixels
    height, width = size
    channels = [Image.fromarray(np.ascontiguousarray(channel)).resize((width, height), resample) for channel in pixels]
    return np.stack([np.asarray(channel) for channel in channels]).clip(0, 1)
