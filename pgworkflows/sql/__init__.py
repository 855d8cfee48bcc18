"""The statements, one a file; `store` and `migrate` read them by name."""
