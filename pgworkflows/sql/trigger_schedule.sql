-- Start a run as the schedule would, now. Locks the schedule, then the new rows.
select o.outcome, row_to_json(o.run)::text
from pgworkflows.try_trigger_schedule(workflow => %s, headers => %s::json, borrowed => %s::boolean) as o
