"""From radiance to a photograph: exposure, white balance, vignette, blur, noise and tone."""

import numpy as np
from numpy.random import Generator


def expose(radiance: np.ndarray, rng: Generator) -> tuple[np.ndarray, dict]:
    """Take the picture.

    Args:
        radiance: linear RGB, float (S, S, 3), not negative.

    Returns:
        The image, uint8 (S, S, 3) sRGB; and its tags ``dark`` and ``blur`` (sigma, px).
    """
    import cv2

    size = len(radiance)
    luminance = radiance @ [0.2126, 0.7152, 0.0722]
    mean = np.exp(np.log(luminance + 1e-3).mean())
    dark = bool(rng.random() < 0.13)
    exposure = rng.normal(-1.6, 0.3) if dark else rng.normal(0, 0.35)
    image = radiance * (0.30 / max(mean, 1e-3)) * 2**exposure
    image = image * np.exp(rng.normal(0, 0.07, 3) * [1, 0.3, 1])
    y, x = np.mgrid[:size, :size] / size - 0.5
    image = image * (1 - rng.uniform(0, 0.5) * (x**2 + y**2))[..., None]
    blur = float(rng.choice([0, 0.4, 0.7, 1.1], p=[0.4, 0.3, 0.2, 0.1]))
    if blur:
        image = cv2.GaussianBlur(image, (0, 0), blur)
    noise = abs(rng.normal(0, 0.012)) * (2.5 if dark else 1)  # shot noise grows with the light, read noise does not
    image = image + rng.standard_normal(image.shape) * np.sqrt(np.maximum(image, 0) * 0.2 + 0.02) * noise
    image = _tone(np.maximum(image, 0), rng.random())
    image = np.where(image < 0.0031308, 12.92 * image, 1.055 * np.maximum(image, 1e-9) ** (1 / 2.4) - 0.055)
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8), {"dark": dark, "blur": blur}


def _tone(image: np.ndarray, kind: float) -> np.ndarray:
    """Linear light to [0, 1] by one of three curves: filmic, exponential or clipped."""
    if kind < 0.25:
        # Source: Narkowicz, "ACES filmic tone mapping curve", 2015.
        image = image * 0.8
        return np.clip(image * (2.51 * image + 0.03) / (image * (2.43 * image + 0.59) + 0.14), 0, 1)
    return 1 - np.exp(-1.15 * image) if kind < 0.8 else np.clip(image, 0, 1)
