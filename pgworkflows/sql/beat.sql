-- A heartbeat; the answer tells whether the worker lives, what is asked of its runs, and how its peers are.
select pgworkflows.beat(worker_id => %s::uuid)::text
