"""A mail server on loopback that keeps what it gets, and has its moods."""

from __future__ import annotations

import asyncio
import re
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any, cast

from aiosmtpd.smtp import SMTP, Envelope, Session

from examples.signup.demo.people import Person

BUSY_TIMES = 2
THINKS_FOR_S = 0.05


@dataclass(frozen=True)
class Received:
    """One mail that the server took."""

    to: str
    subject: str
    message_id: str
    body: str
    at: datetime = field(default_factory=lambda: datetime.now().astimezone())

    @property
    def link(self) -> str | None:
        """The link in it."""
        found = re.search(r"https?://\S+", self.body)
        return found.group() if found else None


class MailServer:
    """Serves SMTP in a thread of its own, on a free port, while entered.

    `on_mail` and `on_refusal` (with an address and an answer) are called in that thread. `lose` names a subject: the
    first such mail is acknowledged and dropped, as no mail server should.
    """

    def __init__(
        self, people: Iterable[Person], on_refusal: Callable[[str, str], None], *, lose: str | None = None
    ) -> None:
        self._mailboxes = {person.email: person.mailbox for person in people}
        self.on_mail: Callable[[Received], None] = lambda _mail: None
        self._on_refusal = on_refusal
        self._lose = lose
        self._refused: Counter[str] = Counter()
        self._unanswered: Counter[str] = Counter()
        self._may_answer = asyncio.Event()
        self._may_answer.set()
        self._end = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop
        self._thread = threading.Thread(target=self._serve, name="mail-server", daemon=True)
        self._up: Future[str] = Future()
        self.received: list[Received] = []
        self.url = ""

    def __enter__(self) -> MailServer:
        self._thread.start()
        self.url = self._up.result(10)
        return self

    def __exit__(self, *exc: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(5)

    def _serve(self) -> None:
        """Owns the event loop; ends when the server is left."""
        asyncio.run(self._listen())

    async def _listen(self) -> None:
        self._loop = asyncio.get_running_loop()
        server = await self._loop.create_server(lambda: SMTP(self, hostname="mail.example.com"), "127.0.0.1", 0)
        self._up.set_result(f"smtp://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        await self._end.wait()
        server.close()

    @property
    def refusals(self) -> int:
        """How often it was too busy."""
        return self._refused.total()

    @property
    def unanswered(self) -> list[str]:
        """Whose mail the server has taken without having said so yet."""
        return [email for email, count in [*self._unanswered.items()] if count]

    @contextmanager
    def silence(self) -> Generator[None]:
        """Take mails, but answer nobody."""
        self._loop.call_soon_threadsafe(self._may_answer.clear)
        try:
            yield
        finally:
            self._loop.call_soon_threadsafe(self._may_answer.set)

    async def handle_RCPT(  # noqa: N802  (aiosmtpd names its hooks so)
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, _options: list[str]
    ) -> str:
        """Answer RCPT TO."""
        mailbox = self._mailboxes.get(address, "ok")
        if mailbox == "unknown":
            answer = "550 5.1.1 There is no such mailbox"
        elif mailbox == "busy" and self._refused[address] < BUSY_TIMES:
            self._refused[address] += 1
            answer = "451 4.7.1 Too busy, please try again later"
        else:
            envelope.rcpt_tos.append(address)
            return "250 OK"
        self._on_refusal(address, answer)
        return answer

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802
        """Take a mail, and answer once that may be."""
        mail = _read(envelope)
        if self._lose is not None and mail.subject == self._lose:
            self._lose = None
            return "250 OK"
        self.received.append(mail)
        self._unanswered[mail.to] += 1
        try:
            self.on_mail(mail)
            await asyncio.sleep(THINKS_FOR_S)
            await self._may_answer.wait()
        finally:
            self._unanswered[mail.to] -= 1
        return "250 OK"


def _read(envelope: Envelope) -> Received:
    message = cast(
        "EmailMessage", message_from_bytes(cast("bytes", envelope.content), policy=cast("Any", policy.default))
    )
    body = message.get_body()
    return Received(
        to=envelope.rcpt_tos[0],
        subject=str(message["Subject"]),
        message_id=str(message["Message-ID"]),
        body=str(body.get_content()) if body is not None else "",
    )
