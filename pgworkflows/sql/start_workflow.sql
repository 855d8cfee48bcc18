-- Start a run, or find the one its idempotency key already names. Locks the new rows only.
select pgworkflows.start_at_once(
    workflow => %(workflow)s,
    input => %(input)s::json,
    resource_id => %(resource_id)s,
    idempotency_key => %(idempotency_key)s,
    priority => %(priority)s::integer,
    retries => %(retries)s::integer,
    timeout => %(timeout)s::interval,
    queue => %(queue)s,
    singleton => %(singleton)s::boolean,
    delay => %(delay)s::interval,
    run_at => %(run_at)s::timestamptz,
    headers => %(headers)s::json,
    else_queue => %(else_queue)s,
    else_priority => %(else_priority)s::integer,
    else_retries => %(else_retries)s::integer,
    else_timeout => %(else_timeout)s::interval,
    else_singleton => %(else_singleton)s::boolean,
    borrowed => %(borrowed)s::boolean
)
