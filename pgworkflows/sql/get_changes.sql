-- Planned anew each time. What has come since a mark, as JSON: runs started, steps recorded, runs ended; the newest `limit`
-- of each at most; and the mark to go on from. What is new is told by snapshot, not by time: a transaction may commit later
-- than one that began after it. Times, from a little before the mark, only lead to the candidates. Locks nothing.
with mark as materialized (
    select %(snapshot)s::text::pg_snapshot as snapshot, pg_snapshot_xmax(pg_current_snapshot())::text::bigint as newest
),
done as materialized (
    (
        select s.run_id, s.position, s.step_id, s.kind::text as kind, s.status::text as status, s.attempts,
            s.started_at, s.completed_at, s.error ->> 'type' as error_type, s.completed_at as at
        from pgworkflows.steps as s
        cross join mark as m
        where %(run_id)s::uuid is null and s.completed_at > %(since)s::timestamptz and s.completed_at is not null
            -- A row has 32 bits of its transaction's number: it is one of the last that there were.
            and not pg_visible_in_snapshot(
                (m.newest - ((m.newest - s.xmin::text::bigint) & 4294967295))::text::xid8, m.snapshot
            )
        order by s.completed_at desc
        limit %(limit)s::bigint
    )
    union all
    (
        -- Of one run also what is not done yet.
        select s.run_id, s.position, s.step_id, s.kind::text, s.status::text, s.attempts,
            s.started_at, s.completed_at, s.error ->> 'type',
            coalesce(s.completed_at, case when s.attempts = 0 then s.started_at end, clock_timestamp())
        from pgworkflows.steps as s
        cross join mark as m
        where %(run_id)s::uuid is not null and s.run_id = %(run_id)s::uuid
            and not pg_visible_in_snapshot(
                (m.newest - ((m.newest - s.xmin::text::bigint) & 4294967295))::text::xid8, m.snapshot
            )
        order by s.position desc
        limit %(limit)s::bigint
    )
),
fresh as materialized (
    select r.id
    from pgworkflows.runs as r
    where %(run_id)s::uuid is null and r.id >= %(first)s::uuid
    order by r.id desc
    limit %(limit)s::bigint
),
touched as materialized (
    select r.id, r.workflow_id, r.status::text as status, r.created_at, r.started_at, r.completed_at,
        r.error ->> 'type' as error_type
    from pgworkflows.runs as r
    cross join mark as m
    where r.id in (
            select done.run_id from done union select fresh.id from fresh union select %(run_id)s::uuid
        )
        and not pg_visible_in_snapshot(
            (m.newest - ((m.newest - r.xmin::text::bigint) & 4294967295))::text::xid8, m.snapshot
        )
)
select json_build_object(
    'now', clock_timestamp(),
    'snapshot', pg_current_snapshot()::text,
    'started', (
        select json_agg(row_to_json(t) order by t.created_at, t.id)
        from touched as t
        -- One that was committed late has not been seen yet, nor has anybody claimed it.
        where t.created_at > %(moment)s::timestamptz
            or (t.created_at > %(since)s::timestamptz and t.started_at is null and t.completed_at is null)
    ),
    'steps', (
        select json_agg(
            json_build_object('step', row_to_json(d), 'workflow_id', r.workflow_id) order by d.at, d.position
        )
        from done as d
        join pgworkflows.runs as r on r.id = d.run_id
    ),
    'ended', (
        select json_agg(row_to_json(t) order by t.completed_at, t.id)
        from touched as t
        where t.completed_at > %(since)s::timestamptz
    )
)::text
