-- Start a run, or find the one its idempotency key already names. Locks the new rows only.
select o.outcome, row_to_json(o.run)::text
from pgworkflows.try_start_workflow(
    workflow => %s,
    input => %s::json,
    resource_id => %s,
    idempotency_key => %s,
    priority => %s::integer,
    retries => %s::integer,
    timeout => %s::interval,
    queue => %s,
    delay => %s::interval,
    run_at => %s::timestamptz,
    fallback => %s::json,
    borrowed => %s::boolean
) as o
