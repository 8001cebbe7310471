"""Example environments and scripts."""
