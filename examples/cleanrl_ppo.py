"""PPO in one file, in the manner of CleanRL, on environments of a host: ``python examples/cleanrl_ppo.py``.

What differs from a local script is the id in ``make_vec``, and ``url=`` where the host is another machine. With
``autoreset_mode="SameStep"``, an observation that follows the end of an episode is the next one's first, which the
loop below relies on.
"""

from __future__ import annotations

import argparse
from collections import deque
from collections.abc import Sequence

import gymnasium as gym
import numpy as np
import torch
from torch import nn
from torch.distributions import Categorical

import agentgpt_remote  # noqa: F401  # makes agentgpt/<id> known to Gymnasium

NUM_STEPS, NUM_EPOCHS, NUM_MINIBATCHES = 128, 4, 4
GAMMA, GAE_LAMBDA, CLIP, VALUE_COEFFICIENT, ENTROPY_COEFFICIENT = 0.99, 0.95, 0.2, 0.5, 0.01


class Agent(nn.Module):
    """An actor and a critic without shared layers."""

    def __init__(self, obs_dim: int, num_actions: int) -> None:
        super().__init__()
        self.actor = nn.Sequential(
            nn.Linear(obs_dim, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, num_actions)
        )
        self.critic = nn.Sequential(nn.Linear(obs_dim, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))

    def act(self, obs: torch.Tensor) -> tuple[Categorical, torch.Tensor]:
        """Return the distribution of actions and the values (n,) of observations (n, obs_dim)."""
        return Categorical(logits=self.actor(obs)), self.critic(obs).squeeze(-1)


def advantages_of(rewards: torch.Tensor, values: torch.Tensor, ended: torch.Tensor) -> torch.Tensor:
    """Return generalized advantages (steps, n); ``values`` has one row more, and ``ended[t]`` follows step t."""
    advantages = torch.zeros_like(rewards)
    last = torch.zeros_like(rewards[0])
    for step in reversed(range(len(rewards))):
        goes_on = 1.0 - ended[step]
        error = rewards[step] + GAMMA * values[step + 1] * goes_on - values[step]
        last = error + GAMMA * GAE_LAMBDA * goes_on * last
        advantages[step] = last
    return advantages


def main(arguments: Sequence[str] | None = None) -> float:
    """Train, and return the mean return of the latest 20 episodes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env-id", default="CartPole-v1", help="an id with discrete actions")
    parser.add_argument("--url", help="where a host listens; without it, one is started on this machine")
    parser.add_argument("--num-envs", type=int, default=8)
    parser.add_argument("--total-steps", type=int, default=100_000)
    parser.add_argument("--learning-rate", type=float, default=2.5e-3)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.manual_seed(options.seed)

    where = {} if options.url is None else {"url": options.url}
    envs = gym.make_vec(f"agentgpt/{options.env_id}", num_envs=options.num_envs, autoreset_mode="SameStep", **where)
    assert isinstance(envs.single_action_space, gym.spaces.Discrete)
    n, obs_dim = envs.num_envs, int(np.prod(envs.single_observation_space.shape))
    agent = Agent(obs_dim, int(envs.single_action_space.n))
    optimizer = torch.optim.Adam(agent.parameters(), lr=options.learning_rate, eps=1e-5)

    observations = torch.zeros(NUM_STEPS, n, obs_dim)
    actions = torch.zeros(NUM_STEPS, n, dtype=torch.int64)
    log_probs, rewards, ended = (torch.zeros(NUM_STEPS, n) for _ in range(3))
    values = torch.zeros(NUM_STEPS + 1, n)
    returns, finished = np.zeros(n), deque[float](maxlen=20)
    obs, _ = envs.reset(seed=options.seed)
    for update in range(max(1, options.total_steps // (n * NUM_STEPS))):
        for step in range(NUM_STEPS):
            observations[step] = torch.as_tensor(obs, dtype=torch.float32).reshape(n, -1)
            with torch.no_grad():
                policy, values[step] = agent.act(observations[step])
                actions[step] = policy.sample()
                log_probs[step] = policy.log_prob(actions[step])
            obs, reward, terminations, truncations, _ = envs.step(actions[step].numpy())
            done = terminations | truncations
            rewards[step], ended[step] = torch.as_tensor(reward), torch.as_tensor(done)
            returns += reward
            finished.extend(returns[done])
            returns[done] = 0.0
        with torch.no_grad():
            values[NUM_STEPS] = agent.act(torch.as_tensor(obs, dtype=torch.float32).reshape(n, -1))[1]
        advantages = advantages_of(rewards, values, ended)
        targets = advantages + values[:-1]
        flat = [item.flatten(0, 1) for item in (observations, actions, log_probs, advantages, targets)]
        for _ in range(NUM_EPOCHS):
            for rows in torch.randperm(n * NUM_STEPS).chunk(NUM_MINIBATCHES):
                batch_obs, batch_actions, old_log_probs, advantage, target = (item[rows] for item in flat)
                policy, value = agent.act(batch_obs)
                ratio = (policy.log_prob(batch_actions) - old_log_probs).exp()
                advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
                policy_loss = -torch.min(advantage * ratio, advantage * ratio.clamp(1 - CLIP, 1 + CLIP)).mean()
                value_loss = 0.5 * (value - target).square().mean()
                loss = policy_loss + VALUE_COEFFICIENT * value_loss - ENTROPY_COEFFICIENT * policy.entropy().mean()
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
                optimizer.step()
        if finished:
            print(f"steps={(update + 1) * n * NUM_STEPS} episode_return={np.mean(finished):.1f}")
    envs.close()
    return float(np.mean(finished))


if __name__ == "__main__":
    main()
