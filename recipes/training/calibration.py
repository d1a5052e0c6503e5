"""What is done to a classifier's head after its training, so that its probabilities hold.

Temperature scaling makes them as sure as they are right: Guo, Pleiss, Sun and Weinberger, On Calibration of Modern
Neural Networks, ICML 2017. The correction of the prior makes them those of classes as frequent as they are: Saerens,
Latinne and Decaestecker, Adjusting the Outputs of a Classifier to New a Priori Probabilities, Neural Computation 2002.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from transformers import PreTrainedModel

from metrics.medical_classification.figures import expected_calibration_error

FEWEST = 20  # validation images; of fewer, one that is wrong would decide
# The epoch was chosen on the very images that the temperature is fitted to, so they flatter the network: a temperature
# below 1, which would make it surer still, made the log loss of test images worse in most real folds that were tried.
HIGHEST = 20.0
LEAST_GAIN = 1e-4  # of the mean log loss, in nats; below it there is nothing to gain


def fit_temperature(
    logits: np.ndarray, labels: np.ndarray, correction: np.ndarray | float = 0.0
) -> tuple[float, str | None]:
    """The temperature by which logits are to be divided, by maximum likelihood.

    Args:
        logits: `(n, num_classes)`, of images that were not trained on.
        labels: `(n,)`, their right classes.
        correction: `(num_classes,)`, added to the logits after the division.

    Returns:
        The temperature, at least 1; and `None`, or why it is left at 1: few images, images of one class only, answers
        that are not too sure, or answers worse than chance, whose likeliest temperature is infinite.
    """
    if len(labels) < FEWEST:
        return 1.0, f"{len(labels)} validation images are too few, {FEWEST} are needed"
    if len(np.unique(labels)) < 2:
        return 1.0, "the validation images are of one class only"

    def loss(log_temperature: float) -> float:
        scores = logits / np.exp(log_temperature) + correction
        return -log_softmax(scores, axis=1)[np.arange(len(labels)), labels].mean()

    # Convex in 1 / temperature, so there is one minimum at most.
    highest = np.log(HIGHEST)
    found = minimize_scalar(loss, bounds=(0.0, highest), method="bounded")
    if highest - found.x < 1e-3:
        return 1.0, "the answers to the validation images are no better than chance"
    if loss(0.0) - found.fun < LEAST_GAIN:
        return 1.0, "the answers to the validation images are not too sure"
    return float(np.exp(found.x)), None


@torch.no_grad()
def divide_head(model: PreTrainedModel, temperature: float) -> None:
    """Divide what the head answers by `temperature`, which its configuration tells as `calibration_temperature`.

    Args:
        model: with a linear layer `classifier`, which is changed.
        temperature: above 0, so that the order of the classes stays.
    """
    model.classifier.weight.div_(temperature)
    model.classifier.bias.div_(temperature)
    # Not `temperature`, which transformers takes for a setting of text generation and refuses to save.
    model.config.calibration_temperature = temperature


def prior_correction(counts: np.ndarray) -> np.ndarray:
    """What a classifier that was trained with its classes weighed alike lacks to answer for the common frequencies.

    The logarithm of each class's share, to be added to its logit (Saerens et al. 2002, equation 4).

    Args:
        counts: `(num_classes,)`, images of each class; none count as one.
    """
    counts = np.maximum(counts, 1)
    return np.log(counts / counts.sum())


def calibrated(
    model: PreTrainedModel,
    logits: Mapping[str, np.ndarray],
    labels: Mapping[str, np.ndarray],
    correction: np.ndarray | None,
    wanted: bool,
) -> tuple[dict[str, np.ndarray], dict[str, Any], str]:
    """Fit a temperature to the validation part, and write it and the correction into the head of `model`.

    Args:
        model: with a linear layer `classifier`, which is changed.
        logits, labels: of `validation` and `test`: `(n, num_classes)` and `(n,)`.
        correction: `(num_classes,)`, added to the logits, not divided by the temperature; or `None`.
        wanted: if not, the temperature is 1.

    Returns:
        The probabilities of both parts; the temperature, the expected calibration errors before, and why there is no
        other temperature than 1, if there is none; what to print.
    """
    added = 0.0 if correction is None else correction
    temperature, why_not = 1.0, "calibrate is false"
    if wanted:
        temperature, why_not = fit_temperature(logits["validation"], labels["validation"], added)
    divide_head(model, temperature)
    if correction is not None:
        model.classifier.bias.data.add_(torch.from_numpy(correction).to(model.classifier.bias))
    before, answers = (
        {part: softmax(values / divisor + added, axis=1) for part, values in logits.items()}
        for divisor in (1.0, temperature)
    )
    errors = {part: expected_calibration_error(before[part], labels[part]) for part in logits}
    found = {"temperature": temperature, **{f"{part}_ece_uncalibrated": error for part, error in errors.items()}}
    if why_not is not None:
        return answers, found | {"not_calibrated": why_not}, f"not calibrated: {why_not}"
    after = expected_calibration_error(answers["test"], labels["test"])
    said = f"calibrated by temperature {temperature:.3f}: expected calibration error on the test part {after:.3f}, "
    return answers, found, f"{said}before {errors['test']:.3f}"
