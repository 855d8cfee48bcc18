-- The time by the clock that tests can move, as JSON has it.
select to_json(pgworkflows_test_clock.clock_timestamp()) #>> '{}'
