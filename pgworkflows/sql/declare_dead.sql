-- Strike a worker from the live, unless it has beaten since.
select pgworkflows.declare_dead(worker_id => %s::uuid, beats => %s::bigint)
