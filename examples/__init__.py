"""Applications that use pgworkflows, to run and to copy from."""
