"""What a run says of itself: whether anything was learned, while it lasts and at its end."""

import logging
import re

import numpy as np
import pandas as pd
import pytest
from test_finetune import checked, corpus, exported, run  # noqa: F401  (fixtures)
from test_pretrain import TINY, images, options  # noqa: F401

from judging.verdict import pretraining_verdict
from training.classifier_options import FEW_UPDATES
from training.options import SIZES


def figures(mse: float, l1: float, head: float | None = None, cls: float | None = None) -> dict[str, float]:
    """Where one grey for all has an error of 1 and a blur one of 0.4."""
    known = {"mse": (mse, 1.0, 0.4), "glcm_l1": (l1, 1.9, 1.8)}
    known |= {"glcm_head": (head, 0.5, 0.5)} if head is not None else {}
    known |= {"glcm_cls": (cls, 0.5, 0.5)} if cls is not None else {}
    suffixes = ("", "_dataset_mean", "_patch_mean")
    return {
        f"eval_{name}{suffix}": value
        for name, values in known.items()
        for suffix, value in zip(suffixes, values, strict=True)
    }


@pytest.mark.parametrize(
    ("found", "learned", "words"),
    [
        (figures(1.33, 1.7), False, ["worse than one grey", "^distance of the painted matrices .* 1.7;"]),
        (figures(0.99, 1.7), False, ["level with one grey"]),
        (figures(0.7, 1.7), True, ["worse than a blur"]),
        (figures(0.41, 1.7), True, ["level with a blur"]),
        (figures(0.3, 1.7), True, ["finer than a blur"]),
        (figures(1.3, 0.7, head=0.5), False, ["no texture is foretold"]),
        (figures(1.3, 1.9, head=0.2), True, ["^texture is foretold"]),
        (figures(1.3, 1.9, cls=0.2), True, ["^texture is foretold"]),
        (figures(1.3, 1.9, head=0.5, cls=0.2), False, ["no texture is foretold"]),
    ],
)
def test_a_pretraining_is_held_against_those_who_know_nothing(found, learned, words):
    verdict = pretraining_verdict(found)
    assert verdict.learned == learned
    for part in words:
        assert re.search(part, verdict.words)


def test_what_is_painted_is_told_and_not_judged():
    noise, painted = figures(2.0, 0.9), figures(1.3, 1.6)
    # As of `paper` on speckle, whose probe doubles: further from the texture than noise is, and worse than one grey.
    unclear = pretraining_verdict(painted, noise, painting=True)
    assert unclear.learned is None and "1.6, before the training 0.9, which does not tell whether" in unclear.words
    assert pretraining_verdict(painted, painting=True).learned is None, "from the weights of others"
    assert pretraining_verdict(noise, noise, painting=True).learned is False, "the training changed nothing"
    assert pretraining_verdict(painted, noise).learned is False, "of mse, whose objective the pixels are"
    assert pretraining_verdict(figures(1.3, 0.5), noise).learned is False
    assert pretraining_verdict(figures(0.7, 0.9), noise, painting=True).learned is True, "by its pixels"


def test_where_patches_are_normalised_their_mean_is_no_knowledge():
    given = figures(1.0, 1.7) | {"eval_mse_dataset_mean": 40.0, "eval_mse_patch_mean": 1.0}
    assert pretraining_verdict(given).learned and not pretraining_verdict(given, normalised=True).learned
    assert "level with one grey for each patch" in pretraining_verdict(given, normalised=True).words
    assert pretraining_verdict(given | {"eval_mse": 0.6}, normalised=True).learned


def test_a_pretraining_that_learned_nothing_says_so_in_its_log_its_output_and_its_card(
    images,  # noqa: F811
    tmp_path,
    capsys,
    caplog,
):
    import pretrain

    pretrain.main(options(**TINY | {"corpus": images, "learning_rate": 1e-9, "output_dir": tmp_path / "run"}))
    assert "nothing was learned in 6 updates, at a learning_rate of at most 1e-09" in caplog.text
    assert "verdict  no texture is foretold" in capsys.readouterr().out
    assert "**It has learned nothing**: no texture is " in (tmp_path / "run" / "export" / "README.md").read_text()
    # Without a head, noise is not taken for texture.
    caplog.clear()
    without = {"glcm_head_weight": 0, "glcm_cls_weight": 0, "learning_rate": 1e-9, "output_dir": tmp_path / "without"}
    pretrain.main(options(**TINY | {"corpus": images} | without))
    assert "nothing was learned in 6 updates" in caplog.text
    card = (tmp_path / "without" / "export" / "README.md").read_text()
    assert "**It has learned nothing**: distance of the painted matrices" in card and "before the training" in card
    # With the weights of others, the first evaluation is not of before any training: noise is not what they paint.
    others = without | {"model_name_or_path": tmp_path / "without" / "export", "model_subfolder": "pretraining"}
    fields = {name: value for name, value in TINY.items() if name not in SIZES}
    pretrain.main(options(**fields | {"corpus": images} | others | {"output_dir": tmp_path / "others"}))
    card = (tmp_path / "others" / "export" / "README.md").read_text()
    assert "which does not tell whether texture was learned" in card and "before" not in card.partition("## Recon")[2]


@pytest.mark.parametrize("updates", [FEW_UPDATES - 1, FEW_UPDATES])
def test_with_few_updates_classes_weigh_alike_and_images_are_not_distorted(corpus, exported, tmp_path, caplog, updates):  # noqa: F811
    caplog.set_level(logging.INFO)
    given = ("--model_name_or_path", str(exported))
    made = checked(corpus, tmp_path / "out", *given, max_steps=str(updates))
    usual = {"randaugment": 0, "random_erasing": 0.0, "class_weights": "balanced"}
    usual = usual if updates < FEW_UPDATES else {"randaugment": 9, "random_erasing": 0.25, "class_weights": "none"}
    assert {name: made.resolved["data"][name] for name in usual} == usual
    said = f"for up to {updates} updates, left out: " + ", ".join(f"{name} {value}" for name, value in usual.items())
    assert caplog.messages.count(said) == 1
    chosen = ("--randaugment", "3", "--random_erasing", "0.5", "--class_weights", "none")
    made = checked(corpus, tmp_path / "out", *given, *chosen, max_steps=str(updates))
    assert [made.resolved["data"][name] for name in usual] == [3, 0.5, "none"]
    epochs = updates / 6  # 96 images in all, 16 an update
    made = checked(corpus, tmp_path / "out", *given, num_train_epochs=str(epochs))
    assert {name: made.resolved["data"][name] for name in usual} == usual
    made = checked(corpus, tmp_path / "out", *given, "--mode", "linear_probe", max_steps=str(updates))
    assert made.resolved["data"]["class_weights"] == "none"  # nothing is trained


def test_fine_tuning_begins_where_the_linear_probe_of_the_encoder_ends(corpus, exported, tmp_path):  # noqa: F811
    given = {"model_name_or_path": str(exported), "num_train_epochs": "1"}
    probe = run(corpus, tmp_path / "probe", mode="linear_probe", **given)
    begun = run(corpus, tmp_path / "begun", learning_rate="1e-12", **given)
    drawn = run(corpus, tmp_path / "drawn", learning_rate="1e-12", head_init="random", **given)
    name = "probability_fine"
    wanted, found, other = (pd.read_parquet(f / "predictions.parquet")[name] for f in (probe, begun, drawn))
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert np.abs(other - wanted).max() > 0.1


def test_a_classifier_that_stays_at_one_answer_is_told_of_once_while_it_lasts(corpus, tmp_path, caplog):  # noqa: F811
    caplog.set_level(logging.WARNING)
    sizes = {"image_size": "32", "patch_size": "8", "hidden_size": "32", "num_hidden_layers": "1"}
    sizes |= {"num_attention_heads": "2", "intermediate_size": "48"}
    strong = {"class_weights": "none", "randaugment": "9", "random_erasing": "0.25", "pooling": "cls"}
    run(corpus, tmp_path / "run", learning_rate="1e-12", num_train_epochs="8", **sizes, **strong)
    said = [message for message in caplog.messages if "still get the same answer" in message]
    assert len(said) == 1 and said[0].startswith("after 6 of 24 updates")  # not before a quarter of the training
    assert "class_weights balanced; more than 3 updates an epoch" in said[0]
    assert "a layer_decay nearer to 1 than 0.75 (the lowest layer learns at 5.6e-13)" in said[0]
    assert "randaugment 0 random_erasing 0 drop_path 0" in said[0]
    assert "head_init" not in said[0]  # there is no encoder to probe
    assert any("it has learned nothing. What may help: class_weights balanced" in text for text in caplog.messages)
