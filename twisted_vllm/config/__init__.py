"""The configuration, checked and resolved into plain frozen values."""
