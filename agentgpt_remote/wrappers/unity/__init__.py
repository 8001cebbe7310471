"""Unity ML-Agents: players as environments."""
