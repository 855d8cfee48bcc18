-- The steps of a run in order, as one JSON list; no row when the run is another resource's.
select coalesce(
    (
        select json_agg(s order by s.position, s.attempts > s.prior_attempts desc, s.started_at)
        from (
            select position, step_id, kind, status, output, error, attempts, started_at, completed_at, wake_at,
                event_name, child_run_id, prior_attempts
            from pgworkflows.steps
            where run_id = r.id
        ) as s
    ),
    '[]'
)::text
from pgworkflows.runs as r
where r.id = %s::uuid and coalesce(r.resource_id = %s::text, %s::text is null)
