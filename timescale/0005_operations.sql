-- These answer an operator's questions about jobs, their scheduler and sizes (timescale/plain/0005_operations.sql is
-- the twin). All of them are cheap and only read. A role that is not a member of the database's owner sees the jobs,
-- but not their errors.

-- Returns the jobs of Wattline's policies. last_error is the error of the last run, if that failed.
CREATE FUNCTION background_jobs() RETURNS TABLE (
    job_id integer, work text, target text, schedule interval, paused boolean, last_start timestamptz,
    last_status text, next_start timestamptz, last_error text)
LANGUAGE sql STABLE AS $$
    SELECT job.job_id,
           CASE job.proc_name
               WHEN 'cagg_refresh' THEN 'refresh'
               WHEN 'policy_compression' THEN 'compress'
               ELSE 'drop old'
           END,
           coalesce(job.config ->> 'aggregate', regexp_replace(job.hypertable_name, '_cagg$', '')),
           job.schedule_interval,
           NOT job.scheduled OR coalesce(job.next_start = 'infinity', false),
           -- A pause until 'infinity', and a job that never ran, have no time that a driver could load.
           CASE WHEN isfinite(stats.last_run_started_at) THEN stats.last_run_started_at END,
           -- NULL before the first run has ended.
           lower(stats.last_run_status),
           CASE WHEN isfinite(job.next_start) THEN job.next_start END,
           CASE stats.last_run_status WHEN 'Failed' THEN (
               SELECT failed.err_message FROM timescaledb_information.job_errors AS failed
               WHERE failed.job_id = job.job_id
               ORDER BY failed.start_time DESC LIMIT 1)
           END
    FROM timescaledb_information.jobs AS job
    LEFT JOIN timescaledb_information.job_stats AS stats ON stats.job_id = job.job_id
    WHERE job.proc_name = 'cagg_refresh'
        OR (job.proc_name IN ('policy_compression', 'policy_retention')
            AND (job.hypertable_name IN ('meter_reading', 'vehicle_reading')
                 OR job.hypertable_name IN (SELECT name || '_cagg' FROM cagg_level)))
    ORDER BY job.job_id
$$;

-- Returns what the jobs need to run. `workers` is the number that the server can give them at most. `running` is NULL
-- for a role that may not see the server's processes.
CREATE FUNCTION job_scheduler() RETURNS TABLE (
    licence text, workers integer, running boolean, restoring boolean, logs_runs boolean)
LANGUAGE sql STABLE AS $$
    SELECT current_setting('timescaledb.license'),
           least(current_setting('timescaledb.max_background_workers')::integer,
                 -- PostgreSQL's launcher of logical replication and TimescaleDB's launcher take one worker each.
                 current_setting('max_worker_processes')::integer - 2),
           CASE WHEN pg_has_role('pg_read_all_stats', 'USAGE') THEN
               EXISTS (SELECT FROM pg_stat_activity
                       WHERE datname = current_database() AND backend_type = 'TimescaleDB Background Worker Scheduler')
           END,
           current_setting('timescaledb.restoring')::boolean,
           coalesce(current_setting('timescaledb.enable_job_execution_logging', true)::boolean, false)
$$;

-- Returns the sizes of the readings and of each stored aggregate. A part is a chunk; `oldest` and `newest` are the
-- starts of the first and the last chunk.
CREATE FUNCTION storage_sizes() RETURNS TABLE (
    name text, rows_estimated bigint, bytes bigint, parts bigint, compressed_parts bigint,
    oldest timestamptz, newest timestamptz)
LANGUAGE sql STABLE AS $$
    WITH stored (name, relation) AS (
        SELECT reading, reading::regclass FROM unnest(ARRAY['meter_reading', 'vehicle_reading']) AS reading
        UNION ALL
        SELECT freshness.name,
               format('%I.%I', materialization_hypertable_schema, materialization_hypertable_name)::regclass
        FROM aggregate_freshness() AS freshness
        JOIN timescaledb_information.continuous_aggregates ON view_name = freshness.name || '_cagg'
    )
    SELECT stored.name,
           -- The first estimate includes compressed rows, but misses a chunk's rows before its first ANALYZE.
           greatest(approximate_row_count(stored.relation),
                    sum(pg_stat_get_live_tuples(chunk.relation)) FILTER (WHERE NOT chunk.is_compressed))::bigint,
           hypertable_approximate_size(stored.relation),
           count(chunk.range_start),
           count(*) FILTER (WHERE chunk.is_compressed),
           min(chunk.range_start),
           max(chunk.range_start)
    FROM stored
    LEFT JOIN (
        SELECT format('%I.%I', hypertable_schema, hypertable_name)::regclass AS hypertable,
               format('%I.%I', chunk_schema, chunk_name)::regclass AS relation, range_start, is_compressed
        FROM timescaledb_information.chunks
    ) AS chunk ON chunk.hypertable = stored.relation
    GROUP BY stored.name, stored.relation
$$;

-- Returns why this engine stores no reading; NULL when it does. If the library is not loaded, a reading goes into the
-- hypertable's own table, which no answer reads.
CREATE FUNCTION engine_fault() RETURNS text LANGUAGE sql STABLE AS $$
    SELECT CASE
        WHEN NOT EXISTS (SELECT FROM pg_settings WHERE name = 'timescaledb.max_background_workers') THEN 'not_preloaded'
        WHEN (SELECT count(*) FROM _timescaledb_catalog.hypertable
              WHERE format('%I.%I', schema_name, table_name)::regclass
                  IN ('meter_reading'::regclass, 'vehicle_reading'::regclass)) < 2 THEN 'not_hypertables'
    END
$$;

-- Returns until when partitions exist for new readings; NULL here, since TimescaleDB makes a chunk when an insert
-- needs it.
CREATE FUNCTION prepared_until() RETURNS timestamptz LANGUAGE sql STABLE AS $$ SELECT NULL::timestamptz $$;
