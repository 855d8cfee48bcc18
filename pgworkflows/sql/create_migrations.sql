-- The schema and the record of what was done to it.
do $function$
begin
    -- "if not exists" would ask for the right to create schemas also where an administrator has made this one.
    if not exists (select from pg_catalog.pg_namespace as n where n.nspname = 'pgworkflows') then
        create schema "pgworkflows";
    end if;
end
$function$;
create table pgworkflows.migrations (
    number integer primary key,
    name text not null,
    oldest_code integer not null,
    applied_at timestamptz not null default clock_timestamp()
);
comment on table pgworkflows.migrations is 'The migrations of pgworkflows that this schema has had.';
comment on column pgworkflows.migrations.number is 'Its number.';
comment on column pgworkflows.migrations.name is 'Its name.';
comment on column pgworkflows.migrations.oldest_code is
    'The last migration known to the oldest code that can work with the schema from here on.';
comment on column pgworkflows.migrations.applied_at is 'When it was applied.'
