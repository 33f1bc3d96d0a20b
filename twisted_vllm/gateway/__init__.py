"""The pass-through resource: admission, routing and relay."""
