"""Modules that learn from their own answers: PPO, RLOO, GRPO."""
