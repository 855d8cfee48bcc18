"""A Django application that starts runs in its own transactions. Prints what it has seen.

usage: python django_caller.py URL client|server   (who binds the parameters of statements)
"""

import json
import sys
from typing import Any
from urllib.parse import parse_qs, urlsplit

import django
from django.conf import settings

url, bound_by = sys.argv[1:]
parts = urlsplit(url)
query = {name: found[0] for name, found in parse_qs(parts.query).items()}
settings.configure(
    DEBUG=True,  # Django's connection wraps its cursors then
    USE_TZ=True,
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": parts.path[1:],
            "USER": parts.username,
            "PASSWORD": parts.password or "",
            "HOST": query.get("host", parts.hostname or ""),
            "PORT": query.get("port", parts.port or ""),
            "OPTIONS": {"server_side_binding": bound_by == "server"},
        }
    },
)
django.setup()

from django.db import connection as djangos  # noqa: E402  (settings come first)
from django.db import transaction  # noqa: E402

from pgworkflows import IdempotencyConflictError, InvalidStatusError, WorkflowClient, WorkflowRunNotFoundError  # noqa: E402

# Untyped, as they are without Django's stubs.
connection: Any = djangos
atomic: Any = transaction.atomic
client = WorkflowClient(url)
said: dict[str, str] = {}


class Changed(Exception):
    """Undoes a block."""


with connection.cursor() as cursor:
    cursor.execute("create table public.users (name text)")

try:
    with atomic():
        client.start_workflow("rolled-back", connection=connection)
        raise Changed
except Changed:
    pass

with atomic():
    with connection.cursor() as cursor:
        cursor.execute("insert into public.users values ('ann')")
    run = client.start_workflow("committed", {"it's": "100%"}, idempotency_key="k", connection=connection)
    said["committed"] = str(run.id)
    assert client.get_runs().items == []
    assert connection.in_atomic_block
assert client.get_run(run.id) == run

# Refusals, also in nested blocks, leave the transaction usable.
with atomic():
    with connection.cursor() as cursor:
        cursor.execute("insert into public.users values ('bob')")
    try:
        client.start_workflow("other", idempotency_key="k", connection=connection)
    except IdempotencyConflictError:
        said["conflict"] = "refused"
    try:
        client.resume_workflow(run.id, connection=connection)
    except InvalidStatusError:
        said["status"] = "refused"
    try:
        client.pause_workflow(run.id, resource_id="another", connection=connection)
    except WorkflowRunNotFoundError:
        said["resource"] = "refused"
    assert not connection.needs_rollback
    try:
        with atomic():
            client.start_workflow("savepoint-undone", connection=connection)
            raise Changed
    except Changed:
        pass
    with atomic():
        client.start_workflow("savepoint-kept", connection=connection)
    client.start_workflow("after-refusal", connection=connection)
assert {"conflict", "status", "resource"} < said.keys()

# Outside a block Django's connection commits by itself.
run = client.start_workflow("autocommit", connection=connection)
assert client.get_run(run.id) == run
with atomic(), connection.cursor() as cursor:
    client.start_workflow("by-cursor", connection=cursor)

client.close()
connection.close()
print(json.dumps(said))
