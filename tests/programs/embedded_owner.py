"""A process that owns an embedded server: tells where it is, then holds it until its stdin ends.

usage: python embedded_owner.py DIRECTORY   ("temporary": none; "default": the one of an engine without a URL)
"""

import json
import logging
import sys

from pgworkflows.embedded import EmbeddedPostgres, default_embedded

logging.basicConfig()
where = sys.argv[1]
if where == "default":
    server = default_embedded()
    assert default_embedded() is server
else:
    server = EmbeddedPostgres(None if where == "temporary" else where).start()
facts = {
    "url": server.url,
    "data_dir": str(server.data_dir),
    "pid": server.pid,
    "uid": server.data_dir.stat().st_uid,
}
assert server._keeper is not None
print(json.dumps({"server": facts, "keeper": server._keeper.pid}), flush=True)
sys.stdin.read()
if where != "default":
    server.stop()
