-- Enter a worker among the live.
select pgworkflows.register_worker(
    worker_id => %s::uuid, hostname => %s, pid => %s::integer, queues => %s::text[], has_lock => %s::boolean,
    lease => %s::interval
)
