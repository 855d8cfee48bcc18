-- Relations in the schema that bear one of our names, with their comments. Locks nothing.
select c.relname, obj_description(c.oid, 'pg_class')
from pg_catalog.pg_class as c
join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
where n.nspname = %s and c.relname = any (%s)
