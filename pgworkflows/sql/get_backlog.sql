-- Unfinished runs, counted by lane and workflow: ready to be claimed, in a worker's hands, to start later, waiting, paused;
-- and for how many seconds the longest of the ready ones has been that. Locks nothing.
-- A run that a worker gave back keeps its place, and so the time since which it was ready once; it waits since it was given
-- back, which its row in runs tells. That is looked up of the thousand that seem to wait longest.
with oldest as materialized (
    select q.run_id, q.queue, q.workflow_id, coalesce(q.wake_at, q.ready_at) as due
    from pgworkflows.queue as q
    where q.status = 'pending' and coalesce(q.wake_at, q.ready_at) <= clock_timestamp()
    order by due
    limit 1001
),
looked_up as (
    select first.queue, first.workflow_id, min(greatest(first.due, r.updated_at)) as since
    from (select o.* from oldest as o order by o.due limit 1000) as first
    join pgworkflows.runs as r on r.id = first.run_id
    group by first.queue, first.workflow_id
),
counted as (
    select
        q.queue,
        q.workflow_id,
        count(*) filter (where q.status = 'pending' and coalesce(q.wake_at, q.ready_at) <= clock_timestamp()) as ready,
        count(*) filter (where q.status = 'running') as running,
        count(*) filter (where q.status = 'pending' and coalesce(q.wake_at, q.ready_at) > clock_timestamp()) as later,
        count(*) filter (where q.status = 'waiting') as waiting,
        count(*) filter (where q.status = 'paused') as paused,
        min(coalesce(q.wake_at, q.ready_at)) filter (
            where q.status = 'pending' and coalesce(q.wake_at, q.ready_at) <= clock_timestamp()
                and coalesce(q.wake_at, q.ready_at) >= (select o.due from oldest as o order by o.due offset 1000)
        ) as others_since
    from pgworkflows.queue as q
    group by q.queue, q.workflow_id
)
select
    c.queue, c.workflow_id, c.ready, c.running, c.later, c.waiting, c.paused,
    coalesce(extract(epoch from clock_timestamp() - least(l.since, c.others_since)), 0)::float8
from counted as c
left join looked_up as l on l.queue = c.queue and l.workflow_id = c.workflow_id
order by c.queue, c.workflow_id
