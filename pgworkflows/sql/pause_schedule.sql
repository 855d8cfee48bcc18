-- Let the ticks of a schedule pass. Locks the schedule.
select o.outcome, row_to_json(o.schedule)::text
from pgworkflows.try_pause_schedule(workflow => %s) as o
