"""The classifier before its first step: where its weights come from, and how it is pooled."""

import shutil

import pytest
import torch
from test_finetune import exported  # noqa: F401 - fixtures
from transformers import ViTForImageClassification, ViTModel

from commandline import UsageError
from hub.export import write_export
from images.transform import ImageTransform
from modeling_glcm_mae import GLCMMAEForPreTraining
from training.models import StochasticDepth, load_classifier, parameter_groups


@pytest.mark.parametrize("subfolder", ["", "pretraining"])
def test_the_encoder_is_taken_over_tensor_by_tensor(exported, subfolder):
    model = load_classifier(str(exported), ["a", "b"], subfolder=subfolder)
    encoder = ViTModel.from_pretrained(exported)
    expected = {name: value for name, value in encoder.state_dict().items() if not name.startswith("pooler.")}
    found = model.vit.state_dict()
    assert set(found) == set(expected) and len(found) > 10
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    images = torch.randn(3, 3, 32, 32)
    states = model.eval().vit(images).last_hidden_state
    assert states.shape[1] == 1 + 16  # every patch of 32 / 8 squared
    assert torch.equal(states, encoder.eval()(images).last_hidden_state)
    assert type(model) is ViTForImageClassification and not hasattr(model.config, "auto_map")
    assert not any(name.startswith(("glcm_", "decoder_", "mask_ratio")) for name in model.config.to_dict())


def test_an_encoder_of_one_channel_answers_the_same_for_grey(tiny_config, tmp_path):
    model = GLCMMAEForPreTraining(tiny_config("texture", num_channels=1))
    transform = ImageTransform(32, image_mean=(0.5,), image_std=(0.5,))
    write_export(tmp_path / "export", model, transform.processor(), {}, [], {"title": "t", "repo_id": "r"})
    encoder = ViTModel.from_pretrained(tmp_path / "export").eval()
    classifier = load_classifier(str(tmp_path / "export"), ["a", "b"]).eval()
    grey = torch.randn(2, 1, 32, 32)
    expected = encoder(grey).last_hidden_state
    torch.testing.assert_close(classifier.vit(grey.expand(-1, 3, -1, -1)).last_hidden_state, expected)


def test_a_missing_encoder_weight_is_an_error(exported, tmp_path):
    from safetensors.torch import load_file, save_file

    broken = shutil.copytree(exported, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    lost = next(name for name in weights if "layer.0" in name or "layers.0" in name)
    del weights[lost]
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match="lacks weights of the encoder: missing vit"):
        load_classifier(str(broken), ["a", "b"])


def test_what_is_no_encoder_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UsageError, match="is a bert; allowed are vit, vit_mae"):
        load_classifier(str(tmp_path), ["a", "b"])
    with pytest.raises(UsageError, match="cannot be opened"):
        load_classifier(str(tmp_path / "nowhere"), ["a", "b"])


def test_layer_decay_groups_against_a_plain_calculation():
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    model = load_classifier(None, ["a", "b"], sizes=sizes | {"image_size": 32, "patch_size": 8})
    groups = parameter_groups(model, 1e-2, 0.05, 0.5)
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert len(rate) == sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        steps = 0  # from the head down
        if "embeddings" in name:
            steps = 4
        elif ".layers." in name:
            steps = 3 - int(name.split(".layers.")[1].split(".")[0])
        assert rate[id(parameter)] == pytest.approx(1e-2 * 0.5**steps), name
        plain = name.endswith(("bias", "cls_token", "position_embeddings")) or "norm" in name
        assert decay[id(parameter)] == (0 if plain else 0.05), name


def test_stochastic_depth_drops_whole_samples_and_keeps_the_mean():
    depth = StochasticDepth(0.25).train()
    out = depth(torch.ones(4000, 3, 2))
    assert out.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert (out.flatten(1).std(dim=1) == 0).all()
    assert out.mean().item() == pytest.approx(1, abs=0.05)
    assert torch.equal(depth.eval()(torch.ones(2, 2)), torch.ones(2, 2))
