-- Runs older than the cursor, newest first, as JSON; each filter is off when null.
select row_to_json(r)::text
from pgworkflows.runs as r
where (%(cursor)s::uuid is null or r.id < %(cursor)s::uuid)
    and (%(resource_id)s::text is null or r.resource_id = %(resource_id)s::text)
    and (%(workflow_id)s::text is null or r.workflow_id = %(workflow_id)s::text)
    and (%(idempotency_key)s::text is null or r.idempotency_key = %(idempotency_key)s::text)
    and (%(statuses)s::text[] is null or r.status = any (%(statuses)s::text[]))
order by r.id desc
limit %(limit)s
