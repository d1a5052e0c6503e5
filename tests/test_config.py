"""Tests of modeling_glcm_mae.configuration_glcm_mae."""

import json
import math

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import ViTMAEConfig

from modeling_glcm_mae import GLCMMAEConfig, GLCMMAEForPreTraining, value_range_from_normalization

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def test_paper_preset_is_the_published_setting():
    config = GLCMMAEConfig.from_preset("paper")
    assert (config.glcm_kernel, config.glcm_levels, config.glcm_sharpness) == ("sigmoid", 256, 30.0)
    assert config.glcm_offsets == [[0, 1], [1, 0]]
    assert (config.glcm_reweight, config.glcm_normalize, config.glcm_symmetric) == (True, False, False)
    assert config.glcm_channel == 0
    assert config.glcm_value_range == pytest.approx([-0.485 / 0.229, 0.515 / 0.229])
    assert (config.glcm_weight, config.ssim_weight, config.mse_weight) == (1.0, 1.0, 0.1)
    assert config.glcm_head_weight == 0
    assert config.mask_ratio == 0.75


def test_texture_preset_is_the_default():
    config = GLCMMAEConfig.from_preset("texture")
    assert config.to_dict() == GLCMMAEConfig.from_preset().to_dict() == GLCMMAEConfig().to_dict()
    assert (config.glcm_kernel, config.glcm_normalize) == ("linear", True)
    assert (config.glcm_weight, config.mse_weight) == (2560, 1)
    assert (config.glcm_head_weight, config.glcm_cls_weight) == (8, 0.5)


def test_mse_preset_is_plain_vitmae():
    config = GLCMMAEConfig.from_preset("mse")
    assert (config.glcm_weight, config.ssim_weight, config.mse_weight) == (0.0, 0.0, 1.0)
    assert config.glcm_head_weight == 0


def test_fields_of_vitmae_keep_their_defaults():
    stock, ours = ViTMAEConfig().to_dict(), GLCMMAEConfig().to_dict()
    assert {name: ours[name] for name in stock} == stock


def test_overrides_win_over_the_preset():
    config = GLCMMAEConfig.from_preset("paper", glcm_levels=64, mask_ratio=0.6)
    assert (config.glcm_levels, config.mask_ratio, config.glcm_kernel) == (64, 0.6, "sigmoid")


def test_changing_one_configuration_leaves_the_presets_alone():
    config = GLCMMAEConfig.from_preset("texture")
    config.glcm_offsets[0][1] = 3
    config.glcm_offsets.append([3, 3])
    config.glcm_value_range[0] = -100.0
    for other in (GLCMMAEConfig.from_preset("texture"), GLCMMAEConfig()):
        assert [3, 3] not in other.glcm_offsets and [0, 3] not in other.glcm_offsets
        assert other.glcm_value_range[0] != -100.0


def test_unknown_preset_and_unknown_override_are_named():
    with pytest.raises(ValueError, match=r"texture, paper, mse.*'papre'"):
        GLCMMAEConfig.from_preset("papre")
    with pytest.raises(ValueError, match="glcm_level"):
        GLCMMAEConfig.from_preset("paper", glcm_level=16)
    config = GLCMMAEConfig()
    for given in (
        lambda: GLCMMAEConfig(glcm_level=16),
        lambda: GLCMMAEConfig.from_dict({"glcm_level": 16}),
        lambda: GLCMMAEConfig.from_dict({}, glcm_level=16),
        lambda: setattr(config, "glcm_level", 16),
    ):
        with pytest.raises(
            ValueError, match="glcm_level is not a field of GLCMMAEConfig in this release: did you mean"
        ):
            given()
    with pytest.raises(ValueError, match="did you mean mse_weight?"):
        GLCMMAEConfig(mse_weights=0.5)
    with pytest.raises(ValueError, match="did you mean mask_ratio?"):
        GLCMMAEConfig(mask_ration=0.3)
    with pytest.raises(ValueError, match="did you mean decoder_hidden_size?"):
        GLCMMAEConfig.from_preset("texture", decoder_hiden_size=64)
    assert GLCMMAEConfig(site="Bonn").site == "Bonn"  # as in transformers


# Field, bad value, what the message must say is allowed.
BAD_VALUES = [
    ("glcm_levels", 1, "at least 2"),
    ("glcm_levels", -3, "at least 2"),
    ("glcm_levels", 16.0, "int"),
    ("glcm_levels", "16", "int"),
    ("glcm_value_range", [2.0, -2.0], "lo < hi"),
    ("glcm_value_range", [1.0, 1.0], "lo < hi"),
    ("glcm_value_range", [0.0], "two finite numbers"),
    ("glcm_value_range", [0.0, math.inf], "two finite numbers"),
    ("glcm_value_range", [math.nan, 1.0], "two finite numbers"),
    ("glcm_value_range", "01", "list"),
    ("glcm_offsets", [], "non-empty"),
    ("glcm_offsets", [[0, 0]], "none of them [0, 0]"),
    ("glcm_offsets", [[0, 1, 2]], "[dy, dx]"),
    ("glcm_offsets", [[0, 1.5]], "int"),
    ("glcm_offsets", [0, 1], "list"),
    ("glcm_kernel", "gaussian", "sigmoid, linear, hard"),
    ("glcm_sharpness", 0.0, "greater than 0"),
    ("glcm_sharpness", -30.0, "greater than 0"),
    ("glcm_sharpness", math.inf, "finite"),
    ("glcm_sharpness", "30", "float"),
    ("glcm_channel", -1, 'channel index or "mean"'),
    ("glcm_channel", "red", 'channel index or "mean"'),
    ("glcm_channel", 1.0, "int"),
    ("glcm_reweight", "yes", "bool"),
    ("glcm_symmetric", 1, "bool"),
    ("glcm_normalize", 0, "bool"),
    ("glcm_weight", -1.0, "at least 0"),
    ("glcm_weight", math.nan, "finite"),
    ("ssim_weight", -0.5, "at least 0"),
    ("mse_weight", math.inf, "finite"),
    ("mse_weight", "1", "float"),
    ("glcm_head_weight", -1.0, "at least 0"),
    ("glcm_head_levels", 1, "at least 2"),
    ("glcm_head_offsets", [[0, 0]], "none of them [0, 0]"),
    ("glcm_head_patches", "visible", "all, masked"),
    ("glcm_cls_weight", -1.0, "at least 0"),
    ("glcm_cls_tiles", 0, "at least 1"),
    ("glcm_cls_tiles", 2.0, "int"),
    ("mask_ratio", 1.5, "less than 1.0"),
    ("mask_ratio", 1.0, "less than 1.0"),
    ("mask_ratio", -0.1, "at least 0.0"),
    ("patch_size", [16, 16], "int"),
    ("patch_size", 0, "positive"),
]


@pytest.mark.parametrize(("field", "value", "allowed"), BAD_VALUES)
def test_bad_value_names_the_field_the_value_and_what_is_allowed(field, value, allowed):
    with pytest.raises(StrictDataclassError) as caught:
        GLCMMAEConfig(**{field: value})
    message = str(caught.value)
    assert field in message and str(value) in message and allowed in message


@pytest.mark.parametrize(("field", "value", "allowed"), BAD_VALUES)
def test_bad_value_is_refused_when_assigned_later(field, value, allowed):
    config = GLCMMAEConfig()
    before = getattr(config, field)
    with pytest.raises(StrictDataclassError, match=field):
        setattr(config, field, value)
    assert getattr(config, field) == before


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"glcm_offsets": [[0, 1], [8, 0]], "patch_size": 8}, ["glcm_offsets", "patch_size", "8", "[[8, 0]]"]),
        ({"glcm_offsets": [[1, -16]]}, ["glcm_offsets", "patch_size", "16", "[[1, -16]]"]),
        ({"glcm_head_offsets": [[0, 16]]}, ["glcm_head_offsets", "patch_size", "16", "[[0, 16]]"]),
        ({"image_size": 100}, ["image_size", "multiples of patch_size (16", "100"]),
        ({"image_size": [224, 0]}, ["image_size", "[224, 0]"]),
        ({"image_size": [16, 16, 16]}, ["image_size", "one or two", "[16, 16, 16]"]),
        ({"num_channels": 0}, ["num_channels", "at least 1", "0"]),
        ({"glcm_channel": 3}, ["glcm_channel", "num_channels", "3", "mean"]),
        ({"glcm_channel": 1, "num_channels": 1}, ["glcm_channel", "num_channels", "1"]),
        (
            {f"{term}_weight": 0.0 for term in ("glcm", "ssim", "mse", "glcm_head", "glcm_cls")},
            ["glcm_weight", "ssim_weight", "mse_weight", "glcm_head_weight", "glcm_cls_weight"],
        ),
        (
            {"glcm_cls_weight": 1.0, "glcm_cls_tiles": 8, "image_size": [96, 64], "glcm_head_offsets": [[0, 8]]},
            ["glcm_cls_tiles (8)", "glcm_head_offsets", "8 pixels", "96 x 64", "[[0, 8]]"],
        ),
        ({"norm_pix_loss": True}, ["norm_pix_loss", "glcm_weight", "grey levels", "each patch"]),
        ({"glcm_cumulative": True, "glcm_reweight": True}, ["glcm_cumulative", "glcm_reweight"]),
        (
            {"norm_pix_loss": True, "glcm_weight": 0.0, "ssim_weight": 1.0},
            ["norm_pix_loss", "ssim_weight", "each patch"],
        ),
    ],
)
def test_fields_that_do_not_fit_each_other_are_named(fields, said):
    with pytest.raises(StrictDataclassError) as caught:
        GLCMMAEConfig(**fields)
    assert all(part in str(caught.value) for part in said)


def test_the_longest_offset_that_fits_is_accepted():
    GLCMMAEConfig(patch_size=8, glcm_offsets=[[7, -7]], glcm_head_offsets=[[-7, 7]])
    GLCMMAEConfig(image_size=64, glcm_cls_weight=1.0, glcm_cls_tiles=8, glcm_head_offsets=[[-7, 7]])
    GLCMMAEConfig(image_size=64, glcm_cls_weight=0.0, glcm_cls_tiles=64)  # of no account without the head


@pytest.mark.parametrize("weight", ["glcm_head_weight", "glcm_cls_weight"])
def test_a_head_alone_is_an_objective(weight):
    nothing = {"glcm_weight": 0.0, "ssim_weight": 0.0, "mse_weight": 0.0, "glcm_head_weight": 0.0}
    assert getattr(GLCMMAEConfig(**nothing | {weight: 1.0}), weight) == 1


def test_norm_pix_loss_is_allowed_without_texture():
    assert GLCMMAEConfig.from_preset("mse", norm_pix_loss=True).norm_pix_loss


def test_fields_assigned_later_are_checked_against_each_other_by_the_model(tiny_config):
    config = tiny_config()
    config.norm_pix_loss = True
    with pytest.raises(StrictDataclassError, match="norm_pix_loss"):
        GLCMMAEForPreTraining(config)
    config = tiny_config()
    config.glcm_offsets.append([0, 99])
    with pytest.raises(StrictDataclassError, match=r"glcm_offsets.*99"):
        GLCMMAEForPreTraining(config)


def test_save_and_load_keep_every_field(tmp_path):
    config = GLCMMAEConfig(
        glcm_levels=8,
        glcm_value_range=(-1, 2.5),
        glcm_offsets=((0, 1), (2, -1)),
        glcm_kernel="sigmoid",
        glcm_sharpness=4.5,
        glcm_channel=2,
        glcm_reweight=True,
        glcm_symmetric=True,
        glcm_normalize=False,
        glcm_weight=3,
        ssim_weight=0.25,
        mse_weight=0.0,
        glcm_head_weight=2,
        glcm_head_levels=6,
        glcm_head_offsets=((0, 2), (1, -1)),
        glcm_head_patches="masked",
        glcm_cls_weight=1,
        glcm_cls_tiles=2,
        mask_ratio=0.5,
        image_size=[32, 64],
    )
    config.save_pretrained(tmp_path)
    loaded = GLCMMAEConfig.from_pretrained(tmp_path)
    assert list(loaded.glcm_value_range) == [-1, 2.5]
    assert [list(offset) for offset in loaded.glcm_offsets] == [[0, 1], [2, -1]]
    expected, found = (json.loads(c.to_json_string(use_diff=False)) for c in (config, loaded))
    assert {name: found[name] for name in expected} == expected


def test_defaults_are_written_too(tmp_path):
    # Otherwise a checkpoint would change its meaning with the defaults of a later release.
    method = {
        name for name in GLCMMAEConfig.__dataclass_fields__ if name.startswith("glcm_") or name.endswith("weight")
    }
    head, cls = ({name for name in method if name.startswith(begin)} for begin in ("glcm_head_", "glcm_cls_"))
    assert (len(method), len(head), len(cls)) == (19, 4, 2)
    for fields in ({"glcm_cls_weight": 1.0}, {"glcm_cls_weight": 1.0, "glcm_head_weight": 0.0}):
        GLCMMAEConfig(**fields).save_pretrained(tmp_path)
        assert method <= json.loads((tmp_path / "config.json").read_text()).keys()
    GLCMMAEConfig().save_pretrained(tmp_path)
    assert method <= json.loads((tmp_path / "config.json").read_text()).keys()
    GLCMMAEConfig(glcm_cls_weight=0.0).save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert method - cls <= stored.keys() and not cls & stored.keys()
    for preset in ("paper", "mse"):
        GLCMMAEConfig.from_preset(preset).save_pretrained(tmp_path)
        stored = json.loads((tmp_path / "config.json").read_text())
        assert method - head - cls <= stored.keys()
        assert not (head | cls) & stored.keys(), "without a head, a checkpoint is as it was before there were heads"
    GLCMMAEConfig.from_preset("mse", glcm_head_levels=6, glcm_cls_tiles=3).save_pretrained(tmp_path)
    loaded = GLCMMAEConfig.from_pretrained(tmp_path)
    assert (loaded.glcm_head_levels, loaded.glcm_cls_tiles) == (6, 3)


def test_what_is_stored_without_a_head_has_none(tmp_path):
    before = {"model_type": "vit_mae", "glcm_weight": 2560.0, "mse_weight": 0.1}
    (tmp_path / "config.json").write_text(json.dumps(before))
    for config in (
        GLCMMAEConfig.from_pretrained(tmp_path),
        GLCMMAEConfig.from_json_file(tmp_path / "config.json"),
        GLCMMAEConfig.from_dict(before),
    ):
        assert (config.glcm_head_weight, config.glcm_cls_weight, config.mse_weight) == (0, 0, 0.1)
    for weight in ("glcm_head_weight", "glcm_cls_weight"):
        assert getattr(GLCMMAEConfig.from_pretrained(tmp_path, **{weight: 3.0}), weight) == 3
    assert GLCMMAEConfig().glcm_head_weight > 0 and GLCMMAEConfig().glcm_cls_weight > 0


def test_a_stored_bad_value_is_refused(tmp_path):
    GLCMMAEConfig().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"glcm_levels": 1}))
    with pytest.raises(StrictDataclassError, match="glcm_levels"):
        GLCMMAEConfig.from_pretrained(tmp_path)


def test_overrides_at_load_are_checked_together_with_what_is_stored(tmp_path):
    ViTMAEConfig(norm_pix_loss=True).save_pretrained(tmp_path)
    with pytest.raises(StrictDataclassError, match="norm_pix_loss"):
        GLCMMAEConfig.from_pretrained(tmp_path)
    assert GLCMMAEConfig.from_pretrained(tmp_path, norm_pix_loss=False).glcm_weight > 0
    kept = GLCMMAEConfig.from_pretrained(tmp_path, glcm_weight=0.0, ssim_weight=0.0)
    assert kept.norm_pix_loss and kept.glcm_weight == 0
    with pytest.raises(StrictDataclassError, match="glcm_channel"):
        GLCMMAEConfig.from_pretrained(tmp_path, norm_pix_loss=False, glcm_channel=5)


def test_value_range_from_normalization_by_hand():
    assert value_range_from_normalization([0.5], [0.25], 0) == [-2.0, 2.0]
    assert value_range_from_normalization([0.0, 0.0, 0.0], [1.0, 1.0, 1.0]) == [0.0, 1.0]
    assert value_range_from_normalization(MEAN, STD, 1) == pytest.approx([-0.456 / 0.224, 0.544 / 0.224])
    # (-2.117904 - 2.035714 - 1.804444) / 3 and (2.248908 + 2.428571 + 2.640000) / 3
    assert value_range_from_normalization(MEAN, STD) == pytest.approx([-1.986021, 2.439160], abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((MEAN, STD[:2]), "image_mean and image_std"),
        (([], []), "image_mean and image_std"),
        ((np.array(0.5), torch.tensor(0.5)), "image_mean and image_std must be lists"),
        (("0.5", "0.5"), "image_mean and image_std must be lists"),
        ((0.5, 0.25), r"lists of one value per channel each, as \[0.5\], got 0.5 and 0.25"),
        ((MEAN, [0.2, 0.0, 0.2]), "positive"),
        ((MEAN, STD, 3), "from 0 to 2"),
        ((MEAN, STD, -1), "from 0 to 2"),
        ((MEAN, STD, "red"), "'red'"),
    ],
)
def test_value_range_from_normalization_refuses(arguments, said):
    with pytest.raises(ValueError, match=said):
        value_range_from_normalization(*arguments)
