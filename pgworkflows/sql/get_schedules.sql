-- The schedules, or the one of a workflow.
select row_to_json(s)::text
from pgworkflows.schedules as s
where coalesce(s.workflow_id = %s::text, %s::text is null)
order by s.workflow_id
