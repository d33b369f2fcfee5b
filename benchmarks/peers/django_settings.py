"""The least Django project with django-user-tasks, as the platform sets it up."""

import os
from urllib.parse import unquote, urlsplit

_url = urlsplit(os.environ["BENCH_DATABASE_URL"])
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": _url.path.lstrip("/"),
        "USER": unquote(_url.username or ""),
        "PASSWORD": unquote(_url.password or ""),
        "HOST": _url.hostname,
        "PORT": _url.port,
        "CONN_MAX_AGE": None,
    }
}
INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "rest_framework",
    "rules.apps.AutodiscoverRulesConfig",
    "user_tasks",
]
AUTHENTICATION_BACKENDS = [
    "rules.permissions.ObjectPermissionBackend",
    "django.contrib.auth.backends.ModelBackend",
]
REST_FRAMEWORK = {
    "DEFAULT_PAGINATION_CLASS": "benchmarks.peers.django_paging.Pages",
    "UNAUTHENTICATED_USER": None,
}
ALLOWED_HOSTS = ["*"]
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
ROOT_URLCONF = "user_tasks.urls"
SECRET_KEY = "only a benchmark"
USE_TZ = True
CELERY_BROKER_URL = os.environ["BENCH_REDIS_URL"]
