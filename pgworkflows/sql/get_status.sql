-- The status of one run.
select r.status from pgworkflows.runs as r where r.id = %s::uuid
