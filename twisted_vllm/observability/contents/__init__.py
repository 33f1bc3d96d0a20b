"""Prompts and answers of requests, for traces and sinks that are to have them."""
