"""Modules that learn right answers, token by token."""
