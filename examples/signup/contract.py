"""What the web process and the workers agree on: the workflow's name, its input, its outcome, its event.

The web process imports this and none of the code that does the work.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, StringConstraints

from pgworkflows import workflow_ref

Name = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=100, pattern=r"^[^\x00-\x1f\x7f]+$")
]
# What browsers take in <input type="email"> (HTML Standard, "valid e-mail address"), with a dot in the domain.
Email = Annotated[
    str,
    StringConstraints(
        strip_whitespace=True,
        max_length=200,
        pattern=r"^[a-zA-Z0-9.!#$%&'*+/=?^_`{|}~-]+@[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
        r"(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)+$",
    ),
]


class SignUp(BaseModel):
    """The input of a run: who signs up, and the link that proves that the address is theirs."""

    name: Name
    email: Email
    confirm_url: str


class Click(BaseModel):
    """The data of the event: when the link was followed."""

    at: datetime


class Outcome(StrEnum):
    """How a sign-up can end; the first three are also what becomes of the user."""

    ACTIVE = "active"
    EXPIRED = "expired"
    UNDELIVERABLE = "undeliverable"
    KNOWN = "known"


SIGN_UP = workflow_ref("sign-up", input_schema=SignUp, output_schema=Outcome)
LINK_FOLLOWED = "link-followed"
