"""pgworkflows in Flask: the extension, the commands of `flask pgworkflows`, and the idempotency keys of requests. Needs
the extra `flask`."""

try:
    from pgworkflows.contrib.flask.context import AppContext
    from pgworkflows.contrib.flask.extension import PgWorkflows
    from pgworkflows.contrib.flask.keys import idempotency_key
except ModuleNotFoundError as error:
    if error.name != "flask":
        raise
    raise ImportError(
        "pgworkflows.contrib.flask needs Flask: pip install 'pgworkflows[flask]'", name="flask"
    ) from error

__all__ = ["AppContext", "PgWorkflows", "idempotency_key"]
