-- Whether a role has rights that nothing here could take from it: those of the owner, or past row-level security. No row when
-- there is no such role. Locks nothing.
select pg_has_role(p.oid, c.relowner, 'usage') or p.rolbypassrls
from pg_catalog.pg_roles as p
cross join pg_catalog.pg_class as c
where p.rolname = %s and c.oid = 'pgworkflows.runs'::regclass
