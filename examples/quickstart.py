"""The first workflow: a user is made, a mail is sent, a click is waited for. Kill it and start it again.

usage: python quickstart.py [EMAIL]
"""

import sys
import time
from typing import Any

from pgworkflows import Step, Steps, WorkflowEngine, workflow


def create_user(email: str) -> dict[str, str]:
    print(f"making a user for {email}", flush=True)
    time.sleep(1)  # time to kill the process
    return {"id": "u-1", "email": email}


def send_mail(to: str, text: str) -> None:
    print(f"mailing {to}: {text}", flush=True)
    time.sleep(1)


@workflow("welcome", retries=3)
def welcome(step: Step, email: str) -> Steps[Any]:
    user = yield step.run("create-user", create_user, email)
    yield step.run("mail-link", send_mail, user["email"], "please confirm")
    click = yield step.wait_for("await-click", "clicked", timeout="24 hours")
    if click is None:
        return {"user": user["id"], "confirmed": None}
    yield step.run("mail-thanks", send_mail, user["email"], "thank you")
    return {"user": user["id"], "confirmed": click["at"]}


email = sys.argv[1] if len(sys.argv) > 1 else "ada@example.com"
engine = WorkflowEngine(workflows=[welcome])
engine.start()  # makes the tables, and works in a thread of this process
run = engine.start_workflow(welcome, email, idempotency_key=email)
engine.trigger_event(run.id, "clicked", {"at": "noon"}, idempotency_key="click")
run = engine.wait_for_run(run.id, timeout="1 minute")
print(run.status, run.output)
for record in engine.get_steps(run.id):
    print(f"  {record.position} {record.step_id:<12} {record.status} {record.output}")
engine.stop()
