"""Pictures with their names as HTML, which follows the width of the page and its light or dark colours."""

import base64
import html
import io
import math

import matplotlib
import numpy as np
from PIL import Image

CHOSEN = (255, 176, 0)  # frames the chosen patch


def enlarged(picture: np.ndarray, frame: tuple[int, int, int] | None = None) -> np.ndarray:
    """A picture `(H, W, 3)` in whole pixels, larger than it is shown: gradio tells where on it one clicks only then.

    Args:
        picture: uint8.
        frame: top, left and side of a square to be framed, in pixels of `picture`.
    """
    factor = math.ceil(400 / min(picture.shape[:2]))
    large = picture.repeat(factor, axis=0).repeat(factor, axis=1)
    if frame is not None:
        top, left, side = (factor * value for value in frame)
        square, line = large[top : top + side, left : left + side], max(2, large.shape[1] // 120)
        inside = square[line:-line, line:-line].copy()
        square[:] = CHOSEN
        square[line:-line, line:-line] = inside
    return large


def coloured(values: np.ndarray, colours: str, low: float, high: float) -> np.ndarray:
    """Values `(H, W)` in a map of matplotlib's, from `low` to `high`; `(H, W, 3)` uint8."""
    return matplotlib.colormaps[colours]((values - low) / (high - low), bytes=True)[..., :3]


def over(picture: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """Half a picture, half the colours above it, both `(H, W, 3)` uint8."""
    return ((picture.astype(np.uint16) + colour) // 2).astype(np.uint8)


def figure(picture: np.ndarray, name: str) -> str:
    """A picture `(H, W, 3)` uint8 with its name, which a screen reader says too."""
    name = html.escape(name)
    return f'<figure><img src="{_source(picture)}" alt="{name}"><figcaption>{name}</figcaption></figure>'


def scale(colours: str, low: str, high: str, what: str) -> str:
    """A bar of the colours of a map, with what its ends mean."""
    bar = _source(coloured(np.linspace(0, 1, 128)[None], colours, 0, 1))
    low, high, what = (html.escape(text) for text in (low, high, what))
    return f'<p class="scale">{what}: <span>{low}<img src="{bar}" alt="to">{high}</span></p>'


def gallery(*figures: str, columns: int = 4, below: str = "") -> str:
    """Figures side by side, two on a narrow page."""
    return f'<div class="gallery" style="--columns: {columns}">{"".join(figures)}</div>{below}'


def _source(picture: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
