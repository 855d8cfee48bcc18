"""The mails of a sign-up, and the SMTP conversation that sends one."""

from __future__ import annotations

import os
from dataclasses import dataclass
from email.headerregistry import Address
from email.message import EmailMessage
from email.utils import formatdate
from smtplib import SMTP, SMTPRecipientsRefused, SMTPResponseException
from urllib.parse import urlsplit

from examples.signup.users import User
from pgworkflows import current_step

SENDER = Address("Example", "hello", "example.com")
PATIENCE_S = 15


class MailDeferred(Exception):
    """The mail server is away or busy: the same mail may be sent again later."""


class MailRefused(Exception):
    """The mail server will never take this mail."""


@dataclass(frozen=True)
class Mail:
    """One mail, as its reader sees it."""

    to: Address
    subject: str
    body: str


def confirmation(user: User, confirm_url: str) -> Mail:
    """Asks to follow the link."""
    return _mail(user, "Please confirm your address", f"please follow this link to sign up:\n\n    {confirm_url}")


def reminder(user: User, confirm_url: str) -> Mail:
    """Asks once more."""
    return _mail(user, "Your sign-up is still waiting", f"your link is still good, for a while:\n\n    {confirm_url}")


def welcome(user: User) -> Mail:
    """Says that all is done."""
    return _mail(user, "Welcome!", "your address is confirmed, and your account is ready.")


def send_mail(mail: Mail) -> None:
    """Hand a mail to the server that SMTP_URL names. Raises MailDeferred or MailRefused.

    A step function runs at least once: if its process dies after the server took the mail and before that was
    recorded, the mail is sent again. It then bears the same Message-ID, by which mail systems recognise copies.
    """
    server = urlsplit(os.environ["SMTP_URL"])
    try:
        with SMTP(server.hostname or "localhost", server.port or 25, timeout=PATIENCE_S) as smtp:
            smtp.send_message(_message(mail, current_step().idempotency_key))
    except (SMTPRecipientsRefused, SMTPResponseException) as error:
        code, reason = _answer(error)
        raise (MailRefused if 500 <= code < 600 else MailDeferred)(f"{code} {reason}") from error
    except OSError as error:  # no server, no answer, a broken connection
        raise MailDeferred(str(error)) from error


def _mail(user: User, subject: str, text: str) -> Mail:
    address = Address(user.name, addr_spec=user.email)
    return Mail(address, subject, f"Dear {user.name},\n\n{text}\n\nYours,\nExample\n")


def _message(mail: Mail, key: str) -> EmailMessage:
    message = EmailMessage()
    message["From"] = SENDER
    message["To"] = mail.to
    message["Subject"] = mail.subject
    message["Date"] = formatdate()
    message["Message-ID"] = f"<{key}@{SENDER.domain}>"
    message.set_content(mail.body)
    return message


def _answer(error: SMTPRecipientsRefused | SMTPResponseException) -> tuple[int, str]:
    """The server's code and its words."""
    if isinstance(error, SMTPRecipientsRefused):
        code, words = next(iter(error.recipients.values()))
        return code, _text(words)
    return error.smtp_code, _text(error.smtp_error)


def _text(words: bytes | str) -> str:
    return words.decode("utf-8", "replace") if isinstance(words, bytes) else words
