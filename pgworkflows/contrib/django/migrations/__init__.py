"""The library's migrations, for `manage.py migrate`: one for each SQL file, of the same name."""
