"""Simulated ultrasound speckle whose classes differ in texture only.

The images follow the standard linear model of B-mode speckle. Point scatterers at random positions inside the scan
plane are convolved with a complex point-spread function (PSF), a Gaussian envelope on an axial carrier. The magnitude
of the result is the echo envelope (Burckhardt 1978; Wagner et al. 1983; Goodman 2007). Three things shape its texture:

- the PSF, which sets the size and shape of the speckle grains (Wagner et al. 1983);
- the number of scatterers per resolution cell: many give fully developed speckle with a Rayleigh envelope, of
  mean / standard deviation sqrt(pi / (4 - pi)) = 1.91, few give pre-Rayleigh statistics (Jakeman 1984; Shankar 2000);
- the regularity of their positions, from a Poisson process to a lattice (Landini and Verrazzani 1990).

Log compression is monotone, so it is done together with the removal of brightness: the pixels of each image are ranked,
and the ranks are given the grey levels of log-compressed fully developed speckle (Dutt and Greenleaf 1996). So all
images of one size have exactly the same grey histogram, and nothing but the arrangement of the greys tells the classes
apart.

Here are the images, which need NumPy alone; the data set is made in `corpora/speckle.py`.

References:
- C. B. Burckhardt, "Speckle in ultrasound B-mode scans", IEEE Trans. Sonics Ultrason. 25(1), 1978.
- R. F. Wagner, S. W. Smith, J. M. Sandrik, H. Lopez, "Statistics of speckle in ultrasound B-scans",
  IEEE Trans. Sonics Ultrason. 30(3), 1983.
- E. Jakeman, "Speckle statistics with a small number of scatterers", Opt. Eng. 23(4), 1984.
- L. Landini, L. Verrazzani, "Spectral characterization of tissues microstructure by ultrasounds: a stochastic
  approach", IEEE Trans. Ultrason. Ferroelectr. Freq. Control 37(5), 1990.
- V. Dutt, J. F. Greenleaf, "Adaptive speckle reduction filter for log-compressed B-scan images",
  IEEE Trans. Med. Imaging 15(6), 1996.
- P. M. Shankar, "A general statistical model for ultrasonic backscattering from tissues",
  IEEE Trans. Ultrason. Ferroelectr. Freq. Control 47(3), 2000.
- J. W. Goodman, "Speckle Phenomena in Optics: Theory and Applications", Roberts & Company, 2007.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

__all__ = ["CLASS_SETS", "SpeckleClass", "check_size", "envelope", "speckle_image"]

MIN_IMAGE_SIZE = 16

# Scatterers are placed on a grid this many times finer than the pixels; their carrier phase uses the exact position.
OVERSAMPLING = 3
# The PSF is cut off here (in standard deviations); scatterers are simulated this far outside the image, too.
PSF_EXTENT = 4.0
# Display window in dB relative to the mean echo intensity: clips 0.6 % of fully developed speckle to black and 0.2 % to
# white.
DISPLAY_WINDOW_DB = (-22.0, 8.0)


@dataclass(frozen=True)
class SpeckleClass:
    """The acoustic parameters of one texture class.

    Args:
        name (`str`): Name of the class.
        axial_width (`float`): Standard deviation of the PSF envelope along the beam (image rows), in pixels, > 0.
        lateral_width (`float`): Standard deviation of the PSF envelope across the beam (image columns), in pixels, > 0.
        scatterers_per_cell (`float`): Mean number of scatterers in a resolution cell, > 0. The area of the cell is that
            under the intensity autocovariance of fully developed speckle, 2 pi axial_width lateral_width pixels
            (Wagner et al. 1983). From about 10 on the speckle is fully developed.
        regularity (`float`): 0 for a Poisson process, 1 for a lattice. In between, lattice positions are displaced by
            Gaussian jitter of standard deviation (1 - regularity) / regularity lattice steps.
    """

    name: str
    axial_width: float
    lateral_width: float
    scatterers_per_cell: float
    regularity: float = 0.0

    def __post_init__(self) -> None:
        for field in ("axial_width", "lateral_width", "scatterers_per_cell"):
            if not 0 < getattr(self, field) < float("inf"):
                raise ValueError(f"`{field}` must be a finite number above 0, got {getattr(self, field)!r}.")
        if not 0 <= self.regularity <= 1:
            raise ValueError(f"`regularity` must lie between 0 and 1, got {self.regularity!r}.")

    @property
    def cell_area(self) -> float:
        """Area of the resolution cell in pixels."""
        return 2 * np.pi * self.axial_width * self.lateral_width


# The grains are much smaller than a patch of 16 pixels, so that hardly any pixel of a masked patch can be predicted
# from its neighbours; its texture can.
CLASS_SETS: dict[str, tuple[SpeckleClass, ...]] = {
    "easy": (
        SpeckleClass("fine", 0.6, 0.6, 20.0),
        SpeckleClass("coarse", 1.2, 1.2, 20.0),
        SpeckleClass("elongated", 0.65, 1.6, 20.0),
        SpeckleClass("sparse", 0.9, 0.9, 0.6),
        SpeckleClass("regular", 0.9, 1.1, 0.7, 0.75),
    ),
    "hard": (
        SpeckleClass("fine", 0.75, 0.85, 20.0),
        SpeckleClass("coarse", 1.05, 1.15, 20.0),
        SpeckleClass("elongated", 0.75, 1.3, 20.0),
        SpeckleClass("sparse", 0.9, 1.0, 1.5),
        SpeckleClass("regular", 0.9, 1.05, 1.0, 0.7),
    ),
}


def _scatterer_positions(speckle_class: SpeckleClass, extent: float, rng: np.random.Generator) -> np.ndarray:
    """Positions (row, column) in pixels of the scatterers in a square field of side `extent`: `(N, 2)`."""
    regularity = speckle_class.regularity
    if regularity == 0:
        count = rng.poisson(extent**2 * speckle_class.scatterers_per_cell / speckle_class.cell_area)
        return rng.uniform(0, extent, (count, 2))
    widths = np.array([speckle_class.axial_width, speckle_class.lateral_width])
    steps = widths * np.sqrt(2 * np.pi / speckle_class.scatterers_per_cell)
    jitter = (1 - regularity) / regularity
    # The lattice overlaps the field, so that jitter moves as many scatterers in as out.
    overlap = int(np.ceil(4 * jitter)) + 1
    rows, columns = (np.arange(-overlap, np.ceil(extent / step) + overlap) for step in steps)
    lattice = np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(-1, 2)
    lattice += rng.uniform(0, 1, 2)
    lattice += jitter * rng.standard_normal(lattice.shape)
    positions = lattice * steps
    return positions[((positions >= 0) & (positions < extent)).all(axis=1)]


@lru_cache(maxsize=32)
def _gaussian(size: int, margin: int, width: float) -> np.ndarray:
    """One axis of the PSF envelope, from fine grid to pixels: `(size, (size + 2 margin) OVERSAMPLING)`."""
    fine = (np.arange((size + 2 * margin) * OVERSAMPLING) + 0.5) / OVERSAMPLING - margin
    pixels = np.arange(size) + 0.5
    return np.exp(-0.5 * ((pixels[:, None] - fine) / width) ** 2)


def check_size(field: str, size: int) -> None:
    """Whether an image can have that side, in pixels.

    Raises:
        `ValueError`: If it cannot; names the field.
    """
    if isinstance(size, bool) or not isinstance(size, (int, np.integer)) or size < MIN_IMAGE_SIZE:
        raise ValueError(f"`{field}` must be an integer of at least {MIN_IMAGE_SIZE} pixels, got {size!r}.")


def envelope(speckle_class: SpeckleClass, size: int, seed: int | Sequence[int]) -> np.ndarray:
    """Echo envelope before compression.

    Args:
        speckle_class ([`SpeckleClass`]): Parameters of the tissue and the PSF.
        size (`int`): Side H = W of the image in pixels, at least 16.
        seed (`int` or sequence of `int`): Entropy for `np.random.SeedSequence`, not negative.

    Returns:
        `np.ndarray` of shape `(H, W)`, float64, >= 0: magnitude of the echo, rows along the beam.

    Raises:
        `ValueError`: If `size` is not an integer of at least 16 or `seed` is negative.
    """
    check_size("size", size)
    rng = np.random.default_rng(np.random.SeedSequence(seed))
    margin = int(np.ceil(PSF_EXTENT * max(speckle_class.axial_width, speckle_class.lateral_width)))
    extent = size + 2 * margin
    positions = _scatterer_positions(speckle_class, extent, rng)
    # All scatterers have the same sign, otherwise random signs would hide the regularity of their positions.
    amplitudes = rng.uniform(0.5, 1.5, len(positions))

    # The carrier is taken out of the convolution: psf(z) = gaussian(z) exp(i k z) gives the echo
    # exp(i k z) * sum_n a_n exp(-i k z_n) gaussian(z - z_n), whose first factor is lost in the magnitude.
    # With a period of one axial width, a pulse has 2.4 cycles at half maximum, as is common in diagnostic imaging.
    phases = -2 * np.pi * positions[:, 0] / speckle_class.axial_width
    fine_size = extent * OVERSAMPLING
    rows, columns = (positions * OVERSAMPLING).astype(np.int64).T
    field = np.stack(
        [
            np.bincount(rows * fine_size + columns, weights, fine_size**2).reshape(fine_size, fine_size)
            for weights in (amplitudes * np.cos(phases), amplitudes * np.sin(phases))
        ]
    )  # (2, fine, fine): real and imaginary part

    # The Gaussian separates, so that two small matrix products convolve and sample at the pixels in one. Unlike a FFT
    # they leave no rounding noise in the dark gaps between scatterers, where the ranks would show it.
    axial = _gaussian(size, margin, speckle_class.axial_width)
    lateral = _gaussian(size, margin, speckle_class.lateral_width)
    real, imaginary = axial @ field @ lateral.T  # (2, H, W)
    return np.hypot(real, imaginary)


@lru_cache(maxsize=8)
def _grey_levels(count: int) -> np.ndarray:
    """The grey levels that every image of `count` pixels has, in ascending order: `(count,)` uint8."""
    # Quantiles of log-compressed fully developed speckle: its intensity is exponentially distributed.
    quantiles = (np.arange(count) + 0.5) / count
    decibels = 10 * np.log10(-np.log1p(-quantiles))
    low, high = DISPLAY_WINDOW_DB
    return np.rint(np.clip((decibels - low) / (high - low), 0, 1) * 255).astype(np.uint8)


def speckle_image(speckle_class: SpeckleClass, size: int, seed: int | Sequence[int]) -> np.ndarray:
    """B-mode image: envelope, log compression and one fixed grey histogram for every image of this size.

    Args:
        speckle_class ([`SpeckleClass`]): Parameters of the tissue and the PSF.
        size (`int`): Side H = W of the image in pixels, at least 16.
        seed (`int` or sequence of `int`): Entropy for `np.random.SeedSequence`, not negative.

    Returns:
        `np.ndarray` of shape `(H, W)`, uint8 in 0..255, rows along the beam.

    Raises:
        `ValueError`: If `size` is not an integer of at least 16 or `seed` is negative.
    """
    echo = envelope(speckle_class, size, seed)
    image = np.empty(echo.size, dtype=np.uint8)
    image[np.argsort(echo, axis=None, kind="stable")] = _grey_levels(echo.size)
    return image.reshape(echo.shape)
