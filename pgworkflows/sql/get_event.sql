-- One event of a run as JSON, if nobody has taken it. Locks nothing.
select row_to_json(e)::text
from pgworkflows.events as e
where e.run_id = %(run_id)s::uuid and e.id = %(event_id)s::bigint and e.consumed_at is null
