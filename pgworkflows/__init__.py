"""Durable workflows in Python on the PostgreSQL you already have."""
