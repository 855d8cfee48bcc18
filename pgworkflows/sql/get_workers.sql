-- The workers as JSON, the oldest first, each with the number of runs it has in hand and the lanes it is asleep in. Locks
-- nothing.
select row_to_json(w)::text
from (
    select
        w.id, w.hostname, w.pid, w.queues, w.workflows, w.schedules, w.started_at, w.heartbeat_at,
        extract(epoch from w.lease) as lease_s,
        w.heartbeat_at > clock_timestamp() - w.lease as live,
        (select count(*) from pgworkflows.queue as q where q.worker_id = w.id) as runs_in_hand,
        exists (select from pgworkflows.sleepers as s where s.worker_id = w.id) as asleep
    from pgworkflows.workers as w
    order by w.started_at, w.id
) as w
