"""The dashboard by itself: `pgworkflows ui`."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from pgworkflows.client import WorkflowClient
from pgworkflows.ui.dashboard import Dashboard
from pgworkflows.ui.visit import MAX_PAYLOAD_FORM

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
THREADS, CHANNEL_TIMEOUT_S = 8, 20


def serve(
    client: WorkflowClient,
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    actions: bool = False,
    say: Callable[[str], object] | None = None,
    **options: Any,
) -> None:
    """Serve a dashboard until SIGTERM or SIGINT. `options` are those of Dashboard; `say` is told where it is, once it
    answers. Nobody logs in here: whoever reaches the port may look, and with `actions` steer. On this machine's own
    addresses it answers to its own names only, so that no page of elsewhere can ask for it. Port 0 is any free one.
    Raises OSError when the address cannot be had, ValueError where it would act and answer to any name."""
    if host in {"localhost", "127.0.0.1", "::1"}:
        options.setdefault("trusted_hosts", LOOPBACK)
    if actions and not options.get("trusted_hosts"):
        # A page of elsewhere, whose name is made to lead here, would be of the same origin as the dashboard's forms.
        raise ValueError(f"a dashboard that acts and listens on {host} must be told the names it answers to")
    try:
        from waitress.server import create_server
    except ModuleNotFoundError as error:
        raise ImportError(
            "to serve the dashboard needs waitress: pip install 'pgworkflows[ui]'", name="waitress"
        ) from error
    dashboard = Dashboard(client, actions=actions, **options)
    server: Any = create_server(
        dashboard,
        host=host,
        port=port,
        threads=THREADS,
        ident="pgworkflows",
        clear_untrusted_proxy_headers=True,
        max_request_body_size=MAX_PAYLOAD_FORM,
        channel_timeout=CHANNEL_TIMEOUT_S,
    )
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # it warns of each request that waits for a thread
    with suppress(ValueError):  # signals are the main thread's
        signal.signal(signal.SIGTERM, _end)
    if say is not None:
        at = f"[{host}]" if ":" in host else host
        # A name may stand for several addresses, which have a socket each.
        port = server.effective_listen[0][1] if hasattr(server, "effective_listen") else server.effective_port
        say(f"the dashboard is at http://{at}:{port}/, where it {'acts, too' if actions else 'only shows'}")
    try:
        server.run()
    finally:
        server.close()


def _end(signum: int, frame: object) -> None:  # noqa: ARG001  (as signal calls it)
    sys.exit(0)
