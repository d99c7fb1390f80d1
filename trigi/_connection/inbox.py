"""What a reader has for an application, and the application has not asked for yet: the *inbox* of an exchange."""

from __future__ import annotations

from typing import Any

import trio

from trigi.typing import Message

__all__ = ["Inbox"]


class Inbox:
    """A bounded queue with an end: a trio memory channel, which is made when it is needed.

    For a small request's body it never is: the first message is held until a second comes, or somebody waits.

    One task, instead of waiting for a message, may offer to read the next one itself: what there is to be read is then
    told to it, and need not be put in.

    Args:
        size: messages that it holds.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._held: Message | None = None  # the first message, before there is a channel
        self._channel: tuple[trio.MemorySendChannel[Message], trio.MemoryReceiveChannel[Message]] | None = (
            None
        )
        self._count = 0
        self._ended = False
        self._dropped = False
        self._offering: trio.lowlevel.Task | None = None  # the task that waits to be asked
        self._asked = False

    def __len__(self) -> int:
        """How many messages are in it, on their way in, or on their way to a task that waits for them."""
        return 0 if self._dropped else self._count

    # The reader's side

    def put_nowait(self, message: Message) -> bool:
        """Put a message in, unless there is no room: whether it is done. Dropped once nobody can want it."""
        if self._channel is None and not self._count:
            self._held = message
        else:
            try:
                self._open()[0].send_nowait(message)
            except trio.WouldBlock:
                return False
            except (trio.BrokenResourceError, trio.ClosedResourceError):  # the application has returned
                return True
        self._count += 1
        self._wake()
        return True

    async def put(self, message: Message) -> None:
        """Put a message in, waiting while there is no room. Dropped once nobody can want it."""
        if self.put_nowait(message):
            return
        self._count += 1
        try:
            await self._open()[0].send(message)
        except (trio.ClosedResourceError, trio.BrokenResourceError):  # the application has returned
            pass
        except BaseException:
            self._count -= 1
            raise

    def end(self) -> None:
        """No more messages will come."""
        self._ended = True
        if self._channel is not None:
            self._channel[0].close()
        self._wake()

    def ask_to_read(self) -> bool:
        """Whether a task that has offered it is going to read what has come, and before anybody puts it in."""
        if self._offering is not None:
            self._asked = True
            self._wake()
        return self._asked

    # The application's side

    def get_nowait(self) -> Message:
        """The next message.

        Raises:
            trio.WouldBlock: there is none yet.
            trio.EndOfChannel: there is none any more.
        """
        message = self._held
        if message is None:
            message = self._open()[1].receive_nowait()
        self._held = None
        self._count -= 1
        return message

    async def get(self) -> Message:
        """Wait for the next message. Cancellation loses none.

        Raises:
            trio.EndOfChannel: there is none any more.
        """
        message = await self._open()[1].receive()
        self._count -= 1
        return message

    async def offer_to_read(self) -> bool:
        """Wait for a message, the end, or to be asked to read: whether that was it.

        At once `False` if there is nothing to wait for, and if another task waits so already.
        """
        if self._ended or self._count or self._offering is not None:
            return False
        self._offering = trio.lowlevel.current_task()
        try:
            await trio.lowlevel.wait_task_rescheduled(self._offer_no_more)
        except BaseException:  # Ctrl-C may come before it waits
            self._offering = None
            self._asked = False
            raise
        asked, self._asked = self._asked, False
        return asked

    def drop(self) -> None:
        """Nobody will ask any more: let go of what is in it."""
        self._held = None
        self._ended = self._dropped = True
        if self._channel is not None:
            self._channel[0].close()
            self._channel[1].close()

    def _open(self) -> tuple[trio.MemorySendChannel[Message], trio.MemoryReceiveChannel[Message]]:
        if self._channel is None:
            self._channel = trio.open_memory_channel[Message](self._size)
            if self._held is not None:
                self._channel[0].send_nowait(self._held)
                self._held = None
            if self._ended:
                self._channel[0].close()
        return self._channel

    def _wake(self) -> None:
        if self._offering is not None:
            task, self._offering = self._offering, None
            trio.lowlevel.reschedule(task)

    def _offer_no_more(self, _raise_cancel: Any) -> trio.lowlevel.Abort:
        self._offering = None
        return trio.lowlevel.Abort.SUCCEEDED
