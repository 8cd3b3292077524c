DROP FUNCTION prepared_until();
DROP FUNCTION engine_fault();
DROP FUNCTION storage_sizes();
DROP FUNCTION job_scheduler();
DROP FUNCTION background_jobs();
