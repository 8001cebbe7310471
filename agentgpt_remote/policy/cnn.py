"""The CNN that turns the images of an observation into a part of its token."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from agentgpt_remote.policy.images import ImageLeaf

_LARGE_SIDE = 48  # images with no shorter side are reduced by four at once
_SMALL_MAP = 6  # maps no larger than this are flattened
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
        shape, channels = (leaf.height, leaf.width), 16
        if min(shape) >= _LARGE_SIDE:
            layers: list[nn.Module] = [nn.Conv2d(leaf.channels, channels, 8, 4, 2)]
            shape = (shape[0] // 4, shape[1] // 4)
        else:
            layers = [nn.Conv2d(leaf.channels, channels, 3, _stride(shape), 1)]
            shape = _halved(shape)
        while max(shape) > _SMALL_MAP:
            layers += [nn.ReLU(), nn.Conv2d(channels, 32, 3, _stride(shape), 1)]
            shape, channels = _halved(shape), 32
        self.layers = nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.Linear(channels * shape[0] * shape[1], width))
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


def _stride(shape: tuple[int, int]) -> tuple[int, int]:
    return (2 if shape[0] > _SMALL_MAP else 1, 2 if shape[1] > _SMALL_MAP else 1)


def _halved(shape: tuple[int, int]) -> tuple[int, int]:
    """Return the shape after a convolution of size 3 with padding 1 and :func:`_stride`."""
    strides = _stride(shape)
    return (-(-shape[0] // strides[0]), -(-shape[1] // strides[1]))
