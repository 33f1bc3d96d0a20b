"""What is wrong now, in words. The bounds are those of `config/prometheus/alerts.yml`: a test compares both."""
