"""Temperature scaling: one number that makes a classifier's probabilities as sure as they are right.

Guo, Pleiss, Sun and Weinberger, On Calibration of Modern Neural Networks, ICML 2017.
"""

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from transformers import PreTrainedModel

FEWEST = 20  # validation images; of fewer, one that is wrong would decide
# The epoch was chosen on the very images that the temperature is fitted to, so they flatter the network: a temperature
# below 1, which would make it surer still, made the log loss of test images worse in most real folds that were tried.
HIGHEST = 20.0
LEAST_GAIN = 1e-4  # of the mean log loss, in nats; below it there is nothing to gain


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> tuple[float, str | None]:
    """The temperature by which logits are to be divided, by maximum likelihood.

    Args:
        logits: `(n, num_classes)`, of images that were not trained on.
        labels: `(n,)`, their right classes.

    Returns:
        The temperature, at least 1; and `None`, or why it is left at 1: few images, images of one class only, answers
        that are not too sure, or answers worse than chance, whose likeliest temperature is infinite.
    """
    if len(labels) < FEWEST:
        return 1.0, f"{len(labels)} validation images are too few, {FEWEST} are needed"
    if len(np.unique(labels)) < 2:
        return 1.0, "the validation images are of one class only"

    def loss(log_temperature: float) -> float:
        return -log_softmax(logits / np.exp(log_temperature), axis=1)[np.arange(len(labels)), labels].mean()

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
