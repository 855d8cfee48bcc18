-- Whether the schema's time can be moved: its functions ask the clock of tests, also those that a later migration brought.
select exists (select from pg_namespace as n where n.nspname = 'pgworkflows') and not exists (
    select from pg_proc as p
    join pg_namespace as n on n.oid = p.pronamespace
    where n.nspname = 'pgworkflows' and 'search_path=pg_catalog, pg_temp' = any (p.proconfig)
)
