"""Probabilities that are as sure as they are right, and cards that claim no more than was shown."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import yaml
from helpers import encode, write
from scipy.special import log_softmax, softmax
from test_finetune import exported, few_resamples, run, texture  # noqa: F401 - fixtures
from test_metrics import answers_of, quick  # noqa: F401 - fixtures
from transformers import AutoConfig, pipeline

import publish
from hub.contents import PublishArguments, publication_of
from images.arguments import PrepareArguments
from images.splits import load_prepared
from judging.summary import compare_all, summarise
from judging.tables import NOTHING_SHOWN, comparisons_markdown, summary_markdown, what_it_tells
from metrics.medical_classification.figures import expected_calibration_error
from prepare_corpus import prepare
from training import finetuning
from training.calibration import fit_temperature
from training.frozen import fit_probe

# ------------------------------------------------------------------------------------------------ by hand and by chance


def test_the_expected_calibration_error_worked_by_hand():
    # 0.6 lies at the upper end of the ninth bin and belongs to it, with 0.55: one of two is right.
    # 0.95 and 1 lie in the last bin: one of two is right. 0.7 is alone in its bin, and wrong.
    said = np.array([0.6, 0.55, 0.95, 1.0, 0.7])
    right = np.array([1, 0, 1, 0, 0])
    predictions = np.stack([said, 1 - said], axis=1)
    expected = (abs(0.6 + 0.55 - 1) + abs(0.95 + 1 - 1) + 0.7) / 5
    assert expected_calibration_error(predictions, 1 - right) == pytest.approx(expected)
    sure = np.eye(3)[[0, 1, 2, 2]]
    assert expected_calibration_error(sure, np.array([0, 1, 2, 2])) == 0
    assert expected_calibration_error(sure, np.array([1, 2, 0, 0])) == 1


TRAINED = 32  # images of the fold, of 96


def drawn(count: int, too_sure: float) -> tuple[np.ndarray, np.ndarray]:
    """Logits of three classes, `too_sure` times those that the labels were drawn by."""
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, (count, 3))
    labels = np.array([random.choice(3, p=row) for row in softmax(logits, axis=1)])
    return too_sure * logits, labels


@pytest.mark.parametrize("too_sure", [1.5, 4.0])
def test_the_temperature_undoes_what_was_done_to_the_logits(too_sure):
    logits, labels = drawn(4000, too_sure)
    temperature, why_not = fit_temperature(logits, labels)
    assert temperature == pytest.approx(too_sure, rel=0.06) and why_not is None
    before, after = (expected_calibration_error(softmax(logits / t, axis=1), labels) for t in (1, temperature))
    assert after < 0.03 < before


def test_a_network_is_not_made_surer():
    temperature, why_not = fit_temperature(*drawn(4000, 0.25))
    assert temperature == 1 and "not too sure" in why_not


def test_the_temperature_is_fitted_beside_a_correction():
    random, correction = np.random.default_rng(0), np.log([0.8, 0.15, 0.05])
    logits = random.normal(0, 2, (4000, 3))
    labels = np.array([random.choice(3, p=row) for row in softmax(logits + correction, axis=1)])
    assert fit_temperature(3 * logits, labels, correction)[0] == pytest.approx(3, rel=0.06)
    assert fit_temperature(3 * logits, labels)[0] != pytest.approx(3, rel=0.06)


def test_without_a_likeliest_temperature_it_stays_1_and_the_reason_is_told():
    logits, labels = drawn(4000, 1.0)
    right = np.repeat(np.eye(3)[[0, 1, 2]], 10, axis=0)
    for given, of, reason in (
        (logits[:19], labels[:19], "19 validation images are too few, 20 are needed"),
        (right, np.zeros(30, dtype=int), "of one class only"),
        (right, right.argmax(axis=1), "are not too sure"),
        (right, (right.argmax(axis=1) + 1) % 3, "are no better than chance"),
    ):
        temperature, why_not = fit_temperature(given, of)
        assert temperature == 1 and reason in why_not


# ----------------------------------------------------------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    """96 images of two textures, one of them dark. Of those not trained on, every fourth has a wrong label."""
    root = tmp_path_factory.mktemp("noisy")
    for index in range(96):
        wrong = index >= TRAINED and index // 2 % 4 == 0
        name = ("fine", "coarse")[(index + wrong) % 2]
        write(root / "raw" / name / f"{index:02d}.png", encode(texture(index, index % 2) // (1 + index % 2)))
    folder = prepare(PrepareArguments(data_dir=str(root / "raw"), output_dir=str(root / "data"), num_folds=3))
    splits = json.loads((folder / "splits.json").read_text())
    names = sorted((name for fold in splits["folds"] for name in fold["test"]), key=lambda name: name[-6:])
    splits["folds"][0] = {"train": names[:TRAINED], "validation": names[TRAINED:64], "test": names[64:]}
    (folder / "splits.json").write_text(json.dumps(splits))
    return folder


def too_sure(model, *arguments):
    fit_probe(model, *arguments)
    model.classifier.weight.data.mul_(10)
    model.classifier.bias.data.mul_(10)


@pytest.fixture(scope="module")
def both(noisy, exported, tmp_path_factory):  # noqa: F811
    """The same linear probe without and with calibration, ten times as sure as it was fitted."""
    root, options = tmp_path_factory.mktemp("probes"), ("--model_name_or_path", str(exported), "--mode", "linear_probe")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetuning, "fit_probe", too_sure)
        return [run(noisy, root / calibrate, *options, "--calibrate", calibrate) for calibrate in ("false", "true")]


def test_an_export_answers_the_calibrated_probabilities(noisy, both):
    columns = ["probability_coarse", "probability_fine"]
    tables = [
        {part: pd.read_parquet(folder / f"{part}predictions.parquet") for part in ("validation_", "")}
        for folder in both
    ]
    plain, results = (json.loads((folder / "all_results.json").read_text()) for folder in both)
    logits = {part: np.log(table[columns].to_numpy()) for part, table in tables[0].items()}
    labels = tables[0]["validation_"]["label"].to_numpy()
    tried = np.exp(np.linspace(-2.9, 2.9, 5801))
    losses = [-log_softmax(logits["validation_"] / t, axis=1)[np.arange(len(labels)), labels].mean() for t in tried]
    best = tried[np.argmin(losses)]
    assert results["temperature"] == pytest.approx(best, rel=2e-3) and abs(np.log(best)) > 0.02
    assert plain["temperature"] == 1 and plain["not_calibrated"] == "calibrate is false"
    for part, table in tables[1].items():
        assert table[columns].to_numpy() == pytest.approx(softmax(logits[part] / best, axis=1), abs=1e-3)
        assert (table["prediction"] == tables[0][part]["prediction"]).all()
        name = {"validation_": "validation", "": "test"}[part]
        assert results[f"{name}_ece_uncalibrated"] == pytest.approx(plain[f"{name}_ece"])
        of_table = expected_calibration_error(table[columns].to_numpy(), table["label"])
        assert results[f"{name}_ece"] == pytest.approx(of_table)
    config = AutoConfig.from_pretrained(both[1] / "export")
    assert config.calibration_temperature == results["temperature"]
    classify = pipeline("image-classification", str(both[1] / "export"), device="cpu")
    images = load_prepared(str(noisy), None, "0")[0]["test"]
    for row, image in zip(tables[1][""].head(6).to_dict("records"), images, strict=False):
        file = write(both[1].parent / "one.png", image["image"]["bytes"])
        answer = {one["label"]: one["score"] for one in classify(str(file))}
        assert answer == pytest.approx({name: row[f"probability_{name}"] for name in ("coarse", "fine")}, abs=1e-4)


def test_the_card_tells_the_temperature_the_least_to_be_beaten_and_the_error_before_and_after(both):
    plain, card = ((folder / "export" / "README.md").read_text() for folder in both)
    results = json.loads((both[1] / "all_results.json").read_text())
    assert f"divided by the temperature {results['temperature']:.3f}, fitted to the validation part" in card
    assert (
        f"{results['test_ece']:.3f} on the\ntest part" in card and f"{results['test_ece_uncalibrated']:.3f} and" in card
    )
    assert "| Calibrated | no: calibrate is false |" in plain
    assert "always answering the commonest class" in card and "and AUROC 0.5." in card
    assert card.count("| auroc") == 1 and "| sensitivity_" not in card and "A vision transformer that tells" in card


def test_a_corrected_prior_answers_for_classes_as_frequent_as_they_are(
    noisy,
    exported,
    tmp_path,
    monkeypatch,
    caplog,  # noqa: F811
):
    splits = json.loads((noisy / "splits.json").read_text())
    trained_on = load_prepared(str(noisy), None, "0")[0]["train"]
    coarse, fine = ([row["file_name"] for row in trained_on if row["label"] == label] for label in (0, 1))
    splits["folds"][0]["train"] = coarse[:4] + fine
    write(tmp_path / "splits.json", json.dumps(splits).encode())
    options = ("--model_name_or_path", str(exported), "--mode", "linear_probe", "--class_weights", "balanced")
    options += ("--splits_file", str(tmp_path / "splits.json"))
    monkeypatch.setattr(finetuning, "fit_probe", too_sure)
    runs = [
        run(noisy, tmp_path / value, *options, "--prior_correction", value, "--calibrate", value)
        for value in ("false", "true")
    ]
    temperature = json.loads((runs[1] / "all_results.json").read_text())["temperature"]
    assert temperature > 1.1
    columns = ["probability_coarse", "probability_fine"]
    shares = np.array([4, len(fine)])
    for part in ("", "validation_"):
        alike, frequent = (pd.read_parquet(folder / f"{part}predictions.parquet") for folder in runs)
        expected = alike[columns].to_numpy() ** (1 / temperature) * shares
        assert frequent[columns].to_numpy() == pytest.approx(expected / expected.sum(axis=1, keepdims=True), abs=1e-5)
        assert (frequent["prediction"] == expected.argmax(axis=1)).all()
    classify = pipeline("image-classification", str(runs[1] / "export"), device="cpu")
    image = load_prepared(str(noisy), None, "0")[0]["test"][0]
    answer = {one["label"]: one["score"] for one in classify(str(write(tmp_path / "one.png", image["image"]["bytes"])))}
    row = pd.read_parquet(runs[1] / "predictions.parquet").set_index("file_name").loc[image["file_name"]]
    assert answer["coarse"] == pytest.approx(row["probability_coarse"], abs=1e-4)
    cards = [(folder / "export" / "README.md").read_text() for folder in runs]
    told = (
        f"in the training part coarse {400 / shares.sum():.1f} %, fine {100 - 400 / shares.sum():.1f} %; weighed alike"
    )
    assert f"{told}: **answers and probabilities are as if all were equally frequent**" in cards[0]
    assert f"{told} in the training, and then the prior was corrected (Saerens et al. 2002)" in cards[1]
    monkeypatch.setattr(finetuning, "predict", lambda model, dataset, *_: np.tile([0.0, 5.0], (len(dataset), 1)))
    run(noisy, tmp_path / "one_answer", *options, "--prior_correction", "true")
    assert (
        "answers fine for every test image" in caplog.text and "What may help: prior_correction false;" in caplog.text
    )
    for given in (("--class_weights", "none"), ("--mode", "knn")):
        with pytest.raises(
            SystemExit, match="prior_correction needs class_weights balanced, and a mode other than knn"
        ):
            run(noisy, tmp_path / "none", *options, "--prior_correction", "true", *given)


@pytest.mark.slow
def test_what_is_published_claims_what_the_folds_show(both, tmp_path, caplog, quick):  # noqa: F811
    shutil.copytree(both[1] / "export", tmp_path / "fold_0" / "finetune" / "export")
    table = pd.read_parquet(both[1] / "predictions.parquet")
    chance = table.assign(prediction=np.arange(len(table)) % 2, probability_coarse=0.5, probability_fine=0.5)
    args = PublishArguments(str(tmp_path), "org/name", dry_run=True)
    for answers, claimed in ((table, True), (chance, False)):
        (tmp_path / "summary.json").write_text(json.dumps(summarise(answers)))
        caplog.clear()
        publish.run(args)
        card = publication_of(args)[0].files["README.md"].decode()
        assert ("A vision transformer that tells coarse, fine apart." in card) == claimed
        assert (NOTHING_SHOWN in card) != claimed
        assert any("learned nothing that can be shown" in text for text in caplog.messages) != claimed


def test_a_resume_may_calibrate_what_was_not(noisy, exported, tmp_path):  # noqa: F811
    options = ("--model_name_or_path", str(exported))
    out = run(noisy, tmp_path / "out", *options, "--calibrate", "false", num_train_epochs="1")
    run(noisy, out, *options, "--resume_from_checkpoint", "last", num_train_epochs="1")
    assert yaml.safe_load((out / "config.yaml").read_text())["model"]["calibrate"] is True
    assert json.loads((out / "all_results.json").read_text()).get("not_calibrated") != "calibrate is false"


# --------------------------------------------------------------------------------------------------------------- tables


def table_of(classes: int, skill: float) -> pd.DataFrame:
    random = np.random.default_rng(1)
    labels = random.integers(0, classes, 90)
    scores = softmax(random.normal(size=(90, classes)) + skill * np.eye(classes)[labels], axis=1)
    return answers_of(scores, labels, np.repeat(["0", "1"], 45), "abc"[:classes])


def summary_of(classes: int, skill: float, positive=None) -> dict:
    return summarise(table_of(classes, skill), positive)


def test_of_two_classes_a_table_has_each_figure_once(quick):  # noqa: F811
    summary = summary_of(2, 1.0, ["b"])
    rows = [line.split(" | ")[0][2:] for line in summary_markdown(summary).splitlines() if line.startswith("| ")]
    assert rows == ["figure", "accuracy", "balanced_accuracy", "sensitivity", "specificity", "auroc", "f1", "f1_a"]
    assert {"auroc_a", "auroc_b", "binary_auroc"} <= set(summary["figures"])  # summary.json has all names


def test_of_more_classes_collapsed_figures_name_their_threshold(quick):  # noqa: F811
    text = summary_markdown(summary_of(3, 1.0, ["b"]))
    assert "| binary_sensitivity (threshold 0.5) |" in text and "| binary_auroc |" in text and "| auroc_b |" in text
    answers = {name: table_of(3, skill) for name, skill in (("one", 1.0), ("other", 2.0))}
    text = comparisons_markdown(compare_all(answers, "one", ["b"], 0))
    (header,) = [line for line in text.splitlines() if line.startswith("| run |")]
    assert "| binary_sensitivity (threshold 0.5) |" in header and "| binary_auroc |" in header


def test_a_card_claims_only_what_lies_above_chance(quick):  # noqa: F811
    skilled, guessing = summary_of(3, 2.0), summary_of(3, 0.0)
    assert what_it_tells("abc", skilled, "on the test part") == "A vision transformer that tells a, b, c apart."
    found = guessing["figures"]["balanced_accuracy"]["pooled"]
    said = what_it_tells("abc", guessing, "on the test part")
    assert said.startswith(f"**{NOTHING_SHOWN}**: on the test part, the 95 % interval of its balanced accuracy, ")
    assert f"{found['low']:.3f} to {found['high']:.3f}, does not lie above chance, 0.333." in said
    assert "tells" not in said and "not been judged" in what_it_tells("abc", None, "")
    # Of several folds, the one whose classifier it is.
    skilled["only_answers"] = {"1": "a"}
    assert NOTHING_SHOWN in what_it_tells("abc", skilled, "", "1") and "tells" in what_it_tells("abc", skilled, "", "0")


def test_the_summary_has_the_calibration_of_each_fold_and_their_mean(quick):  # noqa: F811
    summary = summary_of(2, 1.0)
    told = {"validation_ece_uncalibrated": 0.2, "validation_ece": 0.1, "test_ece_uncalibrated": 0.3, "test_ece": 0.2}
    summary["calibration"] = {"0": {"temperature": 1.5, **told}, "1": {"temperature": 2.5, **told}}
    text = summary_markdown(summary)
    assert "| 0 | 1.500 | 0.200 | 0.100 | 0.300 | 0.200 |" in text
    assert "| mean | 2.000 | 0.200 | 0.100 | 0.300 | 0.200 |" in text
    summary["calibration"] = {"0": {"validation_ece": 0.1, "test_ece": 0.2}}  # texture features are not calibrated
    text = summary_markdown(summary)
    assert "| fold | validation | test |" in text and "| 0 | 0.100 | 0.200 |" in text
    assert "| mean |" not in text and "temperature" not in text
