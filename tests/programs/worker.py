"""A worker process to be stopped, killed or frozen.

usage: python worker.py URL OPTIONS   (OPTIONS: those of Worker, and the keys of its codec if it has one, as JSON)
"""

import json
import logging
import sys

import stories

from pgworkflows import WorkflowEngine

logging.basicConfig(level=logging.INFO)
url, options = sys.argv[1], json.loads(sys.argv[2])
stories.url = url
keys = options.pop("keys", None)
if keys is None:
    codec = None
else:
    from examples.encrypted_payloads.codecs import FernetCodec

    codec = FernetCodec(*keys)
with WorkflowEngine(url, workflows=stories.WORKFLOWS, codec=codec) as engine:
    engine.worker(**options).run_forever()
