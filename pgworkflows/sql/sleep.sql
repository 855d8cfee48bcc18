-- Announce that the worker is asleep in these lanes.
select pgworkflows.sleep(worker_id => %s::uuid, queues => %s::text[])
