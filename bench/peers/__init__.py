"""The same work through other systems, side by side with ours on one server: `make bench-peers`."""
