"""Reports of usage and its cost."""
