"""Grafana dashboards of the gateway: their declarations, and pictures of them from real data."""
