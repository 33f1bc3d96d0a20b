"""The documentation's site: Sphinx's configuration and what it adds, diagrams, and the generated reference pages."""
