"""What the demo says in words of a card and of a patch; what it says in its page is in test_space.py."""

import importlib
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from test_publish import classifier  # noqa: F401 - a fixture

from hub.contents import PublishArguments, publication_of
from judging.summary import summarise
from modeling_glcm_mae import cooccurrence_matrix, texture_features


@pytest.fixture
def space(monkeypatch) -> SimpleNamespace:
    """Those modules of hub_cards/space that need no package of its own."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "hub_cards" / "space")
    names = ("drawn", "features", "model_card", "speckle_examples")
    return SimpleNamespace(**{name: importlib.import_module(name) for name in names})


def answered(classes: tuple[str, ...], right: float) -> pd.DataFrame:
    """Answers of two folds, of which that share is right."""
    rng = np.random.default_rng(0)
    label = np.arange(120) % len(classes)
    given = np.where(rng.random(120) < right, label, (label + 1) % len(classes))
    table = pd.DataFrame({"fold": np.arange(120) // 60, "file_name": [f"{index}.png" for index in range(120)]})
    table["group"], table["label"], table["prediction"] = table["file_name"], label, given
    for index, name in enumerate(classes):
        table[f"probability_{name}"] = np.where(given == index, 0.7, 0.3 / (len(classes) - 1))
    return table


def card_of(folder: Path, classifier: Path, summary: dict) -> str:  # noqa: F811
    """The card of a classifier with the figures of all folds, as publish.py writes it."""
    (folder / "fold_0" / "finetune").mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps(summary))
    shutil.copytree(classifier, folder / "fold_0" / "finetune" / "export")
    publication, _ = publication_of(PublishArguments(str(folder), "org/name"))
    return publication.files["README.md"].decode()


def figure_in(summary: dict, name: str) -> str:
    pooled = summary["figures"][name]["pooled"]
    kind = "sensitivity" if "sensitivity" in name else "specificity"
    low, high = (f"{100 * pooled[end]:.0f}" for end in ("low", "high"))
    return f"**{100 * pooled['value']:.0f}** ({kind}, {low} to {high})"


def test_how_good_it_is_stands_in_words_with_the_threshold(space, classifier, tmp_path):  # noqa: F811
    two = summarise(answered(("non-COVID", "COVID"), 0.8), positive=["COVID"])
    card = space.model_card.read_card(card_of(tmp_path / "two", classifier, two))
    said = space.model_card.how_good(card, ("non-COVID", "COVID"), "non-COVID")
    found, cleared = (figure_in(two, name) for name in ("sensitivity", "specificity"))
    assert said.startswith(f"Of 100 test images of COVID it finds {found}, of 100 others it clears {cleared}, ")
    assert "answering COVID where its probability is above 0.5." in said
    assert card.rates["accuracy"][0] == pytest.approx(two["figures"]["accuracy"]["pooled"]["value"], abs=5e-4)
    assert not card.warning
    assert space.model_card.on_whom(card, "speckle") == (
        "Generated speckle, fold 0: 8 to train, 2 to choose the model, 2 to test"
    )


def test_of_three_classes_the_answer_and_the_positive_class_are_told(space, classifier, tmp_path):  # noqa: F811
    names = ("normal", "be-nign", "malignant")
    three = summarise(answered(names, 0.8), positive=["malignant"])
    card = space.model_card.read_card(card_of(tmp_path / "three", classifier, three))
    said = space.model_card.how_good(card, names, "be-nign")
    assert f"images of be-nign it finds {figure_in(three, 'sensitivity_be-nign')}" in said
    assert f"of 100 others it clears {figure_in(three, 'specificity_be-nign')}, answering be-nign where it is" in said
    assert f"images of malignant it finds {figure_in(three, 'binary_sensitivity')}" in said
    assert said.count("test images of") == 2
    assert space.model_card.how_good(card, names, "malignant").count("test images of") == 1


def test_a_classifier_that_learned_nothing_says_so(space, classifier, tmp_path):  # noqa: F811
    names = ("benign", "malignant")
    card = space.model_card.read_card(card_of(tmp_path / "run", classifier, summarise(answered(names, 0.5))))
    assert card.warning.startswith("**It has learned nothing that can be shown**")


def test_what_a_card_does_not_state_is_not_made_up(space):
    card = space.model_card.read_card("# A card of somebody else\n\n| Images | mine |\n")
    assert "no sensitivity" in space.model_card.how_good(card, ("a", "b"), "a")
    assert "no sensitivity" in space.model_card.how_good(card, ("{x}", "b", "c"), "{x}")
    assert card.results == "The model's card states no results." and not card.warning
    assert space.model_card.on_whom(space.model_card.read_card(""), "") == ""


def test_features_have_words_and_the_most_changed_comes_first(space):
    squares = [torch.rand(16, 16, generator=torch.Generator().manual_seed(seed)) ** (1 + seed) for seed in range(2)]
    settings = {"levels": 8, "value_range": (0.0, 1.0), "offsets": [(0, 1)], "kernel": "hard", "symmetric": True}
    both = []
    for square in squares:
        found = texture_features(cooccurrence_matrix(square, **settings).sum(0))
        both.append({name: float(value) for name, value in found.items()})
    rows = space.features.compared(*both)
    assert len(rows) == 25 and all(f"({name})" in " ".join(row[0] for row in rows) for name in both[0])
    changes = [float(row[3].removesuffix(" %")) for row in rows]
    assert [abs(change) for change in changes] == sorted(map(abs, changes), reverse=True)
    (original, rebuilt, change), *_ = [map(lambda text: float(text.split()[0]), row[1:]) for row in rows]
    assert change == pytest.approx(100 * (rebuilt - original) / max(abs(original), abs(rebuilt)), abs=1)
    same = space.features.compared(both[0], both[0])
    assert {row[3] for row in same} == {"+0 %"}


def test_names_that_others_chose_cannot_become_part_of_the_page(space):
    picture = np.zeros((4, 4, 3), np.uint8)
    assert "<script" not in space.drawn.figure(picture, '"><script>alert(1)</script>')


def test_the_chosen_patch_is_framed_and_nothing_else_is_painted(space):
    picture = np.full((32, 32, 3), 7, np.uint8)
    large = space.drawn.enlarged(picture, (8, 16, 8))
    factor = large.shape[0] // 32
    assert large.shape[0] >= 400  # smaller ones are not told where they are clicked
    changed = np.argwhere((large != 7).any(axis=2)) // factor
    assert changed.min(axis=0).tolist() == [8, 16] and changed.max(axis=0).tolist() == [15, 23]
    assert (large[9 * factor : 14 * factor, 18 * factor : 22 * factor] == 7).all()


def test_examples_are_small_pictures_and_one_has_a_spot(space):
    files = space.speckle_examples.example_files()
    fine, _, spot = (np.asarray(Image.open(file)) for file in files.values())
    assert all(file.stat().st_size < 20_000 for file in files.values())
    differs = fine != spot
    assert 0.05 < differs.mean() < 0.4 and not differs[:20].any()
