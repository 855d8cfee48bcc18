-- Planned anew each time. What happened from one time to another, as JSON: runs that were started and that ended, by buckets
-- of time and by workflow, and calls of steps. Looks at the newest `most` runs at most, and as many steps.
-- Locks nothing.
with looked as materialized (
    select r.id, r.workflow_id, r.status::text as status, r.created_at, r.completed_at
    from pgworkflows.runs as r
    where r.id >= %(first)s::uuid and (%(workflow_id)s::text is null or r.workflow_id = %(workflow_id)s::text)
    order by r.id desc
    limit %(most)s::bigint
),
ended as materialized (
    select looked.* from looked where looked.completed_at >= %(since)s::timestamptz
),
called as materialized (
    select r.workflow_id, s.step_id, s.status::text as status, s.completed_at, s.completed_at - s.started_at as took
    from (
        select s.run_id, s.step_id, s.status, s.started_at, s.completed_at
        from pgworkflows.steps as s
        where s.completed_at >= %(since)s::timestamptz and s.completed_at is not null
            and s.kind = 'run' and s.status in ('completed', 'failed')
        order by s.completed_at desc
        limit %(most)s::bigint
    ) as s
    join pgworkflows.runs as r on r.id = s.run_id
    where %(workflow_id)s::text is null or r.workflow_id = %(workflow_id)s::text
)
select json_build_object(
    'looked', (select count(*) from looked),
    'oldest', (select min(looked.created_at) from looked),
    'oldest_step', (select min(called.completed_at) from called),
    'calls', (select count(*) from called),
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
