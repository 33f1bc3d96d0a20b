"""Who may do what: virtual keys, principals and permissions. Plain decisions, without reactor or I/O."""
