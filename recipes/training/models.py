"""Models before their first step: from nothing, or from a checkpoint."""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    BeitConfig,
    BeitForImageClassification,
    PreTrainedConfig,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.utils import logging as transformers_logging

from commandline import UsageError
from modeling_glcm_mae import GLCMMAEConfig, GLCMMAEForPreTraining, value_range_from_normalization
from training.classifier_options import POOLINGS
from training.options import SIZES, DataArguments, ModelArguments

logger = logging.getLogger(__name__)

# By the weight of a head: what it is called, how its tensors are, and the fields that say what these mean.
PAIRS = ("glcm_head_levels", "glcm_head_offsets")
HEADS = {
    "glcm_head_weight": ("texture head", "decoder.glcm_head.", PAIRS),
    "glcm_cls_weight": ("head of the CLS token", "decoder.glcm_cls_head.", (*PAIRS, "glcm_cls_tiles")),
}


def build_model(model_args: ModelArguments, data_args: DataArguments) -> GLCMMAEForPreTraining:
    """Load or initialise the model; the grey range follows the normalisation unless it was given.

    A head starts new where the checkpoint has none. One of the checkpoint is left out only if this was asked for, and
    its levels, offsets and tiles stay.

    Raises:
        UsageError: on arguments that do not fit each other or the checkpoint.
    """
    overrides = model_args.config_overrides()
    for name in SIZES:
        if overrides.get(name, 1) < 1:
            raise UsageError(f"{name} must be at least 1, got {overrides[name]}")
    source = {"subfolder": model_args.model_subfolder, "revision": model_args.model_revision}
    if model_args.model_name_or_path is None:
        config = GLCMMAEConfig.from_preset(model_args.preset, **overrides)
    else:
        try:
            stored = GLCMMAEForPreTraining.checkpoint_config(model_args.model_name_or_path, **source)
        except ValueError as error:  # of another architecture; the package names its argument, here it is an option
            said = str(error).replace("subfolder='pretraining'", "--model_subfolder pretraining")
            raise UsageError(f"model_name_or_path: {said}") from error
        preset = GLCMMAEConfig.from_preset(model_args.preset)
        settings = {name: getattr(preset, name) for name in vars(preset) if name.startswith(("glcm_", "ssim_", "mse_"))}
        sizes = {field for weight, (_, _, fields) in HEADS.items() if stored.get(weight) for field in fields}
        settings = {name: value for name, value in settings.items() if name not in sizes}
        fixed = stored | settings | {"norm_pix_loss": False} | overrides
        config = GLCMMAEConfig.from_dict(fixed)
        _check_heads(model_args.model_name_or_path, stored, config, overrides)
        if config.image_size != stored.get("image_size", config.image_size):
            raise UsageError(
                f"image_size must be that of the checkpoint ({stored['image_size']}), got {config.image_size}"
            )
    if model_args.glcm_value_range is None:
        mean, std = data_args.normalization(config.num_channels)
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
    # Of these, it was said.
    differing = tuple(
        begin for weight, (_, begin, _) in HEADS.items() if bool(stored.get(weight)) != bool(getattr(config, weight))
    )
    try:
        with _quiet() if differing else contextlib.nullcontext():
            model, report = GLCMMAEForPreTraining.from_pretrained(
                model_args.model_name_or_path, config=config, output_loading_info=True, **source
            )
    except RuntimeError as error:  # sizes of tensors
        given = ", ".join(name for name in overrides if name in SIZES) or "none"
        raise UsageError(
            f"{model_args.model_name_or_path} does not fit the model: leave sizes to the checkpoint (given: {given}). "
            f"{str(error).splitlines()[0]}"
        ) from error
    found = {name: sorted(key for key in keys if not str(key).startswith(differing)) for name, keys in report.items()}
    wrong = {name: keys for name, keys in found.items() if keys}
    if wrong:
        raise UsageError(f"{model_args.model_name_or_path} does not fit the model: {wrong}")
    return model


def _check_heads(name: str, stored: dict[str, Any], config: GLCMMAEConfig, overrides: dict[str, Any]) -> None:
    """Refuse to lose or to reinterpret a head of a checkpoint; say where one starts new or is left out."""
    lost = [
        weight for weight in HEADS if stored.get(weight) and not getattr(config, weight) and weight not in overrides
    ]
    if lost:
        heads = " and ".join(f"a {HEADS[weight][0]} ({weight} {stored[weight]:g})" for weight in lost)
        choices = "; ".join(f"give {weight}, {stored[weight]:g} to train it on or 0 to leave it out" for weight in lost)
        raise UsageError(f"{name} has {heads}, which the preset does without: {choices}")
    for weight, (head, _, fields) in HEADS.items():
        before, now = stored.get(weight), getattr(config, weight)
        if not before and now:
            logger.info("%s has no %s: it starts new", name, head)
        elif before and not now:
            logger.info("the %s of %s is left out, as asked for by %s 0", head, name, weight)
        elif before:
            for field in fields:
                size = getattr(config, field)
                if stored.get(field, size) != size:
                    raise UsageError(f"{field} must be that of the {head} of {name} ({stored[field]}), got {size}")


CLASSIFIERS = dict(zip(POOLINGS, (ViTForImageClassification, BeitForImageClassification), strict=True))
Classifier = ViTForImageClassification | BeitForImageClassification
_ENCODERS = {"vit": ViTConfig, "vit_mae": ViTConfig, "beit": BeitConfig}
_OWN = ("architectures", "dtype", "id2label", "label2id", "num_labels", "problem_type", "transformers_version")


class StochasticDepth(nn.Module):
    """Drops a residual branch of whole samples in training (Huang et al. 2016, "Deep Networks with Stochastic Depth").

    Args:
        probability: of dropping the branch of a sample, 0 to below 1; kept ones are scaled by 1 / (1 - probability).
    """

    def __init__(self, probability: float):
        super().__init__()
        self.probability = probability

    def forward(self, branch: torch.Tensor) -> torch.Tensor:
        """`branch`: `(batch_size, ...)`."""
        if not self.training or not self.probability:
            return branch
        shape = (len(branch),) + (1,) * (branch.ndim - 1)
        kept = torch.rand(shape, device=branch.device) >= self.probability
        return branch * kept / (1 - self.probability)


def load_classifier(
    name_or_path: str | None,
    class_names: list[str],
    *,
    pooling: str | None = "cls",
    drop_path: float = 0.0,
    revision: str = "main",
    subfolder: str = "",
    sizes: dict[str, Any] | None = None,
) -> Classifier:
    """A classifier with the encoder of a checkpoint and a new head.

    The classifier always takes three channels, as `pipeline("image-classification")` gives them. From an encoder of one
    channel the patch projection is repeated over three, divided by three, which is the same function of a grey image.

    Args:
        name_or_path: an export of pretrain.py or finetune.py, any ViT or ViTMAE checkpoint (folder or Hub id); `None`
            for random weights.
        class_names: names of the classes, label 0 first.
        pooling: "cls" (stock `ViTForImageClassification`), "mean" (stock `BeitForImageClassification`, see
            `with_mean_pooling`), `None`: as the checkpoint has it, "cls" where it has no head, or "usual": likewise,
            but "mean" where it has no head and images are square.
        drop_path: stochastic depth of the last layer; it grows linearly from 0 at the first.
        revision, subfolder: of the checkpoint.
        sizes: fields of `ViTConfig`, without a checkpoint.

    Raises:
        UsageError: the checkpoint is of another architecture, lacks a weight of the encoder, or reads the mean of the
            patch tokens where `pooling` is "cls"; images that are not square, with "mean".
    """
    names = dict(enumerate(class_names))
    labels = {"id2label": names, "label2id": {name: index for index, name in names.items()}}
    has_head = False
    if name_or_path is None:
        model = ViTForImageClassification(ViTConfig(**(sizes or {}) | {"num_channels": 3}, **labels))
    else:
        if sizes:
            raise UsageError(f"{', '.join(sizes)} cannot be given together with model_name_or_path: it has its own")
        source = {"revision": revision, "subfolder": subfolder}
        try:
            stored = AutoConfig.from_pretrained(name_or_path, **source)
        except (OSError, ValueError) as error:
            raise UsageError(f"model_name_or_path {name_or_path!r} cannot be opened: {error}") from error
        if stored.model_type not in _ENCODERS:
            raise UsageError(
                f"model_name_or_path {name_or_path!r} is a {stored.model_type}; allowed are {', '.join(_ENCODERS)}"
            )
        config_class = _ENCODERS[stored.model_type]
        if config_class is BeitConfig and not (stored.use_mean_pooling and pooling in ("mean", "usual", None)):
            raise UsageError(
                f"model_name_or_path {name_or_path!r} is a beit: allowed is one with use_mean_pooling, by pooling mean"
            )
        classifier = BeitForImageClassification if config_class is BeitConfig else ViTForImageClassification
        # Only what a ViT knows, so that no key of the decoder, the texture loss or custom code reaches the classifier.
        config = config_class(**_shared(stored, config_class), **labels)
        if config_class is BeitConfig:
            config.drop_path_rate = 0.0  # `drop_path` is applied below
        with _quiet():
            try:
                model, report = classifier.from_pretrained(
                    name_or_path,
                    config=config,
                    ignore_mismatched_sizes=True,  # judged below: of the head only
                    output_loading_info=True,
                    dtype=torch.float32,
                    **source,
                )
            except (OSError, SafetensorError) as error:
                raise UsageError(f"model_name_or_path {name_or_path!r} cannot be loaded: {error}") from error
        # The first release wrote a head on the mean under the names of one on CLS.
        of_mean = "ViTMeanPoolingForImageClassification" in (stored.architectures or ())
        has_head = "classifier.weight" not in report["missing_keys"] and not of_mean
        absent = sorted(name for name in report["missing_keys"] if not name.startswith("classifier."))
        wrong = sorted(str(item) for item in report["mismatched_keys"] if "classifier." not in str(item))
        if absent or wrong:
            kinds = (("missing", absent), ("of another size", wrong))
            found = [f"{what} {', '.join(weights[:5])}" for what, weights in kinds if weights]
            raise UsageError(f"model_name_or_path {name_or_path!r} lacks weights of the encoder: {'; '.join(found)}")
        # A head for other classes (or one drawn at random because the checkpoint has none) starts anew, small.
        nn.init.normal_(model.classifier.weight, std=0.02)
        nn.init.zeros_(model.classifier.bias)
        _take_three_channels(model)
    if pooling == "usual" and not has_head and _is_square(model.config.image_size):
        pooling = "mean"
    if pooling == "mean" and isinstance(model, ViTForImageClassification):
        model = with_mean_pooling(model)
    model.config.architectures = [type(model).__name__]
    layers = model.base_model.layers
    for layer, rate in zip(layers, torch.linspace(0, drop_path, len(layers)).tolist(), strict=True):
        # Both apply `dropout` to the residual branches just before they are added: the place of stochastic depth.
        layer.dropout = nn.Sequential(layer.dropout, StochasticDepth(rate))
    return model


def _is_square(image_size: int | Sequence[int]) -> bool:
    return isinstance(image_size, int) or len(set(image_size)) == 1


def _shared(config: PreTrainedConfig, config_class: type[PreTrainedConfig]) -> dict[str, Any]:
    """Fields of a model that another class of configurations knows too, labels and what a file says of itself not."""
    return {
        name: getattr(config, name)
        for name in config_class.__dataclass_fields__
        if name in vars(config) and not name.startswith("_") and name not in _OWN
    }


@torch.no_grad()
def with_mean_pooling(model: ViTForImageClassification) -> BeitForImageClassification:
    """The same network with a head on the mean of the patch tokens, as MAE fine-tunes it (`global_pool`, `fc_norm`).

    Transformers has this as a BEiT with positions that are added, without relative ones and without layer scale. Its
    keys have no bias, which cancels in the softmax anyway. The norm of the single tokens goes; a new one, of weight 1
    and bias 0, is applied to their mean. The weights of the head are copied.

    Args:
        model: whose weights are copied; for square images.

    Raises:
        UsageError: of images that are not square, for which transformers would interpolate the positions wrongly.
    """
    sides = model.config.image_size
    if not _is_square(sides):
        raise UsageError(f"pooling mean needs square images, got a model of {' x '.join(map(str, sides))} pixels")
    mean = BeitForImageClassification(
        BeitConfig(
            **_shared(model.config, BeitConfig),
            id2label=model.config.id2label,
            label2id=model.config.label2id,
            use_absolute_position_embeddings=True,
            use_mean_pooling=True,
            layer_scale_init_value=0.0,
            drop_path_rate=0.0,
        )
    )
    weights = {
        name.replace("vit.", "beit.", 1): weight
        for name, weight in model.state_dict().items()
        if not name.startswith("vit.layernorm.") and not name.endswith(".k_proj.bias")
    }
    missing, unexpected = mean.load_state_dict(weights, strict=False)
    # Those of a ViT without qkv_bias are zero, as they are drawn.
    new = [name for name in missing if not name.startswith("beit.pooler.") and "_proj.bias" not in name]
    if new or unexpected:
        raise RuntimeError(f"a ViT and a BEiT differ in {new + unexpected}")
    return mean


@torch.no_grad()
def _take_three_channels(model: Classifier) -> None:
    if model.config.num_channels == 3:
        return
    if model.config.num_channels != 1:
        raise UsageError(f"the encoder takes {model.config.num_channels} channels; allowed are 1 and 3")
    embeddings = model.base_model.embeddings.patch_embeddings
    old = embeddings.projection
    new = nn.Conv2d(3, old.out_channels, old.kernel_size, old.stride)
    new.weight.copy_(old.weight.expand(-1, 3, -1, -1) / 3)
    new.bias.copy_(old.bias)
    embeddings.projection = new
    embeddings.num_channels = model.config.num_channels = 3


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the load report: of what it lists, only a missing encoder weight matters, and that is an error here."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def parameter_groups(
    model: Classifier, learning_rate: float, weight_decay: float, layer_decay: float
) -> list[dict[str, Any]]:
    """Optimizer groups with a rate that falls from the head to the patch embedding, as in BEiT and MAE.

    The head and the last norm have the full rate, layer i of n has `learning_rate * layer_decay ** (n - i)`
    (i = 0..n - 1), and patch embedding, positions and CLS token `learning_rate * layer_decay ** (n + 1)`. Biases,
    norms, positions and tokens are not decayed.

    Args:
        model: the classifier.
        learning_rate: of the head.
        weight_decay: of matrices.
        layer_decay: factor from a layer to the one below it, in (0, 1].

    Returns:
        `params`, `lr`, `weight_decay` and `name` (depth and kind) of each group that has a parameter to train.
    """
    num_layers = len(model.base_model.layers)
    encoder = model.base_model_prefix
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if name.startswith(f"{encoder}.embeddings."):
            depth = 0
        elif name.startswith(f"{encoder}.layers."):
            depth = int(name.split(".")[2]) + 1
        else:
            depth = num_layers + 1
        decayed = parameter.ndim > 1 and not name.endswith(("cls_token", "position_embeddings", "mask_token"))
        group = groups.setdefault(
            (depth, decayed),
            {
                "params": [],
                "lr": learning_rate * layer_decay ** (num_layers + 1 - depth),
                "weight_decay": weight_decay if decayed else 0.0,
                "name": f"depth {depth}, {'decayed' if decayed else 'not decayed'}",
            },
        )
        group["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]
