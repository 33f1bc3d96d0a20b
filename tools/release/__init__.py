"""A release: its wheel and source distribution, the licences of what it needs, its bill of materials."""
