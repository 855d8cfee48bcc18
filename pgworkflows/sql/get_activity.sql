-- Planned anew each time. What happened from one time to another, as JSON: runs that were started and that ended, by buckets
-- of time and by workflow, and calls of steps. Looks at the newest `most` runs at most, and the newest `most_steps` steps; of
-- those the `shown` slowest and the `shown` that failed most often are told.
-- Locks nothing.
with looked as materialized (
    -- As plain text in the order of bytes: a domain's checks and a language's order cost more than all else here.
    select r.workflow_id::text collate "C" as workflow_id, r.status::text as status, r.created_at, r.completed_at, r.started_at,
        -- Of a run that is retried, scheduled_at tells of that, and not of when it might have begun.
        extract(epoch from case
            when r.scheduled_at is null then r.started_at - r.created_at
            when r.scheduled_at <= r.started_at then r.started_at - r.scheduled_at
        end)::double precision as lag_s
    from pgworkflows.runs as r
    where r.id >= %(first)s::uuid
        and (%(workflow_id)s::text is null or r.workflow_id = any (array[%(workflow_id)s::text]))
    -- Of one workflow along its index, as in find_runs.sql.
    order by case when %(workflow_id)s::text is not null then r.workflow_id::text end desc, r.id desc
    limit %(most)s::bigint
),
newest as materialized (
    select s.step_id::text collate "C" as step_id, s.status::text as status, s.completed_at,
        extract(epoch from s.completed_at - s.started_at)::double precision as took_s,
        -- Each run by its id: joined, those of a workflow might all be read.
        (select r.workflow_id::text collate "C" from pgworkflows.runs as r where r.id = s.run_id) as workflow_id
    from (
        select s.run_id, s.step_id, s.status, s.started_at, s.completed_at
        from pgworkflows.steps as s
        where s.completed_at >= %(since)s::timestamptz and s.completed_at is not null
            and s.kind = 'run' and s.status in ('completed', 'failed')
        order by s.completed_at desc
        limit %(most_steps)s::bigint
    ) as s
)
select json_build_object(
    'runs', (select json_build_object('looked', count(*), 'oldest', min(looked.created_at)) from looked),
    -- Where the steps that are looked at begin, if there may be more.
    'steps_since', (
        select min(newest.completed_at) from newest having count(*) = %(most_steps)s::bigint
    ),
    'buckets', (
        select json_agg(json_build_array(b.at, b.what, b.runs))
        from (
            select date_bin(%(width)s::interval, looked.created_at, %(since)s::timestamptz) as at,
                'started' as what, count(*) as runs
            from looked
            where looked.created_at between %(since)s::timestamptz and %(until)s::timestamptz
            group by 1
            union all
            select date_bin(%(width)s::interval, looked.completed_at, %(since)s::timestamptz), looked.status, count(*)
            from looked
            where looked.completed_at between %(since)s::timestamptz and %(until)s::timestamptz
            group by 1, 2
        ) as b
    ),
    'lags', (
        select json_agg(json_build_array(l.at, l.p95_s))
        from (
            select date_bin(%(width)s::interval, looked.started_at, %(since)s::timestamptz) as at,
                percentile_cont(0.95) within group (order by looked.lag_s) as p95_s
            from looked
            where looked.started_at between %(since)s::timestamptz and %(until)s::timestamptz
            group by 1
        ) as l
    ),
    'step_times', (
        select json_agg(json_build_array(t.at, t.median_s, t.p95_s))
        from (
            select date_bin(%(width)s::interval, newest.completed_at, %(since)s::timestamptz) as at,
                percentile_cont(0.5) within group (order by newest.took_s) as median_s,
                percentile_cont(0.95) within group (order by newest.took_s) as p95_s
            from newest
            where newest.completed_at <= %(until)s::timestamptz
                and (%(workflow_id)s::text is null or newest.workflow_id = %(workflow_id)s::text)
            group by 1
        ) as t
    ),
    'workflows', (
        select json_agg(w order by w.workflow_id)
        from (
            select looked.workflow_id, count(*) as runs,
                count(*) filter (where looked.status = 'failed') as failures,
                extract(epoch from percentile_cont(0.5) within group (order by looked.completed_at - looked.created_at))
                    as median_s,
                extract(epoch from percentile_cont(0.95) within group (order by looked.completed_at - looked.created_at))
                    as p95_s
            from looked
            where looked.completed_at >= %(since)s::timestamptz
            group by looked.workflow_id
        ) as w
    ),
    'steps', (
        select json_agg(
            json_build_object(
                'workflow_id', s.workflow_id, 'step_id', s.step_id, 'calls', s.calls, 'failures', s.failures,
                'median_s', s.median_s, 'p95_s', s.p95_s
            )
            order by s.workflow_id, s.step_id
        )
        from (
            select each.*,
                row_number() over (order by each.p95_s desc nulls last, each.workflow_id, each.step_id) as slowness,
                row_number() over (order by each.failures desc, each.workflow_id, each.step_id) as frailty
            from (
                select newest.workflow_id, newest.step_id, count(*) as calls,
                    count(*) filter (where newest.status = 'failed') as failures,
                    percentile_cont(0.5) within group (order by newest.took_s) as median_s,
                    percentile_cont(0.95) within group (order by newest.took_s) as p95_s
                from newest
                where %(workflow_id)s::text is null or newest.workflow_id = %(workflow_id)s::text
                group by newest.workflow_id, newest.step_id
            ) as each
        ) as s
        where s.slowness <= %(shown)s::bigint or (s.failures > 0 and s.frailty <= %(shown)s::bigint)
    )
)::text
