"""The reference pages that are made of the program's declarations: ``make reference`` writes them."""
