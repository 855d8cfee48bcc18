-- Unfinished runs, counted by lane and workflow: ready to be claimed, in a worker's hands, to start later, waiting, paused;
-- and for how many seconds the longest of the ready ones has been that. Locks nothing.
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
select
    q.queue,
    q.workflow_id,
    count(*) filter (where q.status = 'pending' and coalesce(q.wake_at, q.ready_at) <= clock_timestamp()),
    count(*) filter (where q.status = 'running'),
    count(*) filter (where q.status = 'pending' and coalesce(q.wake_at, q.ready_at) > clock_timestamp()),
    count(*) filter (where q.status = 'waiting'),
    count(*) filter (where q.status = 'paused'),
    coalesce(
        extract(
            epoch from clock_timestamp() - min(coalesce(first.since, q.wake_at, q.ready_at))
            filter (where q.status = 'pending' and coalesce(q.wake_at, q.ready_at) <= clock_timestamp())
        ),
        0
    )::float8
from pgworkflows.queue as q
left join first on first.run_id = q.run_id
group by q.queue, q.workflow_id
order by q.queue, q.workflow_id
