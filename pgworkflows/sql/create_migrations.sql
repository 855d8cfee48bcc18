-- The schema and the record of what was done to it.
create schema if not exists "pgworkflows";
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
