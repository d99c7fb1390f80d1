"""The Django project of `test_wsgi.py`, which a process of its own serves: there is one in a process."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from django.conf import settings
from django.core.signals import request_finished
from django.core.wsgi import get_wsgi_application
from django.http import FileResponse, HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path

settings.configure(
    ALLOWED_HOSTS=["127.0.0.1"],
    DEFAULT_CHARSET="utf-8",
    FILE_UPLOAD_MAX_MEMORY_SIZE=1024,  # larger ones go through a temporary file
    ROOT_URLCONF=__name__,
    SECRET_KEY="of a test",
    LOGGING_CONFIG=None,
    MIDDLEWARE=["django.middleware.common.CommonMiddleware"],
)
logging.getLogger("django").setLevel(logging.CRITICAL)


def echo(request, name):
    uploaded = {key: file.read().decode()[:10] for key, file in request.FILES.items()}
    return JsonResponse(
        {
            "name": name,
            "path": request.path,
            "get": request.GET.dict(),
            "post": request.POST.dict(),
            "files": uploaded,
            "cookies": request.COOKIES,
            "url": request.build_absolute_uri(),
        },
        status=201 if request.method == "POST" else 200,
    )


def body(request):
    return HttpResponse(str(len(request.body)))


async def in_a_loop(request):
    return HttpResponse(b"async " + request.body)


def stream(request):
    def numbers():
        try:
            for number in range(int(request.GET.get("count", 3))):
                yield f"{number}\n"
        finally:
            sys.stderr.write("stream closed\n")

    return StreamingHttpResponse(numbers(), content_type="text/plain")


def file(request):
    return FileResponse(Path(__file__).open("rb"))


def failing(request):
    raise LookupError("mine")


urlpatterns = [
    path("echo/<str:name>", echo),
    path("body", body),
    path("async", in_a_loop),
    path("stream", stream),
    path("file", file),
    path("failing", failing),
]

request_finished.connect(lambda **_: sys.stderr.write("request finished\n"), weak=False)
app = get_wsgi_application()
