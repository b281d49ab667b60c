"""What trains DRAEM: MSE + (1 - SSIM) of the reconstruction, focal loss of the segmentation (paper, section 3)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SSIM(nn.Module):
    """1 - structural similarity (Z. Wang et al., 'Image quality assessment', 2004), averaged over all pixels.

    Gaussian window of 11 x 11 pixels, sigma 1.5, zero padding. As in the original the dynamic range is read off the
    first argument, once a batch: 255 if its maximum is above 128, else 1; plus 1 if its minimum is below -0.5.

    extremes: gives both of a batch; of processes that share one, of the whole batch.
    """

    def __init__(
        self, window_size: int = 11, sigma: float = 1.5, extremes: Callable[[Tensor], Sequence[Tensor]] = torch.aminmax
    ):
        super().__init__()
        self.extremes = extremes
        x = torch.arange(window_size, dtype=torch.float64) - window_size // 2
        window = torch.exp(-(x**2) / (2 * sigma**2)).float()
        self.register_buffer("window", window / window.sum(), persistent=False)

    def _band(self, size: int) -> Tensor:
        """The window around each of `size` pixels in a row, float32 (size, size): zero padding is what lies outside."""
        offset = torch.arange(size, device=self.window.device)
        offset = offset - offset[:, None] + len(self.window) // 2
        return self.window[offset.clamp(0, len(self.window) - 1)] * ((offset >= 0) & (offset < len(self.window)))

    def _blur(self, maps: Tensor) -> Tensor:
        """Gaussian mean around each pixel, maps (..., H, W)."""
        if maps.dtype == torch.float64:
            # The original's window is a product rounded to float32, which no pair of 1-D passes reproduces. Narrower
            # types cannot tell the difference; float64 can, and follows the original to the last digit.
            window = (self.window[:, None] * self.window).double()
            planes = maps.reshape(-1, 1, *maps.shape[-2:])
            return F.conv2d(planes, window[None, None], padding=len(self.window) // 2).view(maps.shape)
        # Two 1-D passes as products with band matrices: convolutions of one channel are many times slower.
        rows, columns = (self._band(size).to(maps) for size in maps.shape[-2:])
        return rows @ (maps @ columns)

    def forward(self, image: Tensor, target: Tensor) -> Tensor:
        """Compare `image` (the reconstruction) with `target`, both (N, C, H, W): a scalar of their dtype."""
        with torch.no_grad():  # stays on the device: no host synchronization
            low, high = self.extremes(image)
            dynamic_range = 1 + 254 * (high > 128).to(image.dtype) + (low < -0.5).to(image.dtype)
            c1, c2 = (0.01 * dynamic_range) ** 2, (0.03 * dynamic_range) ** 2

        image, target = image.contiguous(), target.contiguous()  # planes, whatever the networks' memory format
        mu_x, xx, xy = self._blur(torch.stack((image, image * image, image * target)))
        mu_y, yy = self._blur(torch.stack((target, target * target)))  # apart: no gradient flows back through these
        mu_xy, mu_squares = mu_x * mu_y, mu_x * mu_x + mu_y * mu_y
        covariance, variances = xy - mu_xy, xx + yy - mu_squares
        similarity = (2 * mu_xy + c1) * (2 * covariance + c2) / ((mu_squares + c1) * (variances + c2))
        return 1 - similarity.mean()


class FocalLoss(nn.Module):
    """Focal loss (T.-Y. Lin et al., ICCV 2017) on probabilities, alpha 1, with the original's smoothing.

    With p the probability of the mask's class: q = (1 - s) p + s (1 - p) + s, mean of -(1 - q)^gamma log q.
    """

    def __init__(self, gamma: float = 2.0, smooth: float = 1e-5):
        super().__init__()
        self.gamma = gamma
        # The original keeps both constants in float32; that is visible in float64.
        self.low, self.high = (torch.tensor(s, dtype=torch.float32).item() for s in (smooth, 1 - smooth))
        self.smooth = smooth

    def forward(self, probabilities: Tensor, mask: Tensor) -> Tensor:
        """`probabilities` (N, 2, H, W) that sum to 1 over dim 1, `mask` (N, 1, H, W) of 0 and 1: a scalar."""
        nominal, anomalous = probabilities.split(1, dim=1)
        is_anomalous = mask >= 1
        p = torch.where(is_anomalous, anomalous, nominal)
        other = torch.where(is_anomalous, nominal, anomalous)
        q = self.high * p + self.low * other + self.smooth
        return -((1 - q) ** self.gamma * torch.log(q)).mean()


class DRAEMLoss(nn.Module):
    """The three terms with equal weights. bfloat16 and float16 inputs are compared in float32, float64 in float64.

    extremes: see `SSIM`.
    """

    def __init__(self, extremes: Callable[[Tensor], Sequence[Tensor]] = torch.aminmax):
        super().__init__()
        self.ssim, self.focal = SSIM(extremes=extremes), FocalLoss()

    def forward(self, reconstruction: Tensor, logits: Tensor, image: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Terms of one batch.

        Args:
            reconstruction: (N, 3, H, W). logits: (N, 2, H, W), channel 1 'anomalous'.
            image: (N, 3, H, W), what the reconstruction should have been. mask: (N, 1, H, W) of 0 and 1.

        Returns:
            scalars `l2`, `ssim` and `focal`; their sum is the loss.
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
