"""Configuration of GLCM-MAE: ViTMAE's fields, and those of the texture objective."""

import difflib
import math
from collections.abc import Sequence
from typing import Any

from huggingface_hub.dataclasses import strict, validated_field
from transformers import PreTrainedConfig, ViTMAEConfig
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from .field_checks import (
    check_channel,
    check_head_patches,
    check_kernel,
    check_levels,
    check_mask_ratio,
    check_offsets,
    check_patch_size,
    check_positive,
    check_tiles,
    check_value_range,
    check_weight,
)


def value_range_from_normalization(
    image_mean: Sequence[float], image_std: Sequence[float], channel: int | str = "mean"
) -> list[float]:
    """Grey range that black and white take in `pixel_values` after the image processor's normalisation.

    Args:
        image_mean: mean subtracted from each channel, for pixels rescaled to [0, 1].
        image_std: standard deviation that each channel is divided by.
        channel: the channel whose grey levels are counted: an index, or "mean" for the average of the channels.

    Returns:
        `[lo, hi]`, the values of a pixel of 0 and of 1.

    Raises:
        ValueError: if the lengths differ, a standard deviation is not positive, or there is no such channel.
    """
    try:
        lengths = {math.nan if isinstance(values, str) else len(values) for values in (image_mean, image_std)}
    except TypeError:  # a number, or an array of no axis
        lengths = {0}
    if len(lengths) > 1 or not max(lengths) > 0:
        raise ValueError(
            "image_mean and image_std must be lists of one value per channel each, as [0.5], got "
            f"{image_mean!r} and {image_std!r}"
        )
    if min(image_std) <= 0:
        raise ValueError(f"image_std must be positive, got {list(image_std)}")
    lows = [-mean / std for mean, std in zip(image_mean, image_std, strict=True)]
    highs = [(1 - mean) / std for mean, std in zip(image_mean, image_std, strict=True)]
    if channel == "mean":
        return [sum(lows) / len(lows), sum(highs) / len(highs)]
    if isinstance(channel, str) or not 0 <= channel < len(lows):
        raise ValueError(f'glcm_channel must be "mean" or an index from 0 to {len(lows) - 1}, got {channel!r}')
    return [lows[channel], highs[channel]]


# What a texture head predicts. Left out of what is written where there is no head, so that a checkpoint without one is
# as it always was.
HEAD_FIELDS: dict[str, Any] = {
    "glcm_head_levels": 8,
    "glcm_head_offsets": [[0, 1], [1, 0], [1, 1], [1, -1]],
    "glcm_head_patches": "all",
}

# The same of the CLS token's.
CLS_FIELDS: dict[str, Any] = {"glcm_cls_tiles": 4}

# `texture` is the measured default for new work. Its glcm_weight is 10 * 16 ** 2: the loss is a mean over the
# levels x levels cells, and 10 is the weight of the sum over them. `paper` is the published setting, kept for
# comparison. `mse` is plain ViTMAE.
PRESETS: dict[str, dict[str, Any]] = {
    "texture": {
        "glcm_kernel": "linear",
        "glcm_levels": 16,
        "glcm_offsets": [[0, 1], [1, 0]],
        "glcm_channel": "mean",
        "glcm_value_range": value_range_from_normalization(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, "mean"),
        "glcm_reweight": False,
        "glcm_normalize": True,
        "glcm_weight": 2560.0,
        "ssim_weight": 0.0,
        "mse_weight": 1.0,
        "glcm_head_weight": 8.0,
        **HEAD_FIELDS,
        "glcm_cls_weight": 0.5,
        **CLS_FIELDS,
    },
    "paper": {
        "glcm_kernel": "sigmoid",
        "glcm_levels": 256,
        "glcm_sharpness": 30.0,
        "glcm_offsets": [[0, 1], [1, 0]],
        "glcm_channel": 0,
        "glcm_value_range": value_range_from_normalization(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, 0),
        "glcm_reweight": True,
        "glcm_normalize": False,
        "glcm_weight": 1.0,
        "ssim_weight": 1.0,
        "mse_weight": 0.1,
        "glcm_head_weight": 0.0,
        "glcm_cls_weight": 0.0,
    },
    "mse": {
        "glcm_weight": 0.0,
        "ssim_weight": 0.0,
        "mse_weight": 1.0,
        "glcm_head_weight": 0.0,
        "glcm_cls_weight": 0.0,
    },
}


def _copy_list(value: Any) -> Any:
    return [_copy_list(item) for item in value] if isinstance(value, list) else value


def _default(name: str) -> Any:
    return _copy_list(PRESETS["texture"][name])


@strict
class GLCMMAEConfig(ViTMAEConfig):
    r"""Configuration of a `GLCMMAEForPreTraining`; without arguments, a ViT-B/16 with the `texture` preset.

    All fields of `ViTMAEConfig` are kept. Those added say how a reconstruction is judged (Madan et al., "Focus on
    Texture", MICCAI 2025, arXiv 2507.10869):
    `loss = glcm_weight * L_glcm + ssim_weight * L_ssim + mse_weight * L_mse`, over the masked patches, plus
    `glcm_head_weight * L_head` where there is a texture head. A term of weight 0 is not computed, but for the mean
    squared error, which costs nothing.

    The texture head is a linear layer on the decoder that predicts the symmetric, normalised co-occurrence matrix of
    each patch, as a distribution over the unordered pairs of grey levels, for each offset: with `t` that of the patch
    (linear kernel) and `p` the softmax of the prediction, `L_head = mean over patches and offsets of KL(t || p)`.
    Nothing has to be synthesised: the best answer is the expected matrix, given what is visible.

    With a `glcm_cls_weight`, a linear layer on the encoder's CLS token predicts in the same way the matrices of a grid
    of tiles of the image, and `glcm_cls_weight * L_cls` is added, `L_cls` the mean of the divergence over tiles and
    offsets. Else nothing is predicted from the CLS token itself, which a `ViTForImageClassification` reads.

    Args:
        glcm_levels (`int`): number K of grey levels, at least 2.
        glcm_value_range (`[float, float]`): the grey values `[lo, hi]` that the levels span, in the units of
            `pixel_values` after normalisation; values outside are clamped. `value_range_from_normalization` gives it.
        glcm_offsets (`[[int, int], ...]`): offsets (row, column) in pixels between the two pixels of a pair.
            Each must be shorter than the patch in both directions.
        glcm_kernel (`str`): how a pixel is shared among grey levels: "sigmoid" (as published), "linear" (triangular
            B-spline between level centres) or "hard" (plain binning; no gradient, for measuring only).
        glcm_sharpness (`float`): of the sigmoid kernel: bin width over logistic scale; infinity is hard binning.
        glcm_channel (`int` or `"mean"`): the channel whose grey values are counted, or the mean of the channels.
        glcm_reweight (`bool`): down-weight crowded cells, G -> G (S - G) / S with S the sum of G, as published.
        glcm_symmetric (`bool`): count each pair in both orders.
        glcm_normalize (`bool`): divide each matrix by its sum, so that it holds joint probabilities.
        glcm_cumulative (`bool`): compare cumulative matrices, so that a grey value that is off by few levels costs less
            than one that is off by many. Not together with `glcm_reweight`.
        glcm_weight, ssim_weight, mse_weight, glcm_head_weight, glcm_cls_weight (`float`): weights of the terms, at
            least 0, not all 0. With `glcm_head_weight=0` there is no texture head, and its fields are written only if
            they were changed: stored fields (a config.json) without a `glcm_head_weight` mean that there is none. The
            same holds for `glcm_cls_weight` and the head of the CLS token.
        glcm_head_levels (`int`): number of grey levels that the heads tell apart, over `glcm_value_range`.
        glcm_head_offsets (`[[int, int], ...]`): offsets (row, column) in pixels, each with a distribution of its own.
            Each must be shorter than the patch in both directions.
        glcm_head_patches (`str`): the patches that the head is judged on: "all", visible ones too, or "masked".
        glcm_cls_tiles (`int`): tiles down and across the image, of which the CLS token's head predicts the matrices.
            They are of one size: up to `glcm_cls_tiles - 1` pixels are left out below and to the right. A tile must be
            longer than the `glcm_head_offsets` in both directions.

    Raises:
        huggingface_hub.errors.StrictDataclassError: on a wrong type or value; names the field, the value and what
            is allowed. Fields are also checked when they are assigned later.
        ValueError: on a name that begins like the fields of the objective, or is all but a field, and is none, given,
            stored or assigned. (As in transformers, any other becomes an attribute.)

    Example:

    ```python
    >>> from modeling_glcm_mae import GLCMMAEConfig, GLCMMAEForPreTraining

    >>> model = GLCMMAEForPreTraining(GLCMMAEConfig.from_preset("texture", mask_ratio=0.6))
    ```
    """

    patch_size: int = validated_field(check_patch_size, default=16)
    mask_ratio: float = validated_field(check_mask_ratio, default=0.75)
    glcm_levels: int = validated_field(check_levels, default=_default("glcm_levels"))
    glcm_value_range: list[float | int] | tuple[float | int, float | int] = validated_field(
        check_value_range, default_factory=lambda: _default("glcm_value_range")
    )
    glcm_offsets: list[list[int] | tuple[int, int]] | tuple[list[int] | tuple[int, int], ...] = validated_field(
        check_offsets, default_factory=lambda: _default("glcm_offsets")
    )
    glcm_kernel: str = validated_field(check_kernel, default=_default("glcm_kernel"))
    glcm_sharpness: float | int = validated_field(check_positive, default=30.0)
    glcm_channel: int | str = validated_field(check_channel, default=_default("glcm_channel"))
    glcm_reweight: bool = _default("glcm_reweight")
    glcm_symmetric: bool = False
    glcm_normalize: bool = _default("glcm_normalize")
    glcm_cumulative: bool = False
    glcm_weight: float | int = validated_field(check_weight, default=_default("glcm_weight"))
    ssim_weight: float | int = validated_field(check_weight, default=_default("ssim_weight"))
    mse_weight: float | int = validated_field(check_weight, default=_default("mse_weight"))
    glcm_head_weight: float | int = validated_field(check_weight, default=_default("glcm_head_weight"))
    glcm_head_levels: int = validated_field(check_levels, default=_default("glcm_head_levels"))
    glcm_head_offsets: list[list[int] | tuple[int, int]] | tuple[list[int] | tuple[int, int], ...] = validated_field(
        check_offsets, default_factory=lambda: _default("glcm_head_offsets")
    )
    glcm_head_patches: str = validated_field(check_head_patches, default=_default("glcm_head_patches"))
    glcm_cls_weight: float | int = validated_field(check_weight, default=_default("glcm_cls_weight"))
    glcm_cls_tiles: int = validated_field(check_tiles, default=CLS_FIELDS["glcm_cls_tiles"])

    def __setattr__(self, name: str, value: Any) -> None:
        # transformers makes an attribute of whatever it does not know: a mistyped setting would change nothing.
        self._refuse_unknown(name)
        super().__setattr__(name, value)

    @classmethod
    def _refuse_unknown(cls, name: str) -> None:
        if name in cls.__dataclass_fields__ or hasattr(cls, name):
            return
        ours = name.startswith(("glcm_", "ssim_", "mse_"))
        # Of other names, only those that are all but one of ViTMAE's: any else is somebody's own.
        near = difflib.get_close_matches(
            name, ViTMAEConfig.__annotations__ | cls.__annotations__, 1, 0.6 if ours else 0.9
        )
        if ours or near:
            hint = f": did you mean {near[0]}?" if near else ""
            raise ValueError(f"{name} is not a field of {cls.__name__} in this release{hint}")

    @classmethod
    def from_preset(cls, preset: str = "texture", **overrides: Any) -> "GLCMMAEConfig":
        """Build the configuration of a named setting of the method.

        Args:
            preset: "texture" (default for new work), "paper" (as published) or "mse" (plain ViTMAE, the baseline).
            **overrides: any field of the configuration; wins over the preset.

        Raises:
            ValueError: if there is no such preset, or an override is not a field.
        """
        if preset not in PRESETS:
            raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}")
        for name in overrides:
            cls._refuse_unknown(name)
        unknown = [name for name in overrides if name not in cls.__dataclass_fields__]
        if unknown:
            raise ValueError(f"not a field of {cls.__name__}: {', '.join(unknown)}")
        return cls(**{name: _copy_list(value) for name, value in PRESETS[preset].items()} | overrides)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> "GLCMMAEConfig":
        """Build from stored fields, as in transformers; overrides are checked together with them.

        (transformers assigns overrides later, so `norm_pix_loss=False` could not repair a checkpoint that has it True.)
        Where no `glcm_head_weight` is stored, there is no texture head: checkpoints without one do not name it. Nor is
        there one of the CLS token without a `glcm_cls_weight`.

        Args:
            config_dict: the stored fields.
            **kwargs: fields that override them, and transformers' own options.
        """
        for name in kwargs:
            cls._refuse_unknown(name)
        own = cls.__dataclass_fields__.keys() - PreTrainedConfig.__dataclass_fields__.keys()
        stored = {"glcm_head_weight": 0.0, "glcm_cls_weight": 0.0} | config_dict
        return super().from_dict(stored | {name: kwargs[name] for name in own & kwargs.keys()}, **kwargs)

    @classmethod
    def from_json_file(cls, json_file: str) -> "GLCMMAEConfig":
        """Build from a file of stored fields, as `from_dict` does."""
        return cls.from_dict(cls._dict_from_json_file(json_file))

    def to_dict(self) -> dict[str, Any]:
        """All fields, as in transformers; those of a head that there is not only if they were changed."""
        fields = super().to_dict()
        without = {}
        if not self.glcm_cls_weight:
            without = {"glcm_cls_weight": self.glcm_cls_weight} | CLS_FIELDS
            if not self.glcm_head_weight:
                without |= {"glcm_head_weight": self.glcm_head_weight} | HEAD_FIELDS
        return {name: value for name, value in fields.items() if name not in without or value != without[name]}

    def validate_texture(self) -> None:
        """Check the fields against each other (run by the strict dataclass after the fields were set)."""
        sides = [self.image_size] * 2 if isinstance(self.image_size, int) else list(self.image_size)
        if len(sides) != 2 or any(side < 1 or side % self.patch_size for side in sides):
            raise ValueError(
                f"image_size must be one or two positive multiples of patch_size ({self.patch_size} pixels), "
                f"got {self.image_size}"
            )
        if self.num_channels < 1:
            raise ValueError(f"num_channels must be at least 1, got {self.num_channels}")
        for name in ("glcm_offsets", "glcm_head_offsets"):
            too_long = [offset for offset in getattr(self, name) if max(map(abs, offset)) >= self.patch_size]
            if too_long:
                raise ValueError(
                    f"{name} must be shorter than patch_size ({self.patch_size} pixels) in both directions, "
                    f"got {too_long}"
                )
        tile = min(sides) // self.glcm_cls_tiles
        if self.glcm_cls_weight and any(max(map(abs, offset)) >= tile for offset in self.glcm_head_offsets):
            raise ValueError(
                f"glcm_cls_tiles ({self.glcm_cls_tiles}) must leave tiles longer than glcm_head_offsets, got tiles of "
                f"{tile} pixels in images of {sides[0]} x {sides[1]} and {self.glcm_head_offsets}"
            )
        if self.glcm_channel != "mean" and self.glcm_channel >= self.num_channels:
            raise ValueError(
                f'glcm_channel must be "mean" or less than num_channels ({self.num_channels}), got {self.glcm_channel}'
            )
        if self.glcm_cumulative and self.glcm_reweight:
            raise ValueError(
                "glcm_cumulative=True must not be combined with glcm_reweight=True: set one of them to False"
            )
        weights = ("glcm_weight", "ssim_weight", "mse_weight", "glcm_head_weight", "glcm_cls_weight")
        if not any(getattr(self, name) for name in weights):
            raise ValueError(f"{', '.join(weights[:-1])} and {weights[-1]} must not all be 0: nothing would be learned")
        if self.norm_pix_loss and (self.glcm_weight or self.ssim_weight):
            raise ValueError(
                "norm_pix_loss=True must not be combined with glcm_weight or ssim_weight above 0 (got "
                f"{self.glcm_weight} and {self.ssim_weight}): it rescales every patch by its own mean and variance, "
                "so grey levels would mean something else in each patch. Set norm_pix_loss=False, or both weights to 0."
            )


__all__ = ["GLCMMAEConfig", "value_range_from_normalization"]
