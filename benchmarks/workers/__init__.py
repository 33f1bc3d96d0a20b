"""Compares a gateway of one process with gateways of several workers."""
