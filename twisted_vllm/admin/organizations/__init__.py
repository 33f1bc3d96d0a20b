"""Organizations: what is above teams."""
