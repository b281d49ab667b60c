"""DRAEM: the reconstructive and the discriminative sub-network, and the model that combines them.

V. Zavrtanik, M. Kristan, D. Skocaj, 'DRAEM - A discriminatively trained reconstruction embedding for surface anomaly
detection', ICCV 2021. Module names are those of the published weights, which load with strict=True.
"""

import torch
from torch import Tensor, nn


def _conv(in_channels: int, out_channels: int) -> list[nn.Module]:
    """3x3 convolution, batch norm, ReLU."""
    return [nn.Conv2d(in_channels, out_channels, 3, padding=1), nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]


def _block(in_channels: int, mid_channels: int, out_channels: int) -> nn.Sequential:
    """Two 3x3 convolutions with batch norm and ReLU; height and width stay."""
    return nn.Sequential(*_conv(in_channels, mid_channels), *_conv(mid_channels, out_channels))


def _up(in_channels: int, out_channels: int) -> nn.Sequential:
    """Bilinear upsampling by 2, then a 3x3 convolution with batch norm and ReLU."""
    upsample = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
    return nn.Sequential(upsample, *_conv(in_channels, out_channels))


def _final(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 3, padding=1))


def _initialize(module: nn.Module) -> None:
    """Initialize as the original: convolutions N(0, 0.02), with PyTorch's default biases; batch norm N(1, 0.02)."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


def _check_size(x: Tensor, multiple: int) -> None:
    """ValueError unless height and width are multiples of the total downsampling factor."""
    height, width = x.shape[-2:]
    if height % multiple or width % multiple or not height or not width:
        raise ValueError(f"image height and width must be multiples of {multiple}, got {height} x {width}")


class _ReconstructiveEncoder(nn.Module):
    def __init__(self, in_channels: int, b: int):
        super().__init__()
        self.block1 = _block(in_channels, b, b)
        self.block2 = _block(b, 2 * b, 2 * b)
        self.block3 = _block(2 * b, 4 * b, 4 * b)
        self.block4 = _block(4 * b, 8 * b, 8 * b)
        self.block5 = _block(8 * b, 8 * b, 8 * b)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block1(x)  # (N, b, H, W)
        x = self.block2(self.pool(x))  # (N, 2b, H/2, W/2)
        x = self.block3(self.pool(x))  # (N, 4b, H/4, W/4)
        x = self.block4(self.pool(x))  # (N, 8b, H/8, W/8)
        return self.block5(self.pool(x))  # (N, 8b, H/16, W/16)


class _ReconstructiveDecoder(nn.Module):
    def __init__(self, b: int, out_channels: int):
        super().__init__()
        self.up1, self.db1 = _up(8 * b, 8 * b), _block(8 * b, 8 * b, 4 * b)
        self.up2, self.db2 = _up(4 * b, 4 * b), _block(4 * b, 4 * b, 2 * b)
        self.up3, self.db3 = _up(2 * b, 2 * b), _block(2 * b, 2 * b, b)
        self.up4, self.db4 = _up(b, b), _block(b, b, b)
        self.fin_out = _final(b, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.db1(self.up1(x))  # (N, 4b, H/8, W/8)
        x = self.db2(self.up2(x))  # (N, 2b, H/4, W/4)
        x = self.db3(self.up3(x))  # (N, b, H/2, W/2)
        return self.fin_out(self.db4(self.up4(x)))


class ReconstructiveSubNetwork(nn.Module):
    """Autoencoder without skip connections. It replaces anomalies by nominal appearance (paper, section 3.1)."""

    def __init__(self, in_channels: int = 3, out_channels: int = 3, base_width: int = 128):
        super().__init__()
        self.encoder = _ReconstructiveEncoder(in_channels, base_width)
        self.decoder = _ReconstructiveDecoder(base_width, out_channels)
        self.apply(_initialize)

    def forward(self, x: Tensor) -> Tensor:
        """Reconstruct: (N, in_channels, H, W) -> (N, out_channels, H, W), without a final activation.

        Raises:
            ValueError: H or W is not a multiple of 16.
        """
        _check_size(x, 16)
        return self.decoder(self.encoder(x))


class _DiscriminativeEncoder(nn.Module):
    def __init__(self, in_channels: int, c: int):
        super().__init__()
        self.block1 = _block(in_channels, c, c)
        self.block2 = _block(c, 2 * c, 2 * c)
        self.block3 = _block(2 * c, 4 * c, 4 * c)
        self.block4 = _block(4 * c, 8 * c, 8 * c)
        self.block5 = _block(8 * c, 8 * c, 8 * c)
        self.block6 = _block(8 * c, 8 * c, 8 * c)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        b1 = self.block1(x)  # (N, c, H, W)
        b2 = self.block2(self.pool(b1))  # (N, 2c, H/2, W/2)
        b3 = self.block3(self.pool(b2))  # (N, 4c, H/4, W/4)
        b4 = self.block4(self.pool(b3))  # (N, 8c, H/8, W/8)
        b5 = self.block5(self.pool(b4))  # (N, 8c, H/16, W/16)
        return b1, b2, b3, b4, b5, self.block6(self.pool(b5))  # last: (N, 8c, H/32, W/32)


class _DiscriminativeDecoder(nn.Module):
    def __init__(self, c: int, out_channels: int):
        super().__init__()
        self.up_b, self.db_b = _up(8 * c, 8 * c), _block(16 * c, 8 * c, 8 * c)
        self.up1, self.db1 = _up(8 * c, 4 * c), _block(12 * c, 4 * c, 4 * c)
        self.up2, self.db2 = _up(4 * c, 2 * c), _block(6 * c, 2 * c, 2 * c)
        self.up3, self.db3 = _up(2 * c, c), _block(3 * c, c, c)
        self.up4, self.db4 = _up(c, c), _block(2 * c, c, c)
        self.fin_out = _final(c, out_channels)

    def forward(self, b1: Tensor, b2: Tensor, b3: Tensor, b4: Tensor, b5: Tensor, b6: Tensor) -> Tensor:
        x = self.db_b(torch.cat((self.up_b(b6), b5), dim=1))  # (N, 8c, H/16, W/16)
        x = self.db1(torch.cat((self.up1(x), b4), dim=1))  # (N, 4c, H/8, W/8)
        x = self.db2(torch.cat((self.up2(x), b3), dim=1))  # (N, 2c, H/4, W/4)
        x = self.db3(torch.cat((self.up3(x), b2), dim=1))  # (N, c, H/2, W/2)
        return self.fin_out(self.db4(torch.cat((self.up4(x), b1), dim=1)))


class DiscriminativeSubNetwork(nn.Module):
    """U-Net. It segments anomalies from the concatenated reconstruction and image (paper, section 3.2)."""

    def __init__(self, in_channels: int = 6, out_channels: int = 2, base_channels: int = 64):
        super().__init__()
        self.encoder_segment = _DiscriminativeEncoder(in_channels, base_channels)
        self.decoder_segment = _DiscriminativeDecoder(base_channels, out_channels)
        self.apply(_initialize)

    def forward(self, x: Tensor) -> Tensor:
        """Segment: reconstruction and image, (N, in_channels, H, W) -> logits (N, out_channels, H, W).

        Raises:
            ValueError: H or W is not a multiple of 32.
        """
        _check_size(x, 32)
        return self.decoder_segment(*self.encoder_segment(x))


class DRAEM(nn.Module):
    """Both sub-networks: reconstructs an image, and segments its anomalies from image and reconstruction.

    Args:
        base_width, base_channels: number of channels at full resolution in the reconstructive and the discriminative
            sub-network.
    """

    def __init__(self, base_width: int = 128, base_channels: int = 64):
        super().__init__()
        self.reconstructive = ReconstructiveSubNetwork(base_width=base_width)
        self.discriminative = DiscriminativeSubNetwork(base_channels=base_channels)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruct images and segment anomalies.

        Args:
            x: float (N, 3, H, W) in [0, 1], BGR.

        Returns:
            reconstruction (N, 3, H, W); logits (N, 2, H, W), channel 1 is 'anomalous'.

        Raises:
            ValueError: H or W is not a multiple of 32.
        """
        _check_size(x, 32)
        reconstruction = self.reconstructive(x)
        return reconstruction, self.discriminative(torch.cat((reconstruction, x), dim=1))
