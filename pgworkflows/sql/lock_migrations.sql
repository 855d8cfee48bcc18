-- One migration at a time per schema; held to the end of the transaction.
select pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended('pgworkflows migrations ' || 'pgworkflows', 0))
