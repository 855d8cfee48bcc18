-- One run as JSON, if it belongs to the resource (any, when that is null).
select row_to_json(r)::text
from pgworkflows.runs as r
where r.id = %s::uuid and coalesce(r.resource_id = %s::text, %s::text is null)
