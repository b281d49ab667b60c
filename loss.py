"""Losses of DRAEM: MSE + (1 - SSIM) of the reconstruction, focal loss of the segmentation (paper, section 3)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Extremes = Callable[[Tensor], Sequence[Tensor]]


class SSIM(nn.Module):
    """1 - structural similarity (Z. Wang et al., 'Image quality assessment', 2004), averaged over all pixels.

    Gaussian window, zero padding. As in the original, the dynamic range is derived from the first argument, for the
    whole batch: 255 if its maximum is above 128, else 1; plus 1 if its minimum is below -0.5.

    Args:
        window_size, sigma: of the Gaussian window, in pixels.
        extremes: function that returns minimum and maximum of a batch. In a distributed run, whose processes each have
            a share of a batch, it must return those of the whole batch.
    """

    def __init__(self, window_size: int = 11, sigma: float = 1.5, extremes: Extremes = torch.aminmax):
        super().__init__()
        self.extremes = extremes
        x = torch.arange(window_size, dtype=torch.float64) - window_size // 2
        window = torch.exp(-(x**2) / (2 * sigma**2)).float()
        self.window: Tensor
        self.register_buffer("window", window / window.sum(), persistent=False)

    def _band(self, size: int) -> Tensor:
        """Band matrix, float32 (size, size), that convolves a row of `size` pixels with the zero-padded window."""
        offset = torch.arange(size, device=self.window.device)
        offset = offset - offset[:, None] + len(self.window) // 2
        return self.window[offset.clamp(0, len(self.window) - 1)] * ((offset >= 0) & (offset < len(self.window)))

    def _blur(self, maps: Tensor) -> Tensor:
        """Gaussian mean around each pixel: (..., H, W) to the same."""
        if maps.dtype == torch.float64:
            # The original's 2-D window is rounded to float32, which two 1-D passes do not reproduce. The difference is
            # visible in float64 only, where the result equals the original's.
            window = (self.window[:, None] * self.window).double()
            planes = maps.reshape(-1, 1, *maps.shape[-2:])
            return F.conv2d(planes, window[None, None], padding=len(self.window) // 2).view(maps.shape)
        # Two 1-D passes as products with band matrices: single-channel convolutions are many times slower.
        rows, columns = (self._band(size).to(maps) for size in maps.shape[-2:])
        return rows @ (maps @ columns)

    def forward(self, image: Tensor, target: Tensor) -> Tensor:
        """1 - SSIM of `image` (the reconstruction) and `target`, both (N, C, H, W): a scalar of their dtype."""
        with torch.no_grad():  # all on the device, without synchronization
            low, high = self.extremes(image)
            dynamic_range = 1 + 254 * (high > 128).to(image.dtype) + (low < -0.5).to(image.dtype)
            c1, c2 = (0.01 * dynamic_range) ** 2, (0.03 * dynamic_range) ** 2

        image, target = image.contiguous(), target.contiguous()  # the networks may use channels_last
        mu_x, xx, xy = self._blur(torch.stack((image, image * image, image * target)))
        mu_y, yy = self._blur(torch.stack((target, target * target)))  # separate: needs no gradient
        mu_xy, mu_squares = mu_x * mu_y, mu_x * mu_x + mu_y * mu_y
        covariance, variances = xy - mu_xy, xx + yy - mu_squares
        similarity = (2 * mu_xy + c1) * (2 * covariance + c2) / ((mu_squares + c1) * (variances + c2))
        return 1 - similarity.mean()


class FocalLoss(nn.Module):
    """Focal loss (T.-Y. Lin et al., ICCV 2017) of probabilities, with alpha = 1 and the smoothing of the original.

    The mean of -(1 - q)^gamma log q, with q = (1 - s) p + s (1 - p) + s, p the probability of the true class, and
    s = `smooth`.
    """

    def __init__(self, gamma: float = 2.0, smooth: float = 1e-5):
        super().__init__()
        self.gamma = gamma
        # Rounded to float32 as in the original, which is visible in float64.
        self.low, self.high = (torch.tensor(s, dtype=torch.float32).item() for s in (smooth, 1 - smooth))
        self.smooth = smooth

    def forward(self, probabilities: Tensor, mask: Tensor) -> Tensor:
        """Loss as a scalar. probabilities: (N, 2, H, W), sum 1 over dim 1. mask: (N, 1, H, W) of 0 and 1."""
        nominal, anomalous = probabilities.split(1, dim=1)
        is_anomalous = mask >= 1
        p = torch.where(is_anomalous, anomalous, nominal)
        other = torch.where(is_anomalous, nominal, anomalous)
        q = self.high * p + self.low * other + self.smooth
        return -((1 - q) ** self.gamma * torch.log(q)).mean()


class DRAEMLoss(nn.Module):
    """The three terms of the loss. Computed in float32 for bfloat16 and float16 inputs.

    Args:
        extremes: see `SSIM`. weights: of l2, ssim and focal; equal in the paper.
    """

    def __init__(self, extremes: Extremes = torch.aminmax, weights: Sequence[float] = (1, 1, 1)):
        super().__init__()
        self.ssim, self.focal, self.weights = SSIM(extremes=extremes), FocalLoss(), tuple(weights)

    def total(self, terms: dict[str, Tensor]) -> Tensor:
        """The loss: the weighted sum of the terms."""
        l2, ssim, focal = self.weights
        return l2 * terms["l2"] + ssim * terms["ssim"] + focal * terms["focal"]

    def forward(self, reconstruction: Tensor, logits: Tensor, image: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Terms of the loss for one batch.

        Args:
            reconstruction: (N, 3, H, W). logits: (N, 2, H, W), channel 1 is 'anomalous'.
            image: nominal image, the target of the reconstruction, (N, 3, H, W). mask: (N, 1, H, W) of 0 and 1.

        Returns:
            scalars `l2`, `ssim` and `focal`, without their weights.
        """
        with torch.autocast(reconstruction.device.type, enabled=False):
            if reconstruction.dtype in (torch.bfloat16, torch.float16):
                reconstruction, logits = reconstruction.float(), logits.float()
            probabilities = torch.softmax(logits, dim=1)
            return {
                "l2": F.mse_loss(reconstruction, image),
                "ssim": self.ssim(reconstruction, image),
                "focal": self.focal(probabilities, mask),
            }
