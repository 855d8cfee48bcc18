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
-- back, which its row in runs tells. That is looked up of the thousand that seem to wait longest.
oldest as materialized (
    select q.run_id, coalesce(q.wake_at, q.ready_at) as due
    from pgworkflows.queue as q
    where q.status = 'pending' and coalesce(q.wake_at, q.ready_at) <= clock_timestamp()
        and (
            q.workflow_id = any (select wanted.workflow_id from wanted)
            or not exists (select from wanted)
        )
    order by due
    limit 1001
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
    coalesce(
        extract(epoch from clock_timestamp() - least(
            (
                select min(greatest(first.due, r.updated_at))
                from (select o.run_id, o.due from oldest as o order by o.due limit 1000) as first
                join pgworkflows.runs as r on r.id = first.run_id
            ),
            (select o.due from oldest as o order by o.due offset 1000)
        )),
        0
    )::float8,
    pg_is_in_recovery() or current_setting('transaction_read_only')::boolean
