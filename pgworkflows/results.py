"""What is sent in for a stored output: JSON text, decoded as the command's annotations say."""

from __future__ import annotations

from typing import Any

from pgworkflows.commands import Command, InvokeChildCommand, PollCommand, PollResult, RunCommand, WaitForCommand
from pgworkflows.schemas import event_schema
from pgworkflows.serialization import PLAIN, Codec, codec_for_return

NOTHING_TO_SAY = "null"
POLL_TIMED_OUT = '{"timed_out":true,"data":null}'


def poll_output(data: str) -> str:
    """The stored output of a poll that has found `data`, which is JSON text."""
    return f'{{"timed_out":false,"data":{data}}}'


def decoded(command: Command[Any], output: str) -> Any:
    """A stored output as its command's annotation says. Raises SerializationError; InvalidInputError for events."""
    match command:
        case RunCommand(fn=fn):
            return codec_for_return(fn).decode(output, f"the result of step {command.id!r}")
        case PollCommand(fn=fn):
            return _decoded_poll(command.id, output, codec_for_return(fn))
        case WaitForCommand(schema=schema) if schema is not None and output != NOTHING_TO_SAY:
            return event_schema(schema).load(output)
        case InvokeChildCommand(workflow=child, workflow_id=workflow_id):
            if child is None:
                return PLAIN.decode(output, f"the output of workflow {workflow_id!r}")
            return child.load_output(output)
        case WaitForCommand():
            return PLAIN.decode(output, f"the event of step {command.id!r}")
        case _:
            return None


def _decoded_poll(step_id: str, output: str, codec: Codec) -> PollResult[Any]:
    what = f"the result of step {step_id!r}"
    plain = PLAIN.decode(output, what)
    data = plain["data"]
    # Fast-forwarded without data, a poll has none, whatever its function would have returned.
    if data is not None and codec is not PLAIN:
        data = codec.decode(PLAIN.encode(data, what), what)
    return PollResult(plain["timed_out"], data)
