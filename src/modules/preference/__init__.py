"""Modules that learn from preference pairs: reward models and DPO."""
