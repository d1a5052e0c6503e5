"""What can be read of a frozen encoder, by which token and from which layer, and the classical features beside it."""

from collections.abc import Sequence

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from tqdm.auto import tqdm
from transformers import ViTModel

from modeling_glcm_mae import GLCMMAEForPreTraining
from modeling_glcm_mae.glcm_head import pair_distribution
from training.feeding import PretrainDataset
from training.frozen import REGULARISATION, means_of_parts

TOKENS = "tokens"  # of the patches, in the last layer: what the attentive probe reads
DISTANCES, DIRECTIONS, LEVELS = (1, 2, 3, 4), ((0, 1), (1, 0), (1, 1), (1, -1)), 8
TILES = 4


def _batches(dataset: PretrainDataset, size: int = 64):
    for start in tqdm(range(0, len(dataset), size), desc="features", leave=False):
        yield torch.stack([dataset[i]["pixel_values"] for i in range(start, min(start + size, len(dataset)))])


def _stacked(parts: list[dict[str, torch.Tensor]]) -> dict[str, np.ndarray]:
    return {name: torch.cat([part[name] for part in parts]).float().numpy() for name in parts[0]}


@torch.no_grad()
def features_of_encoder(encoder: ViTModel, dataset: PretrainDataset) -> dict[str, np.ndarray]:
    """Frozen features of whole images.

    Args:
        encoder: a stock ViT.
        dataset: made with `train=False`, so that nothing is random.

    Returns:
        `mean` (of the patch tokens) and `cls` of the last layer, `middle mean` and `middle cls` of the layer half way,
        each `(n, hidden_size)`; `grid`, the means of the patch tokens of a 3 x 3 grid of parts of the image, side by
        side, `(n, 9 * hidden_size)`; and `tokens` `(n, N, hidden_size)`.
    """
    parameter, parts = next(encoder.parameters()), []
    patch = encoder.config.patch_size
    encoder.eval()
    for pixel_values in _batches(dataset):
        found = encoder(pixel_values.to(parameter), interpolate_pos_encoding=True, output_hidden_states=True)
        height = pixel_values.shape[2] // patch
        last, middle = found.last_hidden_state.cpu(), found.hidden_states[len(found.hidden_states) // 2].cpu()
        parts.append(
            {
                "mean": last[:, 1:].mean(1),
                "cls": last[:, 0],
                "grid": means_of_parts(last[:, 1:], height).flatten(1),
                "middle mean": middle[:, 1:].mean(1),
                "middle cls": middle[:, 0],
                TOKENS: last[:, 1:],
            }
        )
    return _stacked(parts)


@torch.no_grad()
def classical_features(model: GLCMMAEForPreTraining, dataset: PretrainDataset) -> dict[str, np.ndarray]:
    """Co-occurrence matrices of the very pixels that an encoder is given, nothing learned (Haralick et al. 1973).

    Symmetric, normalised, of 8 levels, for each of the distances 1 to 4 the mean over four directions.

    Args:
        model: says which channel is grey, and between which values.
        dataset: made with `train=False`.

    Returns:
        `image`: those of the whole image, `(n, 4 * 36)`; `tiles`: those of a 4 x 4 grid, `(n, 16 * 4 * 36)`.
    """
    offsets = [[distance * dy, distance * dx] for distance in DISTANCES for dy, dx in DIRECTIONS]

    def matrices(images: torch.Tensor) -> torch.Tensor:
        found = pair_distribution(
            images, levels=LEVELS, value_range=model.config.glcm_value_range, offsets=offsets
        )  # M D Q
        return found.unflatten(1, (len(DISTANCES), len(DIRECTIONS))).mean(2).flatten(1)

    parts = []
    for pixel_values in _batches(dataset):
        grey = model.grey(pixel_values.movedim(1, -1))  # B H W
        height, width = (side // TILES for side in grey.shape[1:])
        tiles = grey.unfold(1, height, height).unfold(2, width, width)  # B 4 4 h w
        of_tiles = matrices(tiles.reshape(-1, height, width)).view(len(grey), -1)
        parts.append({"image": matrices(grey), "tiles": of_tiles})
    return _stacked(parts)


def narrowed(features: np.ndarray, test_features: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Standardised features in as few numbers as an encoder has: their first principal components (Hotelling 1933).

    Args:
        features, test_features: `(n, d)`, from which the components are learned, and `(m, d)`.
        width: number of components; n or d of them, if there are no more.

    Returns:
        `(n, width)` and `(m, width)`.
    """
    number = min(width, *features.shape)
    components = make_pipeline(StandardScaler(), PCA(number, svd_solver="full")).fit(features)
    return components.transform(features), components.transform(test_features)


def attended(
    tokens: np.ndarray, labels: np.ndarray, test_tokens: np.ndarray, *, steps: int = 2000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Pool patch tokens by one learned query instead of their mean.

    `pooled = softmax(tokens q / sqrt(d)) tokens`, `q` learned together with a linear classifier of `pooled` (AdamW).

    Args:
        tokens, labels: `(n, N, d)` and `(n,)`, to learn the query from.
        test_tokens: `(m, N, d)`, pooled by the same query.
        steps: of batches of 128 at most.
        seed: of their order.

    Returns:
        The pooled features, `(n, d)` and `(m, d)`.
    """
    mean, std = tokens.mean((0, 1)), tokens.std((0, 1)) + 1e-6
    x, test = (torch.from_numpy((part - mean) / std) for part in (tokens, test_tokens))
    y = torch.from_numpy(np.unique(labels, return_inverse=True)[1])
    query = nn.Parameter(torch.zeros(x.shape[-1]))
    head = nn.Linear(x.shape[-1], int(y.max()) + 1)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.AdamW([query, *head.parameters()], lr=3e-3, weight_decay=0.1)
    generator = torch.Generator().manual_seed(seed)

    def pooled(x: torch.Tensor) -> torch.Tensor:
        attention = (x @ query / x.shape[-1] ** 0.5).softmax(1)
        return (attention.unsqueeze(1) @ x).squeeze(1)

    for _ in range(steps):
        chosen = torch.randperm(len(x), generator=generator)[:128]
        optimizer.zero_grad()
        nn.functional.cross_entropy(head(pooled(x[chosen])), y[chosen]).backward()
        optimizer.step()
    with torch.no_grad():
        return pooled(x).numpy(), pooled(test).numpy()


def probe_of_all(
    features: np.ndarray,
    labels: np.ndarray,
    groups: Sequence[str],
    test_features: np.ndarray,
    test_labels: np.ndarray,
) -> np.ndarray:
    """Which of the test images a logistic regression on all the labelled ones gets right: `(m,)` bool.

    Its regularisation is chosen by the log loss in three parts of the labelled images, no group in two of them.
    """
    search = GridSearchCV(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)),
        {"logisticregression__C": REGULARISATION},
        scoring="neg_log_loss",
        cv=StratifiedGroupKFold(3, shuffle=True, random_state=0),
    )
    search.fit(features, labels, groups=groups)
    return search.predict(test_features) == test_labels
