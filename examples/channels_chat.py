"""A chat with Django Channels: whoever is in a room hears what is said there.

    python -m trigi --interface asyncio --app-dir examples channels_chat:app        (pip install channels websockets)
    python -m websockets ws://127.0.0.1:8000/rooms/tea        (and the same in another terminal)

The layer in memory reaches one process; for several, Channels has one with Redis.
"""

import django
from channels.generic.websocket import AsyncWebsocketConsumer
from channels.routing import ProtocolTypeRouter, URLRouter
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.urls import path

settings.configure(
    SECRET_KEY="not for production",  # noqa: S106 - an example
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    INSTALLED_APPS=["channels"],
    CHANNEL_LAYERS={"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}},
)
django.setup()
urlpatterns = []


class Room(AsyncWebsocketConsumer):
    """One guest in a room."""

    async def connect(self):
        """Join the room."""
        self.room = self.scope["url_route"]["kwargs"]["room"]
        await self.channel_layer.group_add(self.room, self.channel_name)
        await self.accept()

    async def disconnect(self, code):
        """Leave it, also when the client has vanished."""
        await self.channel_layer.group_discard(self.room, self.channel_name)
        print(f"left with {code}")

    async def receive(self, text_data=None, bytes_data=None):
        """The guest says something."""
        await self.channel_layer.group_send(
            self.room, {"type": "said", "text": text_data or bytes_data.decode()}
        )

    async def said(self, event):
        """Somebody in the room did."""
        await self.send(event["text"])


app = ProtocolTypeRouter(
    {
        "http": get_asgi_application(),
        "websocket": URLRouter([path("rooms/<room>", Room.as_asgi())]),
    }
)
