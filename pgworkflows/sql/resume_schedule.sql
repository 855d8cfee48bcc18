-- Let a paused schedule go on. Locks the schedule.
select o.outcome, row_to_json(o.schedule)::text
from pgworkflows.try_resume_schedule(workflow => %s) as o
