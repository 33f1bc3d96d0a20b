"""How much each may use: windows of requests and tokens, parallel requests, budgets."""
