"""Who may do what: virtual keys, principals and route classes. Plain decisions, without reactor or I/O."""
