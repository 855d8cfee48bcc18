-- Planned anew each time. What happened from one time to another, as JSON: runs that were started and that ended, by buckets
-- of time and by workflow, and calls of steps. Looks at the newest `most` runs at most, and as many steps.
-- Locks nothing.
with looked as materialized (
    select r.id, r.workflow_id, r.status::text as status, r.created_at, r.completed_at
    from pgworkflows.runs as r
    where r.id >= %(first)s::uuid
        and (%(workflow_id)s::text is null or r.workflow_id = any (array[%(workflow_id)s::text]))
    -- Of one workflow along its index, as in find_runs.sql.
    order by case when %(workflow_id)s::text is not null then r.workflow_id::text end desc, r.id desc
    limit %(most)s::bigint
),
ended as materialized (
    select looked.* from looked where looked.completed_at >= %(since)s::timestamptz
),
called as materialized (
    select done.*
    from (
        select s.step_id, s.status::text as status, s.completed_at, s.completed_at - s.started_at as took,
            -- Each run by its id: joined, those of a workflow might all be read.
            (select r.workflow_id from pgworkflows.runs as r where r.id = s.run_id) as workflow_id
        from (
            select s.run_id, s.step_id, s.status, s.started_at, s.completed_at
            from pgworkflows.steps as s
            where s.completed_at >= %(since)s::timestamptz and s.completed_at is not null
                and s.kind = 'run' and s.status in ('completed', 'failed')
            order by s.completed_at desc
            limit %(most)s::bigint
        ) as s
    ) as done
    where %(workflow_id)s::text is null or done.workflow_id = %(workflow_id)s::text
)
select json_build_object(
    'looked', (select count(*) from looked),
    'oldest', (select min(looked.created_at) from looked),
    -- Where the steps that are looked at begin, if there are more.
    'oldest_step', (
        select s.completed_at
        from pgworkflows.steps as s
        where s.completed_at >= %(since)s::timestamptz and s.completed_at is not null
            and s.kind = 'run' and s.status in ('completed', 'failed')
        order by s.completed_at desc
        offset %(most)s::bigint - 1
        limit 1
    ),
    'buckets', (
        select json_agg(
            json_build_object(
                'at', b.at, 'started', b.started, 'completed', b.completed, 'failed', b.failed, 'cancelled', b.cancelled
            )
            order by b.at
        )
        from (
            select date_bin(%(width)s::interval, happened.at, %(since)s::timestamptz) as at,
                count(*) filter (where happened.what = 'started') as started,
                count(*) filter (where happened.what = 'completed') as completed,
                count(*) filter (where happened.what = 'failed') as failed,
                count(*) filter (where happened.what = 'cancelled') as cancelled
            from (
                select 'started' as what, looked.created_at as at from looked where looked.created_at >= %(since)s::timestamptz
                union all
                select ended.status, ended.completed_at from ended
            ) as happened
            where happened.at <= %(until)s::timestamptz
            group by 1
        ) as b
    ),
    'workflows', (
        select json_agg(w order by w.workflow_id)
        from (
            select ended.workflow_id, count(*) as runs,
                count(*) filter (where ended.status = 'failed') as failures,
                extract(epoch from percentile_cont(0.5) within group (order by ended.completed_at - ended.created_at))
                    as median_s,
                extract(epoch from percentile_cont(0.95) within group (order by ended.completed_at - ended.created_at))
                    as p95_s
            from ended
            group by ended.workflow_id
        ) as w
    ),
    'steps', (
        select json_agg(s order by s.workflow_id, s.step_id)
        from (
            select called.workflow_id, called.step_id, count(*) as calls,
                count(*) filter (where called.status = 'failed') as failures,
                extract(epoch from percentile_cont(0.5) within group (order by called.took)) as median_s,
                extract(epoch from percentile_cont(0.95) within group (order by called.took)) as p95_s
            from called
            group by called.workflow_id, called.step_id
        ) as s
    )
)::text
