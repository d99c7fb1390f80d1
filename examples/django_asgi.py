"""Django, with async and sync views and its ORM, in an asyncio loop of its own.

    python -m trigi --interface asyncio --app-dir examples django_asgi:app        (pip install django)
    curl --data text=tea http://127.0.0.1:8000/notes
    curl http://127.0.0.1:8000/notes

The notes are kept in `notes.sqlite3` in the current directory. A project has this in its own `asgi.py`:
`python -m trigi --interface asyncio project.asgi:application`.
"""

import asyncio

from django.conf import settings
from django.core.asgi import get_asgi_application
from django.db import connection, models
from django.http import HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path

settings.configure(
    SECRET_KEY="not for production",  # noqa: S106 - an example
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "notes.sqlite3"}},
)
app = get_asgi_application()


class Note(models.Model):
    """One line of text."""

    text = models.CharField(max_length=100)

    class Meta:  # noqa: D106 - Django's
        app_label = "notes"

    def __str__(self):
        return self.text


if Note._meta.db_table not in connection.introspection.table_names():  # noqa: SLF001 - Django's public API
    with connection.schema_editor() as editor:
        editor.create_model(Note)
connection.close()


async def notes(request):
    """An async view, in the asyncio loop."""
    if request.method == "POST":
        note = await Note.objects.acreate(text=request.POST["text"])
        return JsonResponse({"id": note.pk}, status=201)
    return JsonResponse({"notes": [note.text async for note in Note.objects.order_by("pk")]})


async def countdown(_request):
    """A stream."""

    async def lines():
        for number in (3, 2, 1):
            yield f"{number}\n"
            await asyncio.sleep(0.1)
        yield "lift-off\n"

    return StreamingHttpResponse(lines(), content_type="text/plain")


def plain(_request):
    """A sync view, in a thread."""
    return HttpResponse("Hello from Django\n")


urlpatterns = [path("", plain), path("notes", notes), path("countdown", countdown)]
