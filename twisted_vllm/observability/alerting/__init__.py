"""Alerts to people: what is worth telling, how often, and in which form."""
