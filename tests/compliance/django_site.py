"""A Django project in one file, with Channels: configured when it is imported, its database in a folder of its own."""

import asyncio
import atexit
import json
import os
import shutil
import tempfile
import threading
from pathlib import Path

import django
from channels.generic.http import AsyncHttpConsumer
from channels.generic.websocket import (
    AsyncJsonWebsocketConsumer,
    AsyncWebsocketConsumer,
    JsonWebsocketConsumer,
    WebsocketConsumer,
)
from channels.routing import ProtocolTypeRouter, URLRouter
from django.conf import settings

FOLDER = Path(tempfile.mkdtemp(prefix="trigi-django-"))
OWNER = os.getpid()


@atexit.register
def remove():
    if os.getpid() == OWNER:
        shutil.rmtree(FOLDER, ignore_errors=True)


settings.configure(
    SECRET_KEY="for tests",
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    INSTALLED_APPS=[
        "django.contrib.contenttypes",
        "django.contrib.sessions",
        "django.contrib.staticfiles",
        "channels",
    ],
    MIDDLEWARE=[
        "django.middleware.security.SecurityMiddleware",
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.common.CommonMiddleware",
    ],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": FOLDER / "db.sqlite3"}},
    CHANNEL_LAYERS={"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}},
    STATIC_URL="/static/",
    STATICFILES_DIRS=[FOLDER / "static"],
    USE_TZ=True,
    LOGGING_CONFIG=None,
)
(FOLDER / "static").mkdir()
(FOLDER / "static" / "large.bin").write_bytes(bytes(range(256)) * 4096)
django.setup()

# Django's applications are ready from here on.
from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler  # noqa: E402
from django.core.asgi import get_asgi_application  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.db import connection, models, transaction  # noqa: E402
from django.http import HttpResponse, JsonResponse, StreamingHttpResponse  # noqa: E402
from django.urls import path  # noqa: E402

EVENTS = []
"""What views have to tell."""


class Note(models.Model):
    text = models.CharField(max_length=100)

    class Meta:
        app_label = "notes"

    def __str__(self):
        return self.text


call_command("migrate", verbosity=0)
with connection.schema_editor() as editor:
    editor.create_model(Note)
connection.close()


async def async_view(request):
    await asyncio.sleep(0.001)
    return JsonResponse({"method": request.method, "body": len(request.body), "query": request.GET.dict()})


def sync_view(request):
    return JsonResponse({"method": request.method, "thread": threading.get_ident()})


async def notes(request):
    if request.method == "POST":
        note = await Note.objects.acreate(text=request.POST["text"])
        return JsonResponse({"id": note.pk}, status=201)
    return JsonResponse({"notes": [note.text async for note in Note.objects.order_by("pk")]})


@transaction.atomic
def notes_in_a_transaction(request):
    Note.objects.create(text="not kept")
    raise LookupError("rolled back")


async def visits(request):
    count = await request.session.aget("visits", 0) + 1
    await request.session.aset("visits", count)
    return HttpResponse(str(count))


def upload(request):
    return JsonResponse({name: [file.name, len(file.read())] for name, file in request.FILES.items()})


async def stream(request):
    async def pieces():
        for number in range(5):
            yield f"{number}\n"
            await asyncio.sleep(0.001)

    return StreamingHttpResponse(pieces(), content_type="text/plain")


def sync_stream(request):
    return StreamingHttpResponse((f"{number}\n" for number in range(5)), content_type="text/plain")


async def endless(request):
    async def pieces():
        try:
            while True:
                yield b"x" * 1000
                await asyncio.sleep(0.001)
        finally:
            EVENTS.append("stream ended")

    return StreamingHttpResponse(pieces())


async def slow(request):
    try:
        EVENTS.append("slow began")
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        EVENTS.append("slow cancelled")
        raise
    return HttpResponse("too late")


async def failing(request):
    raise LookupError("in the view")


urlpatterns = [
    path("async", async_view),
    path("sync", sync_view),
    path("notes", notes),
    path("rollback", notes_in_a_transaction),
    path("visits", visits),
    path("upload", upload),
    path("stream", stream),
    path("sync-stream", sync_stream),
    path("endless", endless),
    path("slow", slow),
    path("failing", failing),
]


class Echo(WebsocketConsumer):
    def connect(self):
        self.accept(subprotocol="echo" if "echo" in self.scope["subprotocols"] else None)

    def receive(self, text_data=None, bytes_data=None):
        if text_data == "close":
            self.close(4002, "as you wish")
        elif text_data == "count":
            self.send(str(Note.objects.count()))
        else:
            self.send(text_data=text_data, bytes_data=bytes_data)

    def disconnect(self, code):
        EVENTS.append(("echo disconnected", code))


class JSON(JsonWebsocketConsumer):
    def receive_json(self, content):
        self.send_json({"got": content})


class AsyncJSON(AsyncJsonWebsocketConsumer):
    async def receive_json(self, content):
        await asyncio.sleep(0.001)
        await self.send_json({"got": content})


class Chat(AsyncWebsocketConsumer):
    async def connect(self):
        self.room = self.scope["url_route"]["kwargs"]["room"]
        if self.room == "closed":
            await self.close()
            return
        await self.channel_layer.group_add(self.room, self.channel_name)
        await self.accept()

    async def disconnect(self, code):
        EVENTS.append(("left", self.room, code))
        await self.channel_layer.group_discard(self.room, self.channel_name)

    async def receive(self, text_data=None, bytes_data=None):
        await self.channel_layer.group_send(self.room, {"type": "chat.message", "text": text_data})

    async def chat_message(self, event):
        await self.send(event["text"])


class LongPoll(AsyncHttpConsumer):
    async def handle(self, body):
        await self.send_headers(headers=[(b"content-type", b"application/json")])
        await self.send_body(b'{"size": ', more_body=True)
        await asyncio.sleep(0.001)
        await self.send_body(json.dumps(len(body)).encode() + b"}")


app = ASGIStaticFilesHandler(get_asgi_application())
channels_app = ProtocolTypeRouter(
    {
        "http": URLRouter([path("poll", LongPoll.as_asgi()), path("<path:rest>", app)]),
        "websocket": URLRouter(
            [
                path("echo", Echo.as_asgi()),
                path("json", JSON.as_asgi()),
                path("async-json", AsyncJSON.as_asgi()),
                path("chat/<room>", Chat.as_asgi()),
            ]
        ),
    }
)
