"""Budgets: limits that several name."""
