"""Codecs for payloads at rest: encryption with keys that can be rotated, and compression."""
