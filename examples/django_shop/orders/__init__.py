"""Orders, and the workflow that sees each of them through."""
