"""What operators see of a running gateway: log observers and request records."""
