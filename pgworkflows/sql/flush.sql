-- Make the outcomes of many runs durable. Locks their queue rows, skipping those that others hold.
select pgworkflows.flush(worker_id => %s::uuid, entries => %s::json, steps => %s::json, events => %s::json)::text
