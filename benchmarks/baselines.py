"""The plain way, as baseline: float32, contiguous, eager, unfused; synthesis of every sample; metrics by sorting all
pixels; panels by matplotlib. Same numbers as the project's, written without regard to speed."""

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score
from torch import Tensor
from torch.nn import functional as F

from data.image_io import read_image, rotate
from data_loader import scaled
from model import DRAEM
from synthesis import AnomalySynthesizer


def perlin_noise(shape: tuple[int, int], res: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Perlin noise with a gradient for every pixel and corner, in float64."""
    angles = rng.uniform(0, 2 * np.pi, (res[0] + 1, res[1] + 1))
    gradients = np.stack((np.cos(angles), np.sin(angles)), axis=-1)
    y, x = np.meshgrid(*(np.arange(n) * r / n for n, r in zip(shape, res, strict=True)), indexing="ij")
    cell_y, cell_x = y.astype(int), x.astype(int)
    fy, fx = y - cell_y, x - cell_x

    def corner(dy: int, dx: int) -> np.ndarray:
        return (gradients[cell_y + dy, cell_x + dx] * np.stack((fy - dy, fx - dx), axis=-1)).sum(-1)

    wy, wx = (6 * f**5 - 15 * f**4 + 10 * f**3 for f in (fy, fx))
    top, bottom = (corner(dy, 0) * (1 - wx) + corner(dy, 1) * wx for dy in (0, 1))
    return np.sqrt(2) * (top * (1 - wy) + bottom * wy)


def sample(files: Sequence[Path], textures: Sequence[Path], helper: AnomalySynthesizer, rng: np.random.Generator):
    """A training sample: files decoded, an anomaly synthesized, and half of the time thrown away."""
    image = read_image(files[int(rng.integers(len(files)))], helper.image_size)
    if rng.random() < 0.3:
        image = rotate(image, rng.uniform(-90, 90))
    image = image / np.float32(255)
    texture = helper.augment_texture(read_image(textures[int(rng.integers(len(textures)))], helper.image_size), rng)
    noise = perlin_noise(helper.image_size, tuple(2 ** rng.integers(0, 6, 2)), rng)
    mask = (rotate(noise, rng.uniform(-90, 90)) > 0.5)[..., None].astype(np.float32)
    beta = rng.uniform(0, 0.8)
    inside = texture.astype(np.float32) * mask / 255
    augmented = image * (1 - mask) + (1 - beta) * inside + beta * image * mask
    if rng.random() < 0.5:
        augmented, mask = image, np.zeros_like(mask)
    return {
        "image": np.transpose(image, (2, 0, 1)).copy(),
        "augmented_image": np.transpose(augmented, (2, 0, 1)).astype(np.float32),
        "anomaly_mask": np.transpose(mask, (2, 0, 1)).copy(),
    }


def ssim_loss(image: Tensor, target: Tensor) -> Tensor:
    """1 - SSIM, five convolutions with a window of 11 x 11."""
    x = torch.arange(11) - 5.0
    window = torch.exp(-(x**2) / 4.5)
    window = window / window.sum()
    channels = image.shape[1]
    window = (window[:, None] * window).expand(channels, 1, 11, 11).contiguous().to(image)
    low, high = image.min().item(), image.max().item()
    value_range = (255 if high > 128 else 1) - (-1 if low < -0.5 else 0)
    c1, c2 = (0.01 * value_range) ** 2, (0.03 * value_range) ** 2

    def blur(maps: Tensor) -> Tensor:
        return F.conv2d(maps, window, padding=5, groups=channels)

    mu_x, mu_y = blur(image), blur(target)
    xx, yy, xy = blur(image * image) - mu_x**2, blur(target * target) - mu_y**2, blur(image * target) - mu_x * mu_y
    return 1 - ((2 * mu_x * mu_y + c1) * (2 * xy + c2) / ((mu_x**2 + mu_y**2 + c1) * (xx + yy + c2))).mean()


def focal_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """Focal loss of gamma 2 with smoothed one-hot targets."""
    one_hot = torch.zeros_like(logits).scatter_(1, mask.long(), 1.0).clamp(1e-5, 1 - 1e-5)
    p = (one_hot * torch.softmax(logits, dim=1)).sum(1) + 1e-5
    return (-((1 - p) ** 2) * p.log()).mean()


def train_step(model: DRAEM, optimizer: torch.optim.Optimizer, batch: dict[str, Tensor], device: torch.device) -> float:
    """One step; returns the loss, which waits for it."""
    image, augmented = (scaled(batch[key], torch.device(device)) for key in ("image", "augmented_image"))
    mask = batch["anomaly_mask"].to(device)
    reconstruction, logits = model(augmented)
    loss = F.mse_loss(reconstruction, image) + ssim_loss(reconstruction, image) + focal_loss(logits, mask)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def optimizer(model: DRAEM) -> torch.optim.Optimizer:
    """Adam as one would write it."""
    return torch.optim.Adam(model.parameters(), 1e-4, foreach=False, fused=False)


def pixel_metrics(maps: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> dict[str, float]:
    """AUROC, AP, largest F1 and PRO to 30 % false positives, of all pixels sorted by score."""
    scores, labels = np.concatenate([m.ravel() for m in maps]), np.concatenate([m.ravel() for m in masks])
    precision, recall, _ = precision_recall_curve(labels, scores)
    weights = []
    for mask in masks:
        count, regions = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
        sizes = np.bincount(regions.ravel(), minlength=count)
        weights.append(np.where(regions > 0, 1 / sizes[regions], 0).ravel())
    order = np.argsort(-scores, kind="stable")
    overlap, fp = np.cumsum(np.concatenate(weights)[order]), np.cumsum(~labels[order])
    last = np.append(np.diff(scores[order]) != 0, True)
    x, y = np.append(0, fp[last] / fp[-1]), np.append(0, overlap[last] / overlap[-1])
    inside = x <= 0.3
    x, y = np.append(x[inside], 0.3), np.append(y[inside], np.interp(0.3, x, y))
    return {
        "pixel_auroc": roc_auc_score(labels, scores),
        "pixel_ap": average_precision_score(labels, scores),
        "pixel_f1": float(np.max(2 * precision * recall / np.maximum(precision + recall, 1e-12))),
        "pro": float(np.trapezoid(y, x)) / 0.3,
    }


def panel(path: Path, arrays: Sequence[np.ndarray]) -> None:
    """Six images side by side, drawn by matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 3))
    FigureCanvasAgg(figure)
    for axes, array in zip(figure.subplots(1, 6), arrays, strict=True):
        axes.imshow(array, vmin=0, vmax=1)
        axes.axis("off")
    figure.savefig(path)


def detection(files: Sequence[tuple[Path, Path | None]], forward: Callable, folder: Path, size: int) -> None:
    """Read, detect, measure and draw images, each with its mask file or None, one after the other."""
    maps, masks = [], []
    for i, (file, mask_file) in enumerate(files):
        image = cv2.resize(cv2.imread(str(file)), (size, size)).astype(np.float32) / 255
        mask = np.zeros((size, size), bool)
        if mask_file is not None:
            mask = np.asarray(cv2.imread(str(mask_file), 0)) > 127
        anomaly_map = forward(image)
        maps.append(anomaly_map)
        masks.append(mask)
        panel(folder / f"{i:05}.png", [image, image, anomaly_map, mask, anomaly_map > 0.5, image])
    pixel_metrics(maps, masks)
