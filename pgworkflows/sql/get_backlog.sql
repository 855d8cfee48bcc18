-- Unfinished runs, counted by lane and workflow: ready to be claimed, in a worker's hands, to start later, waiting, paused;
-- and for how many seconds the longest of the ready ones has been that. Locks nothing.
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
            epoch from clock_timestamp() - min(coalesce(q.wake_at, q.ready_at))
            filter (where q.status = 'pending' and coalesce(q.wake_at, q.ready_at) <= clock_timestamp())
        ),
        0
    )::float8
from pgworkflows.queue as q
group by q.queue, q.workflow_id
order by q.queue, q.workflow_id
