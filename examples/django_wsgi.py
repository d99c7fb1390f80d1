"""Django in one file, as a WSGI application: each request in a thread.

    python -m trigi --app-dir examples wsgi:django_wsgi:app        (pip install django)
    curl http://127.0.0.1:8000/hello/Ada

A project's own is `wsgi:mysite.wsgi:application`. Files of a `FileResponse` are sent by the server.
"""

import secrets
from pathlib import Path

from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import FileResponse, HttpResponse
from django.urls import path

settings.configure(
    ALLOWED_HOSTS=["127.0.0.1", "localhost"],
    ROOT_URLCONF=__name__,
    SECRET_KEY=secrets.token_hex(),
)


def hello(request, name):
    return HttpResponse(f"Hello, {name}\n", content_type="text/plain")


def source(request):
    return FileResponse(Path(__file__).open("rb"), content_type="text/plain")


urlpatterns = [path("hello/<str:name>", hello), path("source", source)]

app = get_wsgi_application()
