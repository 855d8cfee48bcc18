-- What a text that somebody looks for names: the run of that id, the run of that idempotency key, whether it is the resource
-- of a run, and whether the ids of runs begin so. Locks nothing.
select
    (select r.id::text from pgworkflows.runs as r where r.id = %(id)s::uuid),
    (select r.id::text from pgworkflows.runs as r where r.idempotency_key = %(text)s::text),
    exists (select from pgworkflows.runs as r where r.resource_id = %(text)s::text),
    exists (select from pgworkflows.runs as r where r.id between %(first)s::uuid and %(last)s::uuid)
