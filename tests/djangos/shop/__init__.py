"""A shop: an app of a Django project with a model, views and workflows."""
