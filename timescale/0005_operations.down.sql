DROP FUNCTION chunks_not_compressed();
DROP FUNCTION prepared_until();
DROP FUNCTION engine_fault();
DROP PROCEDURE cagg_set_materialized_only, cagg_set_columnstore;
DROP FUNCTION engine_parts();
DROP FUNCTION job_scheduler();
DROP FUNCTION background_jobs();
