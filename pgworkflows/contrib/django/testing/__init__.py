"""For INSTALLED_APPS of a Django project under test: what empties the tables between tests takes the runs along."""
