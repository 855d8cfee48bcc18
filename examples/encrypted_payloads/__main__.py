"""A run whose payloads are encrypted, and whose key is rotated while it waits.

usage: python -m examples.encrypted_payloads   (on $DATABASE_URL, else on an embedded server)
"""

from __future__ import annotations

import psycopg
from cryptography.fernet import Fernet

from examples.encrypted_payloads.codecs import FernetCodec
from pgworkflows import Step, Steps, WorkflowEngine, workflow


def diagnose(patient: str) -> str:
    return f"{patient} has the flu"


@workflow("see-patient")
def see_patient(step: Step, input: str) -> Steps[str]:
    diagnosis = yield from step.run("diagnose", diagnose, input)
    signed = yield from step.wait_for("await-signature", "signed")
    return f"{diagnosis}, says {signed['by']}"


def main() -> None:
    old, new = Fernet.generate_key().decode(), Fernet.generate_key().decode()
    with WorkflowEngine(workflows=[see_patient], codec=FernetCodec(old)) as engine:
        url = engine.conninfo
        engine.migrate()
        run = engine.start_workflow(see_patient, "Jo")
        engine.worker().run_until_idle()

    # The new key comes first, to write with; the old one stays for as long as anything written with it is kept.
    with WorkflowEngine(url, workflows=[see_patient], codec=FernetCodec(new, old)) as engine:
        engine.trigger_event(run.id, "signed", {"by": "Dr. No"})
        engine.worker().run_until_idle()
        print(f"with the keys:    {engine.get_run(run.id).output}")

    with psycopg.connect(url) as conn:
        for given, output in conn.execute("select input, output from pgworkflows.runs where id = %s", [run.id]):
            print(f"in the database:  {str(given)[:60]}… {str(output)[:60]}…")


if __name__ == "__main__":
    main()
