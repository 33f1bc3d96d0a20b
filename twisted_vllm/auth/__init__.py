"""Authentication and authorization: virtual keys, principals and permissions. No reactor and no I/O."""
