"""All abuse at once beside honest traffic: see ``tests/end_to_end/test_soak.py``."""
