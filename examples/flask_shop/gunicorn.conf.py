"""gunicorn -c examples/flask_shop/gunicorn.conf.py 'examples.flask_shop:create_app()'

With SHOP_WORKER=1 each of its processes also works on runs, in threads of its own. Else that is up to processes of
`flask --app examples.flask_shop pgworkflows worker`.
"""

import os
from typing import Any

from examples.flask_shop.extensions import workflows

bind = os.environ.get("SHOP_BIND", "127.0.0.1:8000")
workers = int(os.environ.get("SHOP_PROCESSES", "2"))
threads = int(os.environ.get("SHOP_THREADS", "4"))
preload_app = os.environ.get("SHOP_PRELOAD") == "1"
# More than PGWORKFLOWS_GRACE: after that gunicorn kills.
graceful_timeout = 20


def post_worker_init(worker: Any) -> None:
    """In each process, after the fork, once it has the application."""
    if os.environ.get("SHOP_WORKER") == "1":
        workflows.start(worker.wsgi)


def worker_exit(_server: object, worker: Any) -> None:
    """In each process, when it has answered its last request. Steps in flight end, or go back in the queue."""
    if getattr(worker, "wsgi", None) is not None:
        workflows.stop(worker.wsgi)
