-- Put an event into a run's mailbox and wake the run if it waits for it. Locks the run's queue row.
select o.outcome, row_to_json(o.run)::text
from pgworkflows.try_trigger_event(
    run_id => %s::uuid,
    event_name => %s,
    data => %s::json,
    resource_id => %s,
    idempotency_key => %s,
    borrowed => %s::boolean
) as o
