"""Linear probe: how well do the frozen features of an encoder tell the classes apart, from few labels?"""

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedShuffleSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import ViTModel

from training.feeding import PretrainDataset


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
