-- For tests only: delete every run, whatever its status, with its steps and events; and the schedules.
with queued as (delete from pgworkflows.queue), stepped as (delete from pgworkflows.steps),
mailed as (delete from pgworkflows.events), scheduled as (delete from pgworkflows.schedules)
delete from pgworkflows.runs returning 1
