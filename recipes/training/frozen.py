"""Classifiers on frozen features: a linear probe, folded into the model's own head, and nearest neighbours."""

import logging

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedShuffleSplit
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.nn.functional import adaptive_avg_pool2d
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedModel, ViTModel

from training.feeding import PretrainDataset

logger = logging.getLogger(__name__)

GRID = 3  # parts of an image, in each direction
NEVER = -1e4  # logit of a class that is not to be answered
REGULARISATION = (1e-3, 1e-2, 1e-1, 1.0)  # inverse strengths C of LogisticRegression, tried on the validation part


@torch.no_grad()
def frozen_features(model: PreTrainedModel, dataset: Dataset, batch_size: int, workers: int) -> np.ndarray:
    """What the head of `model` gets to see of each image: `(len(dataset), hidden_size)` float32."""
    features = []
    hook = model.classifier.register_forward_pre_hook(lambda module, inputs: features.append(inputs[0].float().cpu()))
    device = next(model.parameters()).device
    model.eval()
    try:
        for batch in tqdm(DataLoader(dataset, batch_size, num_workers=workers), desc="features", leave=False):
            model(batch["pixel_values"].to(device))
    finally:
        hook.remove()
    return torch.cat(features).numpy()


def nearest_neighbours(
    features: dict[str, np.ndarray], labels: dict[str, np.ndarray], neighbours: int, num_classes: int
) -> dict[str, np.ndarray]:
    """Probabilities of the validation and the test part by votes, weighted by (1 + cosine similarity) / 2.

    Args:
        features, labels: of the parts train, validation, test.
        neighbours: that vote, at most as many as there are training images.
        num_classes: columns of the answer.

    Returns:
        `(n, num_classes)` of validation and test.
    """
    unit = {part: values / np.linalg.norm(values, axis=1, keepdims=True) for part, values in features.items()}
    votes = KNeighborsClassifier(
        min(neighbours, len(unit["train"])),
        weights=lambda distance: 1 - distance**2 / 4,  # of unit vectors; 0 at the opposite, never negative
    )
    votes.fit(unit["train"], labels["train"])
    answers = {part: votes.predict_proba(unit[part]) for part in ("validation", "test")}
    return {part: all_columns(answer, votes.classes_, num_classes) for part, answer in answers.items()}


def fit_probe(
    model: PreTrainedModel, features: dict[str, np.ndarray], labels: dict[str, np.ndarray], balanced: bool
) -> None:
    """Make the head of `model` a logistic regression on standardised features.

    Its regularisation is chosen by the log loss on the validation part; scaling and regression are written into
    `model.classifier`, so that the model is the probe.

    Args:
        model: its head is replaced.
        features, labels: of the parts train and validation.
        balanced: weight the classes by 1 / frequency.
    """
    num_classes = model.config.num_labels
    scaler = StandardScaler().fit(features["train"])
    scaled = {part: scaler.transform(features[part]) for part in ("train", "validation")}
    probes = []
    for strength in REGULARISATION:
        probe = LogisticRegression(C=strength, max_iter=5000, class_weight="balanced" if balanced else None)
        probe.fit(scaled["train"], labels["train"])
        answer = all_columns(probe.predict_proba(scaled["validation"]), probe.classes_, num_classes)
        probes.append((log_loss(labels["validation"], answer, labels=range(num_classes)), strength, probe))
    loss, strength, probe = min(probes, key=lambda item: item[0])
    logger.info("linear probe: C %g, log loss %.4g on the validation part", strength, loss)
    weight, bias = probe.coef_, probe.intercept_
    if len(probe.classes_) == 2:  # one row: the log odds of the second class
        weight, bias = np.concatenate([0 * weight, weight]), np.concatenate([0 * bias, bias])
    weight = weight / scaler.scale_
    bias = bias - weight @ scaler.mean_
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.fill_(NEVER)  # a class without a training image is never answered
        rows = torch.from_numpy(probe.classes_.astype(np.int64))
        model.classifier.weight[rows] = torch.from_numpy(weight).float().to(model.classifier.weight.device)
        model.classifier.bias[rows] = torch.from_numpy(bias).float().to(model.classifier.bias.device)


def all_columns(probabilities: np.ndarray, classes: np.ndarray, num_classes: int) -> np.ndarray:
    """A column for every class, 0 for those that no training image has."""
    every = np.zeros((len(probabilities), num_classes))
    every[:, classes] = probabilities
    return every / every.sum(axis=1, keepdims=True)  # those of float32 do not quite sum to 1


def means_of_parts(tokens: torch.Tensor, height: int) -> torch.Tensor:
    """Means of the patch tokens in each of 3 x 3 parts of the image: `(B, 9, C)`, row by row.

    Parts that the patches cannot be shared out to evenly overlap by a row or a column of them.

    Args:
        tokens: `(B, N, C)`, without the CLS token.
        height: rows of patches.
    """
    return adaptive_avg_pool2d(tokens.mT.unflatten(2, (height, -1)), GRID).flatten(2).mT


@torch.no_grad()
def encoder_features(encoder: ViTModel, dataset: PretrainDataset, batch_size: int = 64) -> np.ndarray:
    """Mean of the patch tokens of each unmasked image.

    Args:
        encoder: a stock ViT.
        dataset: made with `train=False`, so that nothing is random.
        batch_size: images at once.

    Returns:
        `(len(dataset), hidden_size)`.
    """
    encoder.eval()
    parameter = next(encoder.parameters())
    features = []
    for start in range(0, len(dataset), batch_size):
        items = [dataset[i] for i in range(start, min(start + batch_size, len(dataset)))]
        pixel_values = torch.stack([item["pixel_values"] for item in items]).to(parameter)
        tokens = encoder(pixel_values, interpolate_pos_encoding=True).last_hidden_state
        features.append(tokens[:, 1:].mean(dim=1).float().cpu())
    return torch.cat(features).numpy()


def probe_accuracy(
    features: np.ndarray,
    labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    *,
    num_labels: int,
    repeats: int = 5,
    seed: int = 0,
) -> tuple[float, float]:
    """Accuracy of a logistic regression fitted to a few labelled images.

    Args:
        features, labels: `(n, d)` and `(n,)`, the images that labels are drawn from.
        test_features, test_labels: other images.
        num_labels: how many labelled images it is fitted to, in the proportions of the classes.
        repeats: how many draws of them.
        seed: chooses the draws.

    Returns:
        Mean and standard deviation over the draws, in 0..1.

    Raises:
        ValueError: if there are not `num_labels` images and one more.
    """
    draws = StratifiedShuffleSplit(n_splits=repeats, train_size=num_labels, random_state=seed)
    accuracies = []
    for chosen, _ in draws.split(features, labels):
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
        probe.fit(features[chosen], labels[chosen])
        accuracies.append(probe.score(test_features, test_labels))
    return float(np.mean(accuracies)), float(np.std(accuracies))
