"""The workflow of a sign-up. Only workers import it."""

from __future__ import annotations

import os

from tenacity import wait_exponential

from examples.signup.contract import LINK_FOLLOWED, SIGN_UP, Click, Outcome, SignUp
from examples.signup.mail import MailDeferred, MailRefused, confirmation, reminder, send_mail, welcome
from examples.signup.users import create_user, settle_user
from pgworkflows import Step, StepFailedError, Steps

REMIND_AFTER = os.environ.get("SIGNUP_REMIND_AFTER", "2 days")
EXPIRE_AFTER = os.environ.get("SIGNUP_EXPIRE_AFTER", "5 days")

# A busy mail server is asked again after 0.5, 1, 2, 4 … seconds, at most an hour apart, for about a day.
ATTEMPTS = 36
WAIT = wait_exponential(multiplier=0.5, max=3600)


@SIGN_UP.handler(retries=3)
def sign_up(step: Step, input: SignUp) -> Steps[Outcome]:
    """Make the user, mail the link, wait for the click, remind once, and settle what becomes of the user."""
    user = yield from step.run("create-user", create_user, input.name, input.email)
    if user is None:
        return Outcome.KNOWN

    mail = confirmation(user, input.confirm_url)
    try:
        yield from step.run("mail-link", send_mail, mail).retry(attempts=ATTEMPTS, wait=WAIT, on=MailDeferred)
    except StepFailedError as error:
        if error.error_type != MailRefused.__name__:
            raise
        yield from step.run("give-up", settle_user, user.id, Outcome.UNDELIVERABLE)
        return Outcome.UNDELIVERABLE

    click = yield from step.wait_for("await-click", LINK_FOLLOWED, timeout=REMIND_AFTER, schema=Click)
    if click is None:
        mail = reminder(user, input.confirm_url)
        yield from step.run("mail-reminder", send_mail, mail).retry(attempts=ATTEMPTS, wait=WAIT, on=MailDeferred)
        click = yield from step.wait_for("await-late-click", LINK_FOLLOWED, timeout=EXPIRE_AFTER, schema=Click)
    if click is None:
        yield from step.run("expire-user", settle_user, user.id, Outcome.EXPIRED)
        return Outcome.EXPIRED

    yield from step.run("activate-user", settle_user, user.id, Outcome.ACTIVE, click.at)
    mail = welcome(user)
    yield from step.run("mail-welcome", send_mail, mail).retry(attempts=ATTEMPTS, wait=WAIT, on=MailDeferred)
    return Outcome.ACTIVE
