"""The overview: what passes through the gateway, what is wrong, and what was spent of which budgets."""
