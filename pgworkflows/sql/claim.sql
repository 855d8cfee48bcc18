-- Wake what is due, then claim ready runs with their history, as JSON. Locks the queue rows claimed, then their runs.
select pgworkflows.claim(
    worker_id => %s::uuid, queues => %s::text[], workflows => %s::text[], capacity => %s::integer,
    alone => %s::boolean, awake => %s::boolean, since => %s::timestamptz
)::text
