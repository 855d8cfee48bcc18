-- Whether the schema's time can be moved.
select to_regclass('pgworkflows_test_clock.moved') is not null
