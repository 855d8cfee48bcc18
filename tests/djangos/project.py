"""Settings of a Django project for tests, from the environment:

DATABASE_URL and OTHER_DATABASE_URL, its databases; DJANGO_DRIVER=psycopg2, where Django finds no psycopg 3; SCHEMA.
"""

import os
import sys
from importlib import import_module
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import django

URL = os.environ.get("DATABASE_URL", "postgresql:///named_by_each_test")

if os.environ.get("DJANGO_DRIVER") == "psycopg2":
    # Django takes psycopg 3 where it finds it; pgworkflows, which needs it, is not looking now.
    hidden: dict[str, Any] = {name: sys.modules.pop(name) for name in [*sys.modules] if name.split(".")[0] == "psycopg"}
    sys.modules["psycopg"] = None  # type: ignore[assignment]  # what makes an import fail
    import_module("django.db.backends.postgresql.base")
    del sys.modules["psycopg"]
    sys.modules.update(hidden)


def database(url: str, **more: Any) -> dict[str, Any]:
    """What DATABASES says of the database at a URL."""
    parts = urlsplit(url)
    query = {name: found[0] for name, found in parse_qs(parts.query).items()}
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": unquote(parts.path[1:]),
        "USER": parts.username or "",
        "PASSWORD": parts.password or "",
        "HOST": query.get("host", parts.hostname or ""),
        "PORT": query.get("port", str(parts.port or "")),
        **more,
    }


DEBUG = False
SECRET_KEY = "of tests only"
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "shop.urls"
USE_TZ = True
TIME_ZONE = "Asia/Kathmandu"
STATIC_URL = "static/"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "pgworkflows.contrib.django",
    "pgworkflows.contrib.django.testing",
    "shop",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
DATABASES = {
    "default": database(URL, CONN_MAX_AGE=int(os.environ.get("CONN_MAX_AGE", "0"))),
    "other": database(os.environ.get("OTHER_DATABASE_URL", URL)),
}
if django.VERSION < (6,):
    INSTALLED_APPS.append("django_tasks")
TASKS = {
    "default": {
        "BACKEND": "pgworkflows.contrib.django.tasks.TaskBackend",
        "QUEUES": ["default", "mail"],
        "OPTIONS": {"attempts": 2},
    },
    "other": {"BACKEND": "pgworkflows.contrib.django.tasks.TaskBackend", "OPTIONS": {"database": "other"}},
}
PGWORKFLOWS = {"SCHEMA": os.environ.get("SCHEMA", "pgworkflows"), "WORKER": {"threads": 4, "grace": "5s"}}
