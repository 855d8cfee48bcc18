-- Planned anew each time. Unfinished runs that nothing will move, or that are long in coming, by reason, workflow and lane:
-- how many, which for example, since when at the longest, and what else there is to say of it as JSON. Of waits, pauses and
-- what is due, the oldest 2,000 are looked at. Locks nothing.
with live as materialized (
    select w.id, w.workflows, w.queues from pgworkflows.workers as w where w.heartbeat_at > %(now)s::timestamptz - w.lease
),
ready as materialized (
    select g.workflow_id, g.queue, g.runs, oldest.since, oldest.examples
    from (
        select q.workflow_id, q.queue, count(*) as runs
        from pgworkflows.queue as q
        where q.status = 'pending' and q.wake_at is null and q.ready_at < %(now)s::timestamptz - %(lag_over)s::interval
        group by q.workflow_id, q.queue
    ) as g
    -- A run that a worker has given back keeps its place, and so the time since which it was ready once.
    cross join lateral (
        select min(q.since) as since, (array_agg(q.run_id order by q.since))[1:3] as examples
        from (
            select first.run_id, greatest(first.ready_at, r.updated_at) as since
            from (
                select q.run_id, q.ready_at
                from pgworkflows.queue as q
                where q.status = 'pending' and q.wake_at is null
                    and q.queue = g.queue and q.workflow_id = g.workflow_id
                order by q.rank
                limit 100
            ) as first
            join pgworkflows.runs as r on r.id = first.run_id
        ) as q
        where q.since < %(now)s::timestamptz - %(lag_over)s::interval
    ) as oldest
    where oldest.since is not null
),
served as materialized (
    select ready.*,
        exists (select from live where ready.workflow_id = any (live.workflows)) as has_workflow,
        exists (
            select from live where ready.workflow_id = any (live.workflows) and ready.queue = any (live.queues)
        ) as has_both
    from ready
),
found as (
    select
        case
            when served.has_both then 'lagging'
            when served.has_workflow then 'no_worker_serves_queue'
            else 'no_worker_has_workflow'
        end as reason,
        served.workflow_id, served.queue, served.runs, served.examples, served.since, null::json as more
    from served
    union all
    select 'overdue', q.workflow_id, q.queue, count(*), (array_agg(q.run_id order by q.due))[1:3], min(q.due), null
    from (
        (
            select q.run_id, q.workflow_id, q.queue, q.wake_at as due
            from pgworkflows.queue as q
            where q.wake_at < %(now)s::timestamptz - %(lag_over)s::interval
            order by q.wake_at
            limit 2000
        )
        union all
        (
            select q.run_id, q.workflow_id, q.queue, q.timeout_at
            from pgworkflows.queue as q
            where q.timeout_at < %(now)s::timestamptz - %(lag_over)s::interval
                and (q.wake_at is null or q.wake_at >= %(now)s::timestamptz - %(lag_over)s::interval)
            order by q.timeout_at
            limit 2000
        )
    ) as q
    group by q.workflow_id, q.queue
    union all
    select 'interrupted', q.workflow_id, q.queue, count(*), (array_agg(q.run_id order by q.interruptions desc))[1:3],
        min(r.updated_at), json_build_object('interruptions', max(q.interruptions))
    from pgworkflows.queue as q
    join pgworkflows.runs as r on r.id = q.run_id
    where q.interruptions >= 3
    group by q.workflow_id, q.queue
    union all
    select 'worker_dead', q.workflow_id, q.queue, count(*), (array_agg(q.run_id order by q.run_id))[1:3],
        min(coalesce(gone.since, r.updated_at)), (array_agg(gone.worker))[1]
    from (
        select held.worker_id, w.id is null as struck, w.heartbeat_at as since,
            json_build_object('worker_id', held.worker_id, 'hostname', w.hostname, 'pid', w.pid) as worker
        from (select distinct q.worker_id from pgworkflows.queue as q where q.worker_id is not null) as held
        left join pgworkflows.workers as w on w.id = held.worker_id
        where w.id is null or w.heartbeat_at < %(now)s::timestamptz - greatest(w.lease, %(lag_over)s::interval)
    ) as gone
    join pgworkflows.queue as q on q.worker_id = gone.worker_id
    join pgworkflows.runs as r on r.id = q.run_id
    -- From one that was struck the live take over within seconds; since when it is that, nobody can say.
    where not gone.struck
        or (not exists (select from live) and r.updated_at < %(now)s::timestamptz - %(lag_over)s::interval)
    group by q.workflow_id, q.queue
    union all
    select 'step_in_flight', q.workflow_id, q.queue, count(*), (array_agg(q.run_id order by q.since))[1:3], min(q.since),
        (array_agg(json_build_object('worker_id', q.worker_id, 'hostname', q.hostname, 'pid', q.pid) order by q.since))[1]
    from (
        select q.run_id, q.workflow_id, q.queue, q.worker_id, w.hostname, w.pid,
            greatest(r.updated_at, r.started_at, last.at) as since
        from pgworkflows.queue as q
        join pgworkflows.workers as w on w.id = q.worker_id
        join live on live.id = q.worker_id
        join pgworkflows.runs as r on r.id = q.run_id
        left join lateral (
            select max(s.completed_at) as at from pgworkflows.steps as s where s.run_id = q.run_id
        ) as last on true
        where q.worker_id is not null and r.updated_at < %(now)s::timestamptz - %(step_over)s::interval
    ) as q
    where q.since < %(now)s::timestamptz - %(step_over)s::interval
    group by q.workflow_id, q.queue
    union all
    -- By the event that they wait for. Who has begun to wait before then was started before then.
    select 'waits_for_event', q.workflow_id, q.queue, count(*), (array_agg(q.run_id order by q.since))[1:3], min(q.since),
        json_build_object('event_name', q.wait_event)
    from (
        select q.run_id, q.workflow_id, q.queue, q.wait_event, s.started_at as since
        from (
            select q.run_id, q.workflow_id, q.queue, q.wait_event
            from pgworkflows.queue as q
            where q.run_id < %(first)s::uuid
                and q.status = 'waiting' and q.wait_kind = 'event' and q.wake_at is null and q.timeout_at is null
            order by q.run_id
            limit 2000
        ) as q
        join lateral (
            select s.started_at from pgworkflows.steps as s
            where s.run_id = q.run_id and s.status = 'waiting'
            order by s.position desc
            limit 1
        ) as s on true
    ) as q
    where q.since < %(now)s::timestamptz - %(wait_over)s::interval
    group by q.workflow_id, q.queue, q.wait_event
    union all
    select 'paused', q.workflow_id, q.queue, count(*), (array_agg(q.run_id order by q.paused_at))[1:3], min(q.paused_at), null
    from (
        select q.run_id, q.workflow_id, q.queue, r.paused_at
        from pgworkflows.queue as q
        join pgworkflows.runs as r on r.id = q.run_id
        where q.run_id < %(first)s::uuid and q.status = 'paused' and r.paused_at < %(now)s::timestamptz - %(wait_over)s::interval
        order by q.run_id
        limit 2000
    ) as q
    group by q.workflow_id, q.queue
)
select json_build_object(
    'reason', found.reason, 'workflow_id', found.workflow_id, 'queue', found.queue, 'runs', found.runs,
    'examples', found.examples, 'since', found.since, 'now', %(now)s::timestamptz, 'more', found.more,
    'live_workers', (select count(*) from live)
)::text
from found
order by found.since, found.reason, found.workflow_id, found.queue
limit %(limit)s::bigint
