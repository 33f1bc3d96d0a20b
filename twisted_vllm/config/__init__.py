"""What the operator wrote, checked and resolved into plain frozen values."""
