"""Mutation testing: the code that counts money and requests is changed in one place, and a test has to notice."""
