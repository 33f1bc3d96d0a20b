"""Alerts to people: from events to rate-limited messages in Slack's format."""
