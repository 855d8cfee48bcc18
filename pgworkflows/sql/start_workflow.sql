-- Start a run, or find the one its idempotency key already names. Locks the new rows only.
select o.outcome, row_to_json(o.run)::text
from pgworkflows.try_start_workflow(
    workflow => %(workflow)s,
    input => %(input)s::json,
    idempotency_key => %(idempotency_key)s,
    schedule_tick => null,
    resource_id => %(resource_id)s,
    priority => %(priority)s::integer,
    retries => %(retries)s::integer,
    timeout => %(timeout)s::interval,
    queue => %(queue)s,
    singleton => %(singleton)s::boolean,
    delay => %(delay)s::interval,
    run_at => %(run_at)s::timestamptz,
    headers => %(headers)s::json,
    fallback => %(fallback)s::json,
    borrowed => %(borrowed)s::boolean
) as o
