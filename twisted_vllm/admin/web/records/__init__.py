"""Keys, users, teams, organizations, customers and budgets: what differs between their pages, declared."""
