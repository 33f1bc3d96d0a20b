"""A small client of the admin API, for the terminal."""
