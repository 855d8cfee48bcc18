"""A worker process to be stopped, killed or frozen.

usage: python worker.py URL OPTIONS [FOLDER]   (OPTIONS: those of Worker, its listen_conninfo and the keys of its
codec, as JSON; FOLDER: where another release of the application is, a release.py with WORKFLOWS)
"""

import importlib
import json
import logging
import sys

import stories

from pgworkflows import WorkflowEngine

logging.basicConfig(level=logging.INFO)
url, options = sys.argv[1], json.loads(sys.argv[2])
stories.url = url
sys.path[:0] = sys.argv[3:]
workflows = importlib.import_module("release").WORKFLOWS if sys.argv[3:] else stories.WORKFLOWS
listen_conninfo = options.pop("listen_conninfo", None)
keys = options.pop("keys", None)
if keys is None:
    codec = None
else:
    from examples.encrypted_payloads.codecs import FernetCodec

    codec = FernetCodec(*keys)
with WorkflowEngine(url, workflows=workflows, codec=codec, listen_conninfo=listen_conninfo) as engine:
    engine.worker(**options).run_forever()
