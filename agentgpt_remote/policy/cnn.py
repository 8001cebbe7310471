"""The CNN that turns the images of an observation into a part of its token."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from agentgpt_remote.policy.images import ImageLeaf

_MAX_IMAGES = 1024  # embedded at once where no gradient is wanted, which bounds the memory


class ImageCNN(nn.Module):
    """A small CNN over images of one size: convolutions that halve the map, one linear map, LayerNorm.

    Args:
        leaf: the image.
        width: of the token.
    """

    def __init__(self, leaf: ImageLeaf, width: int) -> None:
        super().__init__()
        self.leaf = leaf
        first, *strides = leaf.convolution_strides()
        channels = 16
        kernel, padding = (8, 2) if leaf.is_large else (3, 1)
        layers: list[nn.Module] = [nn.Conv2d(leaf.channels, channels, kernel, first, padding)]
        for stride in strides:
            layers += [nn.ReLU(), nn.Conv2d(channels, 32, 3, stride, 1)]
            channels = 32
        height, columns = leaf.map_shape
        self.layers = nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.Linear(channels * height * columns, width))
        self.norm = nn.LayerNorm(width)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return embedded images.

        Args:
            pixels: all pixels of the observations, uint8 tensor of shape (..., P).

        Returns:
            float tensor of shape (..., width).
        """
        columns = self.leaf.columns
        images = pixels[..., columns].reshape(-1, columns.stop - columns.start)
        if torch.is_grad_enabled() or len(images) <= _MAX_IMAGES:
            x = self._embed(images)
        else:
            x = torch.cat([self._embed(part) for part in torch.split(images, _MAX_IMAGES)])
        return x.view(*pixels.shape[:-1], -1)

    def _embed(self, images: Tensor) -> Tensor:
        """Return embedded images (N, width) from their bytes (N, C * H * W)."""
        leaf = self.leaf
        if leaf.channels_last:
            x = images.view(-1, leaf.height, leaf.width, leaf.channels).permute(0, 3, 1, 2)
        else:
            x = images.view(-1, leaf.channels, leaf.height, leaf.width)
        result: Tensor = self.norm(self.layers(x.to(self.norm.weight.dtype).div_(255.0)))  # (N, C, H, W) -> (N, width)
        return result
