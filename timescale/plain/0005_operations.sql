-- These answer an operator's questions about jobs, their scheduler and sizes (timescale/0005_operations.sql is the
-- twin). All of them are cheap and only read.

-- There are no jobs: Wattline's maintenance loop does the work, and there is nothing to refresh or to compress.
CREATE FUNCTION background_jobs() RETURNS TABLE (
    job_id integer, work text, target text, schedule interval, paused boolean, last_start timestamptz,
    last_status text, next_start timestamptz, last_error text)
LANGUAGE sql STABLE AS $$
    SELECT NULL::integer, NULL, NULL, NULL::interval, NULL::boolean, NULL::timestamptz, NULL, NULL::timestamptz, NULL
    WHERE false
$$;

-- Without jobs there is no scheduler.
CREATE FUNCTION job_scheduler() RETURNS TABLE (
    licence text, workers integer, running boolean, restoring boolean, logs_runs boolean)
LANGUAGE sql STABLE AS $$
    SELECT NULL, NULL::integer, NULL::boolean, NULL::boolean, NULL::boolean WHERE false
$$;

-- Returns the sizes of the readings and of each stored aggregate; stored hours and days are those of dropped rows. A
-- part is a day; `oldest` and `newest` are the starts of the first and the last day, NULL for a table without parts.
CREATE FUNCTION storage_sizes() RETURNS TABLE (
    name text, rows_estimated bigint, bytes bigint, parts bigint, compressed_parts bigint,
    oldest timestamptz, newest timestamptz)
LANGUAGE sql STABLE AS $$
    SELECT regexp_replace(stored, '_kept$', ''),
           -- reltuples is as of the last ANALYZE, and -1 before the first one.
           sum(greatest(part.reltuples::bigint, pg_stat_get_live_tuples(part.oid)))::bigint,
           sum(pg_total_relation_size(part.oid))::bigint,
           count(*) FILTER (WHERE part.relispartition),
           0::bigint,
           min(to_date(substring(part.relname FROM '_(\d{8})$'), 'YYYYMMDD')::timestamp AT TIME ZONE 'UTC'),
           max(to_date(substring(part.relname FROM '_(\d{8})$'), 'YYYYMMDD')::timestamp AT TIME ZONE 'UTC')
    FROM unnest(ARRAY['meter_reading', 'vehicle_reading', 'fleet_meter_minute', 'fleet_vehicle_minute',
                      'fleet_meter_hour_kept', 'fleet_vehicle_hour_kept', 'meter_hour_kept', 'vehicle_hour_kept',
                      'meter_day_kept', 'vehicle_day_kept'])
        AS stored
    JOIN pg_class AS part
        ON part.oid = stored::regclass OR part.oid IN (SELECT relid FROM pg_partition_tree(stored::regclass))
    GROUP BY stored
$$;

-- Returns why this engine stores no reading; NULL here, since all causes hold for both engines.
CREATE FUNCTION engine_fault() RETURNS text LANGUAGE sql STABLE AS $$ SELECT NULL $$;

-- Returns until when partitions exist for new readings. The maintenance loop makes those of the next two days.
CREATE FUNCTION prepared_until() RETURNS timestamptz
LANGUAGE sql STABLE AS $$
    SELECT min(until) FROM (
        SELECT max(to_date(right(part.relname, 8), 'YYYYMMDD') + 1)::timestamp AT TIME ZONE 'UTC' AS until
        FROM unnest(ARRAY['meter_reading', 'vehicle_reading']) AS parent
        LEFT JOIN pg_inherits ON inhparent = parent::regclass
        LEFT JOIN pg_class AS part ON part.oid = inhrelid
        GROUP BY parent
    ) AS prepared
$$;
