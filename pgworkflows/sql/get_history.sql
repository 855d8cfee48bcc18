-- One run and the steps that bind its replay, as JSON: not the failures that a retry of the run has taken back.
select json_build_object(
    'run', json_build_object(
        'id', r.id,
        'workflow_id', r.workflow_id,
        'status', r.status,
        'input', r.input,
        'output', r.output,
        'error', r.error,
        'resource_id', r.resource_id,
        'retry_count', r.retry_count,
        'schedule_tick', r.schedule_tick
    ),
    'steps', (
        select coalesce(
            json_agg(
                json_build_object(
                    'position', s.position,
                    'step_id', s.step_id,
                    'kind', s.kind,
                    'status', s.status,
                    'output', s.output,
                    'error', s.error,
                    'attempts', s.attempts,
                    'event_name', s.event_name
                )
                order by s.position
            ),
            '[]'
        )
        from pgworkflows.steps as s
        where s.run_id = r.id and not (s.status = 'retrying' and s.attempts = s.prior_attempts)
    )
)::text
from pgworkflows.runs as r
where r.id = %s::uuid
