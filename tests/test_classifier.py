"""The classifier before its first step: where its weights come from, and how it is pooled."""

import json
import shutil

import pytest
import torch
from test_finetune import exported  # noqa: F401 - fixtures
from transformers import (
    AutoModelForImageClassification,
    BeitForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from commandline import UsageError
from hub.export import write_export
from images.transform import ImageTransform
from modeling_glcm_mae import GLCMMAEForPreTraining
from training.models import StochasticDepth, load_classifier, parameter_groups, with_mean_pooling

SIZES = {"image_size": 32, "patch_size": 8, "hidden_size": 24, "num_attention_heads": 3, "intermediate_size": 40}
# As an export of the first release held it, beside the weights of a `ViTForImageClassification`.
FIRST_MEAN_POOLING = """
from transformers import ViTForImageClassification
from transformers.modeling_outputs import ImageClassifierOutput


class ViTMeanPoolingForImageClassification(ViTForImageClassification):
    def forward(self, pixel_values=None, labels=None, interpolate_pos_encoding=None, **kwargs):
        outputs = self.vit(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs)
        return ImageClassifierOutput(logits=self.classifier(outputs.last_hidden_state[:, 1:].mean(dim=1)))
"""


@torch.no_grad()
def draw(model: torch.nn.Module) -> torch.nn.Module:
    """With weights that are all of a size at which every one of them matters."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.mark.parametrize("qkv_bias", [True, False])
@torch.no_grad()
def test_mean_pooling_is_that_of_mae_and_opens_as_a_stock_model(qkv_bias, tmp_path):
    sizes = {**SIZES, "num_hidden_layers": 3, "layer_norm_eps": 1e-6, "qkv_bias": qkv_bias}
    vit = draw(ViTForImageClassification(ViTConfig(**sizes, id2label={0: "a", 1: "b", 2: "c"})))
    mean = with_mean_pooling(vit).eval()
    norm = mean.beit.pooler.layernorm
    assert norm.weight.eq(1).all() and norm.bias.eq(0).all(), "new: nothing of the ViT is applied to a mean"
    draw(norm)
    images = torch.randn(4, 3, 32, 32)
    # MAE's fine-tuning (global_pool): the mean of the patch tokens of the last block, fc_norm, head.
    tokens = vit(images, output_hidden_states=True).hidden_states[-1][:, 1:]
    pooled = torch.nn.functional.layer_norm(tokens.mean(dim=1), (24,), norm.weight, norm.bias, 1e-6)
    expected = pooled @ vit.classifier.weight.T + vit.classifier.bias
    torch.testing.assert_close(mean(images).logits, expected, rtol=1e-5, atol=1e-5)
    assert (expected - vit(images).logits).abs().max() > 0.1

    mean.save_pretrained(tmp_path)
    opened, report = AutoModelForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert type(opened) is BeitForImageClassification and not any(report.values())
    assert torch.equal(opened(images).logits, mean(images).logits)
    assert opened.config.id2label == {0: "a", 1: "b", 2: "c"}

    # Fine-tuned further: all but the head is kept, and the head reads what it did.
    further = load_classifier(str(tmp_path), ["x", "y"], pooling="mean").eval()
    assert torch.equal(further.beit(images).pooler_output, opened.beit(images).pooler_output)
    assert further(images).logits.shape == (4, 2) and further.config.id2label == {0: "x", 1: "y"}
    opened.config.drop_path_rate = 0.5  # as in a BEiT of others: what is asked for is all there is
    opened.save_pretrained(tmp_path)
    training = load_classifier(str(tmp_path), ["x", "y"], pooling="mean", drop_path=0.0).train()
    assert torch.equal(training(images).logits, training(images).logits)
    with pytest.raises(UsageError, match="is a beit: allowed is one with use_mean_pooling, by pooling mean"):
        load_classifier(str(tmp_path), ["x", "y"], pooling="cls")


def test_mean_pooling_is_refused_for_images_that_are_not_square():
    sizes = SIZES | {"image_size": (32, 48), "num_hidden_layers": 1}
    with pytest.raises(UsageError, match="pooling mean needs square images, got a model of 32 x 48 pixels"):
        load_classifier(None, ["a", "b"], pooling="mean", sizes=sizes)
    assert load_classifier(None, ["a", "b"], sizes=sizes).config.image_size == (32, 48)
    unlike = load_classifier(None, ["a", "b"], pooling="usual", sizes=sizes)
    assert type(unlike) is ViTForImageClassification and unlike.config.image_size == (32, 48)


def test_a_new_head_reads_the_mean_and_one_of_a_checkpoint_what_it_read(exported, tmp_path):
    new = load_classifier(str(exported), ["a", "b"], pooling="usual")
    nothing = load_classifier(None, ["a", "b"], pooling="usual", sizes=SIZES | {"num_hidden_layers": 1})
    assert type(new) is type(nothing) is BeitForImageClassification
    old = ViTForImageClassification(ViTConfig(**SIZES, num_hidden_layers=1, num_labels=2))
    for name, model in (("mean", new), ("cls", old)):
        model.save_pretrained(tmp_path / name)
        file = tmp_path / name / "config.json"  # the weights tell, not what a file says of itself
        file.write_text(json.dumps(json.loads(file.read_text()) | {"architectures": None}))
        assert type(load_classifier(str(tmp_path / name), ["a", "b"], pooling="usual")) is type(model)


@torch.no_grad()
def test_mean_pooling_of_the_first_release_still_opens(tmp_path):
    vit = draw(ViTForImageClassification(ViTConfig(**SIZES, num_hidden_layers=1, num_labels=2)))
    vit.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    name = "ViTMeanPoolingForImageClassification"
    config |= {"architectures": [name], "auto_map": {"AutoModelForImageClassification": f"vit_mean_pooling.{name}"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "vit_mean_pooling.py").write_text(FIRST_MEAN_POOLING)
    images = torch.randn(2, 3, 32, 32)
    tokens = vit.vit(images).last_hidden_state
    opened = AutoModelForImageClassification.from_pretrained(tmp_path, trust_remote_code=True)
    torch.testing.assert_close(opened(images).logits, vit.classifier(tokens[:, 1:].mean(dim=1)))
    again = load_classifier(str(tmp_path), ["a", "b"], pooling="mean")
    assert torch.equal(again.beit.layers[0].mlp.fc1.weight, vit.vit.layers[0].mlp.fc1.weight)


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


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_layer_decay_groups_against_a_plain_calculation(pooling):
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    model = load_classifier(None, ["a", "b"], pooling=pooling, sizes=sizes | {"image_size": 32, "patch_size": 8})
    groups = parameter_groups(model, 1e-2, 0.05, 0.5)
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert len(rate) == sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        steps = 0  # from the head down
        if ".embeddings." in name:
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
