"""A page that shows what the mail server has got, for whoever tries the demo with a browser."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

from flask import Flask, render_template_string
from werkzeug.serving import BaseWSGIServer, make_server

from examples.signup.demo.mailserver import Received

PAGE = """<!doctype html>
<html lang="en">
<title>Mails</title>
<link rel="icon" href="data:,">
<style>
  :root { color-scheme: light dark }
  body { font: 1rem/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem }
  article { border-top: 1px solid #8887 } pre { white-space: pre-wrap; font: inherit } h2 { font-size: 1.1rem }
</style>
<h1>Mails, the newest first</h1>
{% for mail in mails %}
<article>
  <h2>{{ mail.subject }}</h2>
  <p>to {{ mail.to }} at {{ mail.at.strftime("%H:%M:%S") }}</p>
  <pre>{{ mail.body | urlize }}</pre>
</article>
{% else %}
<p>None yet.</p>
{% endfor %}
"""


def serve_inbox(mails: Sequence[Received]) -> BaseWSGIServer:
    """Serve the page on a free port, in a thread that ends with the process or at `shutdown`."""
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    app = Flask(__name__)

    @app.get("/")
    def inbox() -> str:
        return render_template_string(PAGE, mails=mails[::-1])

    server = make_server("127.0.0.1", 0, app, threaded=True)
    threading.Thread(target=server.serve_forever, name="inbox", daemon=True).start()
    return server
