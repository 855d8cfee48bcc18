-- Unfinished runs by status, how long the longest of the ready ones has been that, live workers, schedules whose tick has come
-- and is not dealt with, and the time, as JSON. Locks nothing.
-- A run that a worker gave back keeps its place, and so the time since which it was ready once; it waits since it was given
-- back, which its row in runs tells. That is looked up of those that seem to wait longest.
with first as materialized (
    select oldest.run_id, greatest(oldest.due, r.updated_at) as since
    from (
        select q.run_id, coalesce(q.wake_at, q.ready_at) as due
        from pgworkflows.queue as q
        where q.status = 'pending' and coalesce(q.wake_at, q.ready_at) <= clock_timestamp()
        order by due
        limit 1000
    ) as oldest
    join pgworkflows.runs as r on r.id = oldest.run_id
)
select json_build_object(
    'now', clock_timestamp(),
    'unfinished', (
        select json_object_agg(s.status, s.runs)
        from (
            select each.status::text as status, count(*) as runs
            from (
                select q.status::text from pgworkflows.queue as q where q.control is null
                union all
                -- What a run that is asked to pause or to end shows already.
                select r.status::text
                from pgworkflows.queue as q
                join pgworkflows.runs as r on r.id = q.run_id
                where q.control is not null
            ) as each
            group by each.status
        ) as s
    ),
    'lag_s', (
        select coalesce(extract(epoch from clock_timestamp() - min(coalesce(first.since, q.wake_at, q.ready_at))), 0)
        from pgworkflows.queue as q
        left join first on first.run_id = q.run_id
        where q.status = 'pending' and coalesce(q.wake_at, q.ready_at) <= clock_timestamp()
    ),
    'live_workers', (
        select count(*) from pgworkflows.workers as w where w.heartbeat_at > clock_timestamp() - w.lease
    ),
    'schedules_due', (
        select json_agg(s.workflow_id order by s.workflow_id)
        from pgworkflows.schedules as s
        where s.paused_at is null and s.next_at < clock_timestamp()
    )
)::text
