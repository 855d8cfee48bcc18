-- One step of a run as JSON, the first of those of a position. Locks nothing.
select row_to_json(s)::text
from pgworkflows.steps as s
where s.run_id = %(run_id)s::uuid and s.position = %(position)s::integer
order by s.attempts > s.prior_attempts desc, s.started_at
limit 1
