"""The dashboard: one WSGI application that shows runs, and steers them where it may. Needs the extra `ui`."""

try:
    from pgworkflows.ui.dashboard import Dashboard
except ModuleNotFoundError as error:
    if error.name not in {"jinja2", "markupsafe", "werkzeug"}:
        raise
    raise ImportError(
        "pgworkflows.ui needs Werkzeug and Jinja2: pip install 'pgworkflows[ui]'", name=error.name
    ) from error

__all__ = ["Dashboard"]
