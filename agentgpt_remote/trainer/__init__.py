"""Training: rollouts from many hosts, losses, checkpoints and evaluation."""
