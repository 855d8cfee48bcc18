-- The schedules that this worker declares and that have something to be done now, as JSON. Locks nothing.
select pgworkflows.due_schedules(worker_id => %s::uuid)::text
