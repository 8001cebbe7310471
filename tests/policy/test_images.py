"""Images: which leaves are, in which order their axes lie, and that acting equals recomputation."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector.utils import concatenate, create_empty_array

from agentgpt_remote.policy.cnn import ImageCNN
from agentgpt_remote.policy.config import GPTConfig, GPTType
from agentgpt_remote.policy.features import ObservationFeatures
from agentgpt_remote.policy.images import image_leaf, is_image
from agentgpt_remote.policy.model import PolicyModel

OBSERVATIONS = spaces.Dict(
    front=spaces.Box(0, 255, (18, 22, 3), np.uint8),
    nested=spaces.Tuple((spaces.Box(0, 255, (2, 20, 16), np.uint8), spaces.Discrete(3))),
    speed=spaces.Box(-1, 1, (2,), np.float32),
)


def box(*shape: int, dtype: Any = np.uint8) -> spaces.Box:
    return spaces.Box(0, 200, shape, dtype)


def streams(model: PolicyModel, agents: int, steps: int) -> tuple[torch.Tensor, ...]:
    """Return random observations, previous actions, episode starts and pixels, (agents, steps, ...)."""
    model.observation_space.seed(0)
    batches = []
    for _ in range(agents):
        values = [model.observation_space.sample() for _ in range(steps)]
        batches.append(concatenate(model.observation_space, values, create_empty_array(model.observation_space, steps)))
    obs = np.stack([model.observations.encode(batch) for batch in batches])
    pixels = np.stack([model.observations.pixels(batch) for batch in batches])
    is_first = torch.from_numpy(np.random.default_rng(0).random((agents, steps)) < 0.1)
    is_first[:, 0] = True
    prev = torch.randint(0, 2, (agents, steps, model.actions.width)).float()
    return torch.from_numpy(obs), prev, is_first, torch.from_numpy(pixels)


@pytest.mark.parametrize(
    ("space", "geometry"),
    [
        (box(84, 84, 4), (4, 84, 84, True)),
        (box(4, 84, 84), (4, 84, 84, False)),
        (box(210, 160, 3), (3, 210, 160, True)),
        (box(3, 16, 40), (3, 16, 40, False)),
        (box(24, 24, 1), (1, 24, 24, True)),
        (box(16, 300), (1, 16, 300, True)),
    ],
)
def test_images_are_recognised_with_channels_first_or_last(space: spaces.Box, geometry: tuple[Any, ...]) -> None:
    assert is_image(space)
    leaf = image_leaf((), space, 5)
    assert (leaf.channels, leaf.height, leaf.width, leaf.channels_last) == geometry
    assert leaf.columns == slice(5, 5 + int(np.prod(space.shape)))


@pytest.mark.parametrize(
    "space",
    [box(84, 84, 3, dtype=np.float32), box(8, 8, 3), box(15, 40), box(128), box(2, 20, 20, 3), spaces.Discrete(9)],
)
def test_other_spaces_are_no_images(space: spaces.Space[Any]) -> None:
    assert not is_image(space)
    assert ObservationFeatures(space).pixel_width == 0


@pytest.mark.parametrize("shape", [(16, 16, 1), (24, 24, 3), (17, 300, 1), (48, 64, 2), (84, 84, 4), (210, 160, 3)])
def test_cnn_fits_any_size_and_does_not_mind_the_order_of_axes(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    last = image_leaf((), box(*shape), 0)
    first = image_leaf((), box(shape[2], *shape[:2]), 0)
    cnn, images = ImageCNN(last, 32), torch.randint(0, 256, (5, *shape), dtype=torch.uint8)
    swapped = ImageCNN(first, 32)
    swapped.load_state_dict(cnn.state_dict())
    with torch.no_grad():
        out = cnn(images.flatten(1))
        torch.testing.assert_close(out, swapped(images.permute(0, 3, 1, 2).flatten(1)))
    assert out.shape == (5, 32)
    assert sum(parameter.numel() for parameter in cnn.parameters()) < 700_000


def test_cnn_takes_many_images_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    cnn, images = ImageCNN(image_leaf((), box(16, 16), 0), 8), torch.randint(0, 256, (2, 5, 256), dtype=torch.uint8)
    whole = cnn(images)
    monkeypatch.setattr("agentgpt_remote.policy.cnn._MAX_IMAGES", 3)
    with torch.no_grad():
        torch.testing.assert_close(cnn(images), whole.detach())


def test_features_keep_images_apart_as_bytes() -> None:
    features = ObservationFeatures(OBSERVATIONS)
    OBSERVATIONS.seed(1)
    value = OBSERVATIONS.sample()
    batch = concatenate(OBSERVATIONS, [value], create_empty_array(OBSERVATIONS, 1))
    pixels = features.pixels(batch)
    assert pixels is not None
    assert pixels.dtype == np.uint8
    assert pixels.shape == (1, features.pixel_width) == (1, 18 * 22 * 3 + 2 * 20 * 16)
    np.testing.assert_array_equal(pixels[0, : 18 * 22 * 3], value["front"].reshape(-1))
    assert features.encode(batch).shape == (1, features.width) == (1, 3)
    only = ObservationFeatures(box(20, 20))
    assert only.encode(np.zeros((4, 20, 20), np.uint8)).shape == (4, 0)


@pytest.mark.parametrize("gpt_type", get_args(GPTType))
@pytest.mark.parametrize("space", [OBSERVATIONS, box(20, 20, 3)])
def test_act_step_and_rebuilt_cache_equal_recompute_with_images(space: spaces.Space[Any], gpt_type: GPTType) -> None:
    torch.manual_seed(0)
    config = GPTConfig(num_layers=2, d_model=32, num_heads=2, max_input_states=4, gpt_type=gpt_type)
    model = PolicyModel(space, spaces.MultiDiscrete([3, 2]), config)
    model.head.weight.data.mul_(30.0)
    obs, prev, is_first, pixels = streams(model, 3, 40)
    cache, rebuilt, half = model.make_cache(3), model.make_cache(3), slice(12, 20)
    with torch.no_grad():
        wanted = model(obs, prev, is_first, pixels)
        for t in range(40):
            if t == 20:
                inputs = model.encoder.prepare(obs[:, half], prev[:, half], is_first[:, half], pixels[:, half])
                model.rebuild_cache(inputs, is_first[:, half], rebuilt, slice(0, 3))
            for each in (cache, rebuilt)[: 1 if t < 20 else 2]:
                got = model.act_step(obs[:, t], prev[:, t], is_first[:, t], each, slice(0, 3), pixels[:, t])
                torch.testing.assert_close(got, wanted[:, t], atol=1e-5, rtol=1e-5)
        changed = pixels.clone()
        changed[:, 5] = 255 - changed[:, 5]
        assert (model(obs, prev, is_first, changed) - wanted)[:, 5].abs().max() > 1e-4


def test_missing_pixels_are_an_error() -> None:
    model = PolicyModel(box(16, 16), spaces.Discrete(2), GPTConfig(d_model=16, num_heads=2))
    with pytest.raises(ValueError, match="no pixels"):
        model(torch.zeros(1, 2, 0), torch.zeros(1, 2, 1), torch.zeros(1, 2, dtype=torch.bool))


def test_image_encoder_none_takes_images_for_numbers() -> None:
    model = PolicyModel(box(16, 16), spaces.Discrete(2), GPTConfig(d_model=16, num_heads=2, image_encoder="none"))
    assert (model.observations.width, model.observations.pixel_width) == (256, 0)
