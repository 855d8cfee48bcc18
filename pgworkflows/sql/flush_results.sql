-- Make durable what steps have returned, and in the same transaction, if there is more, the outcomes of other runs. Locks
-- as a flush does. Answers as a flush does, or false when nothing was written.
select case
    when not pgworkflows.flush_results(
        worker_id => %s::uuid,
        run_ids => %s::uuid[],
        claim_ids => %s::bigint[],
        positions => %s::integer[],
        step_ids => %s,
        outputs => %s,
        elapsed => %s::bigint[],
        ends => %s
    ) then 'false'
    else (
        select pgworkflows.flush(
            worker_id => o.worker_id,
            entries => o.entries,
            steps => o.steps,
            events => o.events,
            parents => o.parents
        )::text
        from (values (%s::uuid, %s::json, %s::json, %s::json, %s::uuid[])) as o (worker_id, entries, steps, events, parents)
        where o.entries is not null
    )
end
