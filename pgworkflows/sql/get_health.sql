-- What a health check asks: the number of live workers; how many of them have each workflow given as {id: lane} and serve
-- its lane, as JSON; and for how many seconds the longest of the runs that could be claimed has been ready, of these
-- workflows or, if none is given, of all; and whether nothing can be written. Locks nothing.
with wanted as (
    select w.key as workflow_id, w.value as lane from json_each_text(%s::json) as w
),
live as (
    select w.workflows, w.queues from pgworkflows.workers as w where w.heartbeat_at > clock_timestamp() - w.lease
),
-- A run that a worker gave back keeps its place, and so the time since which it was ready once; it waits since it was given
-- back, which its row in runs tells. That is looked up of those that seem to wait longest.
first as materialized (
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
    (select count(*) from live),
    (
        select coalesce(json_object_agg(
            wanted.workflow_id,
            (
                select count(*) from live
                where wanted.workflow_id = any (live.workflows) and wanted.lane = any (live.queues)
            )
        ), '{}')::text
        from wanted
    ),
    (
        select coalesce(extract(epoch from clock_timestamp() - min(coalesce(first.since, q.wake_at, q.ready_at))), 0)::float8
        from pgworkflows.queue as q
        left join first on first.run_id = q.run_id
        where q.status = 'pending' and coalesce(q.wake_at, q.ready_at) <= clock_timestamp()
            and (
                q.workflow_id = any (select wanted.workflow_id from wanted)
                or not exists (select from wanted)
            )
    ),
    pg_is_in_recovery() or current_setting('transaction_read_only')::boolean
