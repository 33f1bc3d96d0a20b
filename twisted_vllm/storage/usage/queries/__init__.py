"""Reports and lists of usage."""
