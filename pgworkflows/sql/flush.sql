-- Make the outcomes of many runs durable. Locks their queue rows and those of the parents of the runs that end, skipping
-- what others hold.
select pgworkflows.flush(
    worker_id => %s::uuid,
    entries => %s::json,
    steps => %s::json,
    events => %s::json,
    parents => %s::uuid[]
)::text
