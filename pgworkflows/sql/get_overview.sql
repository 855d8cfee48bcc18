-- Unfinished runs by status, how long the longest of the ready ones has been that, live workers, schedules whose tick has come
-- and is not dealt with, and the time, as JSON. Locks nothing.
-- A run that a worker gave back keeps its place, and so the time since which it was ready once; it waits since it was given
-- back, which its row in runs tells. That is looked up of the thousand that seem to wait longest.
with oldest as materialized (
    select q.run_id, coalesce(q.wake_at, q.ready_at) as due
    from pgworkflows.queue as q
    where q.status = 'pending' and coalesce(q.wake_at, q.ready_at) <= clock_timestamp()
    order by due
    limit 1001
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
    'lag_s', coalesce(
        extract(epoch from clock_timestamp() - least(
            (
                select min(greatest(first.due, r.updated_at))
                from (select o.run_id, o.due from oldest as o order by o.due limit 1000) as first
                join pgworkflows.runs as r on r.id = first.run_id
            ),
            (select o.due from oldest as o order by o.due offset 1000)
        )),
        0
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
