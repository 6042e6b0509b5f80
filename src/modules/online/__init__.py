"""Modules that learn from answers of their own."""
