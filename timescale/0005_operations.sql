-- These answer an operator's questions about jobs, their scheduler and sizes (timescale/plain/0005_operations.sql is
-- the twin). All of them are cheap and only read. A role that is not a member of the database's owner sees the jobs,
-- but not their errors.

-- Returns the jobs of Wattline's policies. last_error is the error of the last run, if that failed. A run whose process
-- was killed, or whose server was stopped, has crashed: TimescaleDB counts a crash when a run begins, and takes it back
-- when the run ends. due_at is NULL while a job runs, after a crash, and for a paused job.
CREATE FUNCTION background_jobs() RETURNS TABLE (
    job_id integer, work text, target text, schedule interval, owner text, owner_may_login boolean, paused boolean,
    last_start timestamptz, last_status text, crashes integer, next_start timestamptz, due_at timestamptz,
    last_error text)
LANGUAGE sql STABLE AS $$
    SELECT job.job_id,
           CASE job.proc_name
               WHEN 'cagg_refresh' THEN 'refresh'
               WHEN 'policy_compression' THEN 'compress'
               ELSE 'drop old'
           END,
           coalesce(job.config ->> 'aggregate', regexp_replace(job.hypertable_name, '_cagg$', '')),
           job.schedule_interval,
           job.owner::text,
           coalesce((SELECT rolcanlogin FROM pg_roles WHERE pg_roles.oid = job.owner), false),
           state.paused,
           -- A pause until 'infinity', and a job that never ran, have no time that a driver could load.
           CASE WHEN isfinite(stats.last_run_started_at) THEN stats.last_run_started_at END,
           -- NULL before the first run has ended.
           CASE WHEN state.crashes > 0 THEN 'crashed' ELSE lower(stats.last_run_status) END,
           state.crashes,
           CASE WHEN isfinite(job.next_start) THEN job.next_start END,
           -- Before its first start, a job without a time of its own is due at once.
           CASE WHEN NOT state.paused AND NOT state.running AND state.crashes = 0 THEN
               greatest(CASE WHEN isfinite(job.next_start) THEN job.next_start
                             ELSE coalesce(job.initial_start, (SELECT installed_at FROM installation)) END,
                        pg_postmaster_start_time())
           END,
           CASE stats.last_run_status WHEN 'Failed' THEN (
               SELECT failed.err_message FROM timescaledb_information.job_errors AS failed
               WHERE failed.job_id = job.job_id
               ORDER BY failed.start_time DESC LIMIT 1)
           END
    FROM timescaledb_information.jobs AS job
    LEFT JOIN timescaledb_information.job_stats AS stats ON stats.job_id = job.job_id
    LEFT JOIN _timescaledb_internal.bgw_job_stat AS counted ON counted.job_id = job.job_id
    CROSS JOIN LATERAL (
        -- Every role may see the names of other roles' processes. A run is recorded before its process begins.
        SELECT EXISTS (SELECT FROM pg_stat_activity
                       WHERE datname = current_database() AND application_name = job.application_name)
               OR coalesce(counted.consecutive_crashes > 0
                           AND counted.last_start > clock_timestamp() - INTERVAL '5 seconds', false) AS running
    ) AS process
    CROSS JOIN LATERAL (
        SELECT running,
               NOT job.scheduled OR coalesce(job.next_start = 'infinity', false) AS paused,
               CASE WHEN running THEN 0 ELSE coalesce(counted.consecutive_crashes, 0) END AS crashes
    ) AS state
    WHERE (job.proc_name = 'cagg_refresh' AND job.config ->> 'aggregate' IN (SELECT name FROM cagg_level))
        OR (job.proc_name IN ('policy_compression', 'policy_retention')
            AND (job.hypertable_name IN ('meter_reading', 'vehicle_reading')
                 OR job.hypertable_name IN (SELECT name || '_cagg' FROM cagg_level)))
    ORDER BY job.job_id
$$;

-- Returns what the jobs need to run. `workers` is the number that the server can give to the schedulers and jobs of all
-- databases, set by `workers_setting`; `workers_in_use` counts those of each database. `running` is NULL for a role
-- that may not see the server's processes.
CREATE FUNCTION job_scheduler() RETURNS TABLE (
    licence text, workers integer, workers_setting text, workers_in_use jsonb, running boolean, restoring boolean)
LANGUAGE sql STABLE AS $$
    SELECT current_setting('timescaledb.license'),
           -- TimescaleDB's launcher takes one.
           least(allowed, processes) - 1,
           CASE WHEN allowed <= processes
               THEN 'timescaledb.max_background_workers, and max_worker_processes by as much,'
               ELSE 'max_worker_processes'
           END,
           (SELECT coalesce(jsonb_object_agg(datname, count), '{}')
            FROM (SELECT datname, count(*) FROM pg_stat_activity
                  -- Where a role may not see the type of other roles' processes, the form of the name has to do.
                  WHERE datname IS NOT NULL AND coalesce(backend_type, application_name) = application_name
                      AND (application_name = 'TimescaleDB Background Worker Scheduler'
                           OR application_name ~ ' \[\d+\]$')
                  GROUP BY datname) AS used),
           CASE WHEN pg_has_role('pg_read_all_stats', 'USAGE') THEN
               EXISTS (SELECT FROM pg_stat_activity
                       WHERE datname = current_database() AND backend_type = 'TimescaleDB Background Worker Scheduler')
           END,
           current_setting('timescaledb.restoring')::boolean
    FROM (
        SELECT current_setting('timescaledb.max_background_workers')::integer AS allowed,
               -- PostgreSQL's launcher of logical replication takes one.
               current_setting('max_worker_processes')::integer - 1 AS processes
    ) AS settings
$$;

-- Returns the chunks of the readings and of each aggregate; one row without a part for what has none. `bytes_before` is
-- the size of a compressed chunk before it was compressed.
CREATE FUNCTION engine_parts() RETURNS TABLE (
    name text, part text, range_start timestamptz, range_end timestamptz, compressed boolean, rows_estimated bigint,
    bytes bigint, bytes_before bigint)
LANGUAGE sql STABLE AS $$
    SELECT stored.name, chunk_name, chunk.range_start, chunk.range_end, chunk.is_compressed,
           -- Before the first ANALYZE of a chunk, only the statistics of its activity count its rows. They still count
           -- those that were compressed since.
           greatest(of_chunk.reltuples::bigint,
                    CASE WHEN NOT chunk.is_compressed THEN pg_stat_get_live_tuples(of_chunk.oid) ELSE 0 END)
               + coalesce(compression.numrows_pre_compression, 0),
           size.total_bytes, stats.before_compression_total_bytes
    FROM (
        SELECT reading, reading::regclass FROM unnest(ARRAY['meter_reading', 'vehicle_reading']) AS reading
        UNION ALL
        SELECT level.name,
               format('%I.%I', materialization_hypertable_schema, materialization_hypertable_name)::regclass
        FROM cagg_level AS level
        JOIN timescaledb_information.continuous_aggregates ON view_name = level.name || '_cagg'
    ) AS stored (name, hypertable)
    LEFT JOIN (
        SELECT *, to_regclass(format('%I.%I', hypertable_schema, hypertable_name)) AS hypertable,
               to_regclass(format('%I.%I', chunk_schema, chunk_name)) AS relation
        FROM timescaledb_information.chunks
    ) AS chunk USING (hypertable)
    LEFT JOIN pg_class AS of_chunk ON of_chunk.oid = chunk.relation
    LEFT JOIN _timescaledb_catalog.chunk AS entry ON entry.relid = chunk.relation
    LEFT JOIN _timescaledb_catalog.compression_chunk_size AS compression ON compression.chunk_id = entry.id
    LEFT JOIN LATERAL (SELECT * FROM chunks_detailed_size(hypertable)) AS size USING (chunk_name)
    LEFT JOIN LATERAL (SELECT * FROM chunk_columnstore_stats(hypertable)) AS stats USING (chunk_name)
$$;

-- Sets how the chunks that are compressed from now on are laid out: a segment for each value of segmentby.
CREATE PROCEDURE cagg_set_columnstore(relation regclass, segmentby text, orderby text)
LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('ALTER %s %s SET (timescaledb.enable_columnstore, timescaledb.segmentby = %L, '
                   'timescaledb.orderby = %L)',
                   CASE WHEN relation::text LIKE '%\_cagg' THEN 'MATERIALIZED VIEW' ELSE 'TABLE' END,
                   relation, coalesce(segmentby, ''), orderby);
END
$$;

-- Sets whether an aggregate answers what is materialised only, or adds what is newer from the level below.
CREATE PROCEDURE cagg_set_materialized_only(cagg regclass, materialized_only boolean)
LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('ALTER MATERIALIZED VIEW %s SET (timescaledb.materialized_only = %L)', cagg, materialized_only);
END
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

-- Returns how many chunks of each table its columnstore policy should have compressed, and has not in two periods.
CREATE FUNCTION chunks_not_compressed() RETURNS TABLE (name text, chunks bigint, job_id integer)
LANGUAGE sql STABLE AS $$
    SELECT regexp_replace(job.hypertable_name, '_cagg$', ''), count(*), job.job_id
    FROM timescaledb_information.jobs AS job
    JOIN present_chunk AS chunk ON chunk.source = job.hypertable_name
    WHERE job.proc_name = 'policy_compression' AND NOT chunk.is_compressed
        AND chunk.range_end < now() - (job.config ->> 'compress_after')::interval - 2 * job.schedule_interval
        -- Late readings, such as imported ones, make old chunks anew.
        AND chunk.created_at < now() - 2 * job.schedule_interval
    GROUP BY job.hypertable_name, job.job_id
    ORDER BY 1
$$;
